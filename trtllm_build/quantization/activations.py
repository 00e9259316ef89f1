"""How the inputs of quantised products are rounded while an engine runs, in plain torch: what its kernels do."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from trtllm_build.quantization.fp8 import DTYPE, LARGEST, rows_to_fp8, widen
from trtllm_build.quantization.nvfp4 import LARGEST as LARGEST_E2M1
from trtllm_build.quantization.nvfp4 import round_rows
from trtllm_build.quantization.recipe import Recipe, class_of

Rounding = Callable[[Tensor], Tensor]
"""``[..., rows, width]`` of any dtype to the numbers that the product reads, float32."""


def rounding_by_token(recipe: Recipe, scales: Mapping[str, float]) -> Callable[[str, str], Rounding | None]:
    """What the cuda backend rounds: every token by its own largest magnitude; static experts by their one scale.

    Args:
        recipe: in fp8, or without a format.
        scales: of static experts' inputs, by ``layer_000.experts_down``.

    Returns:
        ``(file, name)`` of a weight, as the network calls it, to how its product's input is rounded; None where it is
        not.
    """

    def of(file: str, name: str) -> Rounding | None:
        if class_of(name) not in recipe.quantize:
            return None
        if recipe.static and class_of(name) == "experts":
            return _fixed(scales[f"{file}.{name}"])
        return lambda rows: widen(rows_to_fp8(rows))

    return of


def rounding_by_product(
    recipe: Recipe, scales: Mapping[str, float], products: Mapping[str, str]
) -> Callable[[str, str], Rounding | None]:
    """What the lowered graph rounds: a product's input by the one scale that calibration found; in nvfp4 each block.

    Args:
        recipe: in fp8 or nvfp4, or without a format.
        scales: of products' inputs, by ``layer_000.qkv``.
        products: a weight's name to that of the product that it is part of.

    Returns:
        As :func:`rounding_by_token`.
    """

    def of(file: str, name: str) -> Rounding | None:
        if class_of(name) not in recipe.quantize:
            return None
        scale = scales[f"{file}.{products[name]}"]
        if recipe.format == "nvfp4":
            return lambda rows: round_rows(rows, scale / LARGEST_E2M1)
        return _fixed(scale)

    return of


def _fixed(scale: float) -> Rounding:
    return lambda rows: (rows.float() / scale).clamp(-LARGEST, LARGEST).to(DTYPE).float() * scale
