"""The service: the model repository Triton reads, the launcher of the real tritonserver, and a streaming client."""
