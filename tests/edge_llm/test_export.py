"""NVIDIA's Edge-LLM exporter takes our checkpoints, and its graph holds them. Needs `make setup-edge-llm`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DiffusionGemmaForBlockDiffusion

from nemo_diffgemma.checkpoint import new_vision_tensors
from nemo_diffgemma.checkpoint_writer import write_checkpoint
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.hf_config import load_architecture
from nemo_diffgemma.new_tokenizer import train_tokenizer
from tests.parity.test_modelopt import VISION
from tests.support import GENERATION_CONFIG, random_tensors, small_architecture
from trtllm_build.compilers.edge_llm.compile import PYTHON, _look_into, export
from trtllm_build.compilers.edge_llm.contract import EXPERT_OP, expert_inputs, inputs, outputs
from trtllm_build.pipeline import build
from trtllm_build.plan import make_plan
from trtllm_build.runtime.engine import load_engine

pytestmark = pytest.mark.edge_llm


def quiet(line: str) -> None:
    """Progress nobody reads."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, two scalars per layer, every expert its own; widths that nvfp4 can take in blocks of 16."""
    arch = small_architecture(
        vocab_size=300, hidden_size=128, intermediate_size=96, moe_intermediate_size=48, head_dim=32,
        global_head_dim=64, num_experts=4, canvas_length=16, vision_config=VISION,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("source")
    files = train_tokenizer(
        ["red green blue chair table lamp größe naïve 日本 12 345 window"] * 3, 300, folder / "tokenizer"
    )
    tensors = random_tensors(arch, 5) | new_vision_tensors(arch, 5)
    return write_checkpoint(folder / "model", arch, tensors, GENERATION_CONFIG, {p.name: p for p in files})


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `diffgemma-engine build gpu=dgx_spark backend=edge_llm` writes."""
    out = tmp_path_factory.mktemp("engine") / "edge"
    plan = ["gpu=dgx-spark", "backend=edge_llm", "precision=bf16", f"checkpoint={checkpoint}", f"out={out}"]
    build(make_plan(plan), quiet)
    return out


@pytest.fixture(scope="module")
def nvfp4(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as ModelOpt's own recipe for this model exports it."""
    import modelopt.torch.quantization as mtq
    from modelopt.recipe import load_recipe
    from modelopt.torch.export import export_hf_checkpoint

    model = DiffusionGemmaForBlockDiffusion.from_pretrained(checkpoint, dtype=torch.bfloat16)
    recipe: Any = load_recipe("huggingface/diffusion_gemma/ptq/nvfp4_experts_only")

    def calibrate(network: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        for _ in range(8):
            prompt, canvas = (torch.randint(0, 300, (2, n), generator=generator) for n in (20, 16))
            network(input_ids=prompt, decoder_input_ids=canvas)

    folder = tmp_path_factory.mktemp("nvfp4") / "model"
    quantised = mtq.quantize(model, recipe.quantize.model_dump(), forward_loop=calibrate)
    export_hf_checkpoint(quantised, export_dir=folder)
    for path in [
        *checkpoint.glob("*token*"),
        checkpoint / "chat_template.jinja",
        checkpoint / "generation_config.json",
    ]:
        shutil.copyfile(path, folder / path.name)
    return folder


def names(ports: list[Any]) -> list[str]:
    return [port.name for port in ports]


def test_the_bundle_says_what_it_is_and_what_remains(bundle: Path, checkpoint: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    arch = load_architecture(checkpoint)
    assert manifest["verified"] == "none"
    assert manifest["hardware"]["sm"] == 121
    assert manifest["hardware"]["tensorrt"] == "10.16.1.11"
    assert [port[0] for port in manifest["io"]["inputs"]] == names(inputs(arch))
    assert [port[0] for port in manifest["io"]["outputs"]] == names(outputs(arch))
    exported = manifest["measured"]["edge_llm"]
    assert exported["exporter"]["tensorrt-edgellm"] == "0.11.0"
    assert exported["graph"]["plugins"] == {"AttentionPlugin": arch.num_hidden_layers}
    assert {f"edge_llm/{name}" for name in exported["files"]} <= set(manifest["files"])
    build_command = next(c for c in manifest["remaining"] if "llm_build" in c)
    # a context of 256: prompt and canvas fill it
    assert "--maxInputLen 240 --maxKVCacheCapacity 256" in build_command
    assert str(Path.cwd()).encode() not in (bundle / "edge_llm" / "model.onnx").read_bytes()


def test_it_is_not_loaded_here(bundle: Path) -> None:
    with pytest.raises(FieldError, match=r"DGX_SPARK GPU \(SM 121\)|run by NVIDIA TensorRT Edge-LLM"):
        load_engine(bundle)


def test_every_weight_of_the_checkpoint_is_looked_for(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    graph = shutil.copytree(bundle / "edge_llm", tmp_path / "graph")
    assert _look_into(PYTHON, graph, checkpoint)["weights"]["wrong"] == []
    data = bytearray((graph / "model.onnx.data").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2] = b"\x00\x7e"  # float16's NaN, or a changed number where it does not lie even
    (graph / "model.onnx.data").write_bytes(data)
    assert len(_look_into(PYTHON, graph, checkpoint)["weights"]["wrong"]) == 1


def test_an_nvfp4_directory(nvfp4: Path, tmp_path: Path) -> None:
    found = export(nvfp4, tmp_path / "out", PYTHON, quiet)
    arch = load_architecture(nvfp4)
    plain = names(inputs(arch))
    assert [port[0] for port in found["graph"]["inputs"]][: len(plain)] == plain
    packed = {n for n in names(expert_inputs(arch)) if n.endswith("_qweights")}
    assert packed <= {port[0] for port in found["graph"]["inputs"]}
    assert found["graph"]["plugins"][EXPERT_OP] == arch.num_hidden_layers
    assert "external_nvfp4_moe_weights.safetensors" in found["files"]
    # weight, block scales and scale of three matrices of every expert; more than those are looked for
    assert found["tensors_compared"] > 9 * arch.num_experts * arch.num_hidden_layers
