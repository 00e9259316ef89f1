"""How many bytes a lowered model's weights take, from shapes alone: no tensor is made."""

from __future__ import annotations

from collections import Counter
from math import prod

import torch

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import text_tensors
from trtllm_build.network.weights import weight_files
from trtllm_build.quantization.nvfp4 import BLOCK
from trtllm_build.quantization.recipe import Recipe, class_of

_SCALE = 4  # bytes of a float32 scale


def stored_bytes(arch: Architecture, recipe: Recipe) -> dict[str, int]:
    """Bytes by class of tensor; of a quantised class its scales are ``<class> scales``.

    nvfp4 takes half a byte a parameter, a byte a block of 16 and four a tensor; fp8 a byte a parameter and four an
    output channel, which experts' down projections share.
    """
    shapes, total = text_tensors(arch), Counter[str]()
    for names in weight_files(arch).values():
        for name, theirs in names.items():
            count, kind = prod(shapes[theirs]), class_of(name)
            if kind not in recipe.quantize:
                total[kind] += count * getattr(torch, recipe.dtype).itemsize
            elif recipe.format == "nvfp4":
                total[kind] += count // 2
                total[f"{kind} scales"] += count // BLOCK + _SCALE
            else:
                total[kind] += count
                channels = shapes[theirs][1:-1] if name == "experts_down" else shapes[theirs][:-1]
                total[f"{kind} scales"] += _SCALE * prod(channels)
    return dict(total)
