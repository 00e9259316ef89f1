"""Load on a running server, and its figures: ``diffgemma bench``."""
