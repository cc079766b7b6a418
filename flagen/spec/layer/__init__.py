"""The `layer` section: the module around the operator, read into data and checked against it."""
