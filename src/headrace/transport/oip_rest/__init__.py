"""The Open Inference Protocol over HTTP: `/v2/...`, JSON and the binary tensor extension."""
