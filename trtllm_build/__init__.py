"""The engine: a checkpoint becomes a bundle (`pipeline`), a bundle becomes a running engine (`load_engine`)."""

from trtllm_build.runtime.engine import Engine, load_engine

__all__ = ["Engine", "load_engine"]
