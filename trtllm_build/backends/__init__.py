"""One file a compiler, one protocol (`base`)."""
