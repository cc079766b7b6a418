"""mamba_ssm.ops: the functions, in the modules below."""
