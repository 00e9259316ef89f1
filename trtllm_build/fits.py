"""Whether limits can be kept: under them a request must fit, and the memory must hold the cache."""

from __future__ import annotations

import torch

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.errors import require
from trtllm_build.hardware import all_memory
from trtllm_build.limits import Limits
from trtllm_build.network.cache import PREFILL_CHUNK, cache_bytes

_MOST_QUEUE = 1_000_000  # requests that wait: each holds its prompt


def check_limits(limits: Limits, arch: Architecture, dtype: torch.dtype, gpu_memory: int | None) -> None:
    """Refuse limits under which no request fits, or whose cache no memory holds.

    The least request is one token of a prompt and one canvas. On a GPU the whole cache is allocated when the engine is
    loaded; on a CPU it grows as it is filled, so there only the least request in every slot has to fit.

    Args:
        limits: as they were given.
        arch: the network's shapes.
        dtype: of keys and values.
        gpu_memory: bytes; None for an engine on this machine's CPU.

    Raises:
        FieldError: naming the limit and what it may be.
    """
    least, last = arch.canvas_length + 1, arch.max_position_embeddings
    memory, whose = (all_memory(), "this machine's") if gpu_memory is None else (gpu_memory, "the GPU's")
    held = f"what {whose} {memory / 1e9:.0f} GB of memory hold"
    request = f"a canvas of {arch.canvas_length} and one token of a prompt"
    _check("context", limits.context, least, last, request, "the model's max_position_embeddings")
    smallest = cache_bytes(arch, dtype, least)
    _check("slots", limits.slots, 1, max(1, memory // smallest), "one request", f"{held} at {smallest} bytes each")
    _check("queue", limits.queue, 1, _MOST_QUEUE, "one request", "requests that wait with their prompts")
    far = arch.sliding_window + max(PREFILL_CHUNK, arch.canvas_length)  # from here on only global layers take more
    token = cache_bytes(arch, dtype, far + 1) - cache_bytes(arch, dtype, far)
    if limits.cache_tokens is not None:
        _check("cache_tokens", limits.cache_tokens, least, max(least, memory // token), request, f"{held}; or null")
    if gpu_memory is None:
        return
    windows = limits.slots * (cache_bytes(arch, dtype, far) - far * token)
    room = limits.slots * (limits.context + limits.canvas)  # the last canvas may reach past the context
    taken = windows + token * (limits.cache_tokens or room)
    require(
        taken <= memory,
        field="gpu.limits",
        value=f"slots={limits.slots} context={limits.context} cache_tokens={limits.cache_tokens}",
        allowed=f"a cache that is {held}, not {taken / 1e9:.1f} GB",
        fix=f"pass gpu.limits.cache_tokens={max(least, (memory // 2 - windows) // token)}, or fewer gpu.limits.slots",
    )


def _check(name: str, value: object, least: int, most: int, lower: str, upper: str) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    nearest = min(max(int(value), least), most) if isinstance(value, int | float) and abs(value) < most else least
    require(
        whole and least <= value <= most,  # type: ignore[operator]
        field=f"gpu.limits.{name}",
        value=value,
        allowed=f"an integer >= {least} ({lower}), at most {most}, {upper}",
        fix=f"pass gpu.limits.{name}={nearest}",
    )
