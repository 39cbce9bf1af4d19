"""The Open Inference Protocol over gRPC. See docs/adr/0008 for how its parts are cut."""
