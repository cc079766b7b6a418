"""mamba_ssm.ops.triton: the functions of Mamba-2, in the modules below."""
