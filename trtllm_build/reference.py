"""transformers' DiffusionGemma on the checkpoint's weights: what an engine is judged by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from nemo_diffgemma.checkpoint import VISION_PREFIXES, Checkpoint

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


class Reference:
    """transformers' model in float32.

    Raises:
        RuntimeError: when transformers wants a text tensor that the checkpoint's layout does not have.
    """

    def __init__(self, checkpoint: Checkpoint):
        arch = checkpoint.arch.with_changes(vision_config=SMALLEST_VISION)
        config = DiffusionGemmaConfig(**arch.to_hf())
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
        if arch.hidden_size % 4 or arch.moe_intermediate_size % 4:
            model.set_experts_implementation("eager")  # its grouped product wants rows of whole 16 bytes
        self.model = model.eval()

    @torch.inference_mode()
    def logits(self, prompt_ids: Tensor, canvas_ids: Tensor, previous_logits: Tensor | None) -> Tensor:
        """Same as :meth:`trtllm_build.backends.base.Backend.logits`."""
        conditioning = None if previous_logits is None else previous_logits[None]
        output = self.model(
            input_ids=prompt_ids[None], decoder_input_ids=canvas_ids[None], self_conditioning_logits=conditioning
        )
        logits: Tensor = output.logits[0].float()
        return logits
