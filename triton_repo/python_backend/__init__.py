"""What runs inside tritonserver: a request's tensors in, the engine's events out, metrics, spans and the log."""
