"""The fp8 checkpoint is the one that ModelOpt exports, tensor by tensor and config by config."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import DiffusionGemmaForBlockDiffusion

from nemo_diffgemma.checkpoint import DECODER, INDEX, Checkpoint, new_vision_tensors
from nemo_diffgemma.checkpoint_writer import write_checkpoint
from nemo_diffgemma.hf_config import load_architecture
from tests.support import GENERATION_CONFIG, random_tensors, small_architecture
from trtllm_build.quantization.unified import MODULES, write_unified

pytestmark = pytest.mark.slow

VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
RECIPES = [("attention", "mlp", "experts"), ("experts",), ("attention", "mlp")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """bfloat16 as the released one, vision tower and all; some rows are zero."""
    arch = small_architecture(vision_config=VISION)
    tensors = random_tensors(arch, 3) | new_vision_tensors(arch, 3)
    tensors["model.decoder.layers.0.self_attn.q_proj.weight"][5] = 0
    tensors["model.decoder.layers.1.experts.gate_up_proj"][2, 7] = 0
    folder = tmp_path_factory.mktemp("source") / "model"
    narrow = {name: t.to(torch.bfloat16) for name, t in tensors.items()}
    return Checkpoint(write_checkpoint(folder, arch, narrow, GENERATION_CONFIG))


def modelopt_export(checkpoint: Checkpoint, quantized: tuple[str, ...], directory: Path) -> Path:
    """What ModelOpt makes of the whole model in memory."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint

    recipe: dict[str, Any] = copy.deepcopy(mtq.FP8_PER_CHANNEL_PER_TOKEN_CFG)
    left = ["self_conditioning", *(f"layers.*.{MODULES[c]}" for c in MODULES if c not in quantized)]
    recipe["quant_cfg"] += [{"quantizer_name": f"*{module}*", "enable": False} for module in left]
    model = DiffusionGemmaForBlockDiffusion.from_pretrained(checkpoint.directory, dtype=torch.bfloat16)
    export_hf_checkpoint(mtq.quantize(model, recipe), export_dir=directory)
    return directory


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a directory, one shard or many; fp8 as its bytes, which can be compared."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def read(directory: Path, name: str) -> Any:
    return json.loads((directory / name).read_text())


@pytest.mark.parametrize("quantized", RECIPES, ids="+".join)
def test_ours_is_modelopts_export(checkpoint: Checkpoint, quantized: tuple[str, ...], tmp_path: Path) -> None:
    theirs = modelopt_export(checkpoint, quantized, tmp_path / "modelopt")
    ours = write_unified(checkpoint, tmp_path / "ours", lambda line: None, quantized, max_shard_bytes=100_000)

    wanted, found = tensors_of(theirs), tensors_of(ours)
    kinds = [{name: (t.dtype, t.shape) for name, t in tensors.items()} for tensors in (wanted, found)]
    assert kinds[0] == kinds[1]
    assert any(t.dtype == torch.float8_e4m3fn for t in found.values())
    assert [name for name in wanted if not torch.equal(as_bytes(wanted[name]), as_bytes(found[name]))] == []

    assert read(ours, "hf_quant_config.json") == read(theirs, "hf_quant_config.json")
    assert read(ours, "config.json")["quantization_config"] == read(theirs, "config.json")["quantization_config"]
    assert load_architecture(ours).with_changes(vision_config=None) == load_architecture(theirs).with_changes(
        vision_config=None
    )
    assert set(read(ours, INDEX)["weight_map"]) == set(found)


@pytest.mark.slow
def test_nvfp4_is_what_modelopts_own_recipe_exports(tmp_path: Path) -> None:
    import modelopt.torch.quantization as mtq
    from modelopt.recipe import load_recipe
    from modelopt.torch.export import export_hf_checkpoint

    arch = small_architecture(hidden_size=64, moe_intermediate_size=32, num_experts=4, vision_config=VISION)
    tensors = random_tensors(arch, 5) | new_vision_tensors(arch, 5)
    narrow = {name: t.to(torch.bfloat16) for name, t in tensors.items()}
    source = Checkpoint(write_checkpoint(tmp_path / "source", arch, narrow, GENERATION_CONFIG))
    model = DiffusionGemmaForBlockDiffusion.from_pretrained(source.directory, dtype=torch.bfloat16)
    recipe: Any = load_recipe("huggingface/diffusion_gemma/ptq/nvfp4_experts_only")
    generator = torch.Generator().manual_seed(0)

    def calibrate(network: Any) -> None:
        prompt, canvas = (torch.randint(0, arch.vocab_size, (4, n), generator=generator) for n in (20, 8))
        network(input_ids=prompt, decoder_input_ids=canvas)

    quantised = mtq.quantize(model, recipe.quantize.model_dump(), forward_loop=calibrate)
    export_hf_checkpoint(quantised, export_dir=tmp_path / "modelopt")
    theirs = tensors_of(tmp_path / "modelopt")
    # its scales of activations are given to ours: how they are found is not the layout's affair
    names = {"experts_gate_up": "gate_proj", "experts_down": "down_proj"}
    scales = {
        f"layer_{i:03d}.{product}": 6 * float(theirs[f"{DECODER}layers.{i}.experts.0.{name}.input_scale"])
        for i in range(arch.num_hidden_layers)
        for product, name in names.items()
    }
    write_unified(source, tmp_path / "ours", lambda line: None, ("experts",), scales)
    ours = tensors_of(tmp_path / "ours")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor.dtype, tensor.shape) == (theirs[name].dtype, theirs[name].shape), name
        if name.endswith("input_scale"):
            assert torch.allclose(tensor, theirs[name], rtol=1e-6), name
        else:
            assert torch.equal(as_bytes(tensor), as_bytes(theirs[name])), name
    found, expected = (read(tmp_path / d, "hf_quant_config.json")["quantization"] for d in ("ours", "modelopt"))
    # ModelOpt's recipe narrows the cache too
    assert found == expected | {"kv_cache_quant_algo": None}
    found, expected = (read(tmp_path / d, "config.json")["quantization_config"] for d in ("ours", "modelopt"))
    del expected["kv_cache_scheme"]
    assert found == expected
