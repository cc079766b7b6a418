"""What ships beside the operators: text that a build writes into the generated directory. No module imports it."""
