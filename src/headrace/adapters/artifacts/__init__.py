"""Artifacts of the registry: kept by digest in a directory or an S3 bucket, unpacked locally."""
