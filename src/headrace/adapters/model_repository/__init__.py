"""A folder of models laid out as Triton's, with Triton's configuration files and ours."""
