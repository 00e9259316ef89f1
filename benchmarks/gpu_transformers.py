"""transformers' own ``generate`` in bfloat16 on the GPU, with random weights of the same shapes: the peer to beat."""

from __future__ import annotations

import gc
import time
from typing import Any

import torch
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.hf_config import write_config
from trtllm_build.gates.reference import SMALLEST_VISION


@torch.inference_mode()
def measure(arch: Architecture, device: torch.device, prompt: int, steps: int) -> dict[str, Any]:
    """Tokens per second of one canvas after ``prompt`` tokens, ``steps`` forced; the second of two runs counts."""
    config = DiffusionGemmaConfig(**write_config(arch.with_changes(vision_config=SMALLEST_VISION), "bfloat16"))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model: Any = DiffusionGemmaForBlockDiffusion._from_config(config)
    finally:
        torch.set_default_dtype(before)
    model.eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, float(parameter.shape[-1]) ** -0.5)
        elif name.endswith("q_norm.weight"):
            parameter.fill_(float(parameter.shape[0]) ** -0.5)
    ids = torch.randint(3, arch.vocab_size, (1, prompt), device=device)
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        model.generate(ids, max_new_tokens=arch.canvas_length, max_denoising_steps=steps, confidence_threshold=1e-9)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    del model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return {
        "prompt": prompt,
        "forced_steps": steps,
        "tokens_per_second": arch.canvas_length / seconds,
        "peak_bytes": peak,
        "dtype": "bfloat16",
    }
