"""The engine: a checkpoint becomes a bundle (`pipeline`), a bundle becomes a running engine (`load_engine`)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtllm_build.runtime.engine import Engine, load_engine

__all__ = ["Engine", "load_engine"]


def __getattr__(name: str) -> Any:
    # Late: it brings torch, for which neither a command's --help nor who starts an engine's process should wait.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trtllm_build.runtime import engine

    return getattr(engine, name)
