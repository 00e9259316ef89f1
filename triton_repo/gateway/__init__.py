"""The OpenAI-compatible HTTP endpoint: a thin process in front of gRPC, without an engine of its own."""
