"""transformers' DiffusionGemma on the checkpoint's weights, in float32 and at a precision: what judges an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from nemo_diffgemma.checkpoint import VISION_PREFIXES, Checkpoint
from nemo_diffgemma.hf_config import write_config
from trtllm_build.network.weights import weight_files
from trtllm_build.quantization.activations import Rounding, rounding_by_token
from trtllm_build.quantization.fp8 import widen
from trtllm_build.quantization.recipe import Recipe
from trtllm_build.quantization.weight_files import stored_rows

# The text model never reads the vision tower, but transformers cannot be built without one: the smallest.
SMALLEST_VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "patch_size": 2,
    "position_embedding_size": 4,
    "pooling_kernel_size": 1,
}
_WHOLE_ROWS = 16  # bytes: transformers' grouped product of experts takes rows of a multiple of them


@dataclass(frozen=True)
class Precision:
    """What a recipe makes of a model, whoever computes it. Weights go by the network's names.

    Args:
        dtype: of hidden states, and of weights that are not quantised.
        weight: ``(file, name)`` to the numbers of a weight as it is stored, float32.
        rounding: ``(file, name)`` to how what a weight multiplies is rounded; None where it is not.
    """

    dtype: torch.dtype
    weight: Callable[[str, str], Tensor]
    rounding: Callable[[str, str], Rounding | None]

    @classmethod
    def of_recipe(cls, checkpoint: Checkpoint, recipe: Recipe, scales: Mapping[str, float]) -> Self:
        """What the bundle of a recipe holds, quantised anew from the checkpoint, and what its engine rounds.

        Args:
            checkpoint: whose weights.
            recipe: in fp8, or without a format.
            scales: of static experts' inputs.
        """
        files = weight_files(checkpoint.arch)

        def weight(file: str, name: str) -> Tensor:
            return widen(stored_rows(name, checkpoint.tensor(files[file][name]), recipe))

        return cls(getattr(torch, recipe.dtype), weight, rounding_by_token(recipe, scales))


class Reference:
    """transformers' model in float32; :meth:`hold` and then :meth:`compute` take it to a precision, in place.

    Raises:
        RuntimeError: when transformers wants a text tensor that the checkpoint's layout does not have.
    """

    def __init__(self, checkpoint: Checkpoint):
        self._arch = checkpoint.arch
        config = DiffusionGemmaConfig(**write_config(self._arch.with_changes(vision_config=SMALLEST_VISION)))
        model: Any = DiffusionGemmaForBlockDiffusion(config)
        weights = {name: t.float() for name, t in checkpoint.tensors(checkpoint.text_shapes)}
        report = model.load_state_dict(weights, strict=False)
        model.tie_weights()
        tied = ("lm_head.", "model.encoder.language_model.")
        missing = [
            k for k in report.missing_keys if not k.startswith((*tied, *VISION_PREFIXES)) or k.endswith("layer_scalar")
        ]
        if missing or report.unexpected_keys:
            raise RuntimeError(f"transformers does not take this layout: {missing} {report.unexpected_keys}")
        self.model = model.eval()
        self._products: dict[int, Rounding] = {}
        self._choose_experts(torch.float32)

    def hold(self, precision: Precision) -> None:
        """Take the weights that are stored at a precision; what is computed with them stays float32."""
        for file, name, tensor in self._tensors():
            tensor.data = precision.weight(file, name)

    def compute(self, precision: Precision) -> None:
        """Compute as at a precision: hidden states in its dtype, and what quantised weights multiply rounded.

        Quantised weights stay as they are, in float32: that is how a product of theirs is known. So do the frequencies
        of RoPE, which transformers never narrows.
        """
        for file, name, tensor in self._tensors():
            if (rounding := precision.rounding(file, name)) is None:
                tensor.data = tensor.data.to(precision.dtype)
            else:
                self._products[tensor.untyped_storage().data_ptr()] = rounding
        self._choose_experts(precision.dtype)

    def _tensors(self) -> list[tuple[str, str, Tensor]]:
        """The model's own tensors with the network's names for them."""
        names = {
            theirs: (file, ours) for file, held in weight_files(self._arch).items() for ours, theirs in held.items()
        }
        model = self.model
        own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
        return [(*place, own[theirs]) for theirs, place in names.items()]

    def _choose_experts(self, dtype: torch.dtype) -> None:
        widths = self._arch.hidden_size, self._arch.moe_intermediate_size
        whole = all(width * dtype.itemsize % _WHOLE_ROWS == 0 for width in widths)
        if self._products or not whole:
            self.model.set_experts_implementation("eager")  # expert by expert, each a product of its own

    def logits(self, prompt_ids: Tensor, canvas_ids: Tensor, previous_logits: Tensor | None) -> Tensor:
        """Same as :meth:`trtllm_build.contract.Backend.logits`."""
        previous = None if previous_logits is None else previous_logits[None]
        return self.batch(prompt_ids[None], canvas_ids[None], previous)[0]

    @torch.inference_mode()
    def batch(self, prompt_ids: Tensor, canvas_ids: Tensor, previous_logits: Tensor | None) -> Tensor:
        """Soft-capped logits ``[batch, canvas, vocab]`` float32 of canvases after prompts, each of one length.

        Args:
            prompt_ids: ``[batch, tokens]``.
            canvas_ids: ``[batch, canvas]``.
            previous_logits: tempered, ``[batch, canvas, vocab]``; None at the first step.
        """
        with _Rounded(self._products):
            output = self.model(
                input_ids=prompt_ids, decoder_input_ids=canvas_ids, self_conditioning_logits=previous_logits
            )
        logits: Tensor = output.logits.float()
        return logits


class _Rounded(TorchFunctionMode):
    """Products of some weights read rounded rows, and give the rows' dtype, whatever model they are in.

    Args:
        products: address of a weight's numbers to how rows are rounded for it; an expert's are a part of its layer's.
    """

    def __init__(self, products: Mapping[int, Rounding]):
        super().__init__()
        self._products = products

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and self._products:
            rows, weight = args[:2]
            rounding = self._products.get(weight.untyped_storage().data_ptr())
            if rounding is not None:
                return F.linear(rounding(rows), weight).to(rows.dtype)
        return func(*args, **(kwargs or {}))
