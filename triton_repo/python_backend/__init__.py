"""What runs inside tritonserver: a request's tensors in, the engine's events out, metrics, spans and the log."""

LOOK_S = 0.02  # a client that has gone is noticed after this long, or as soon as all have been looked at
