"""What the operators of all variants share."""
