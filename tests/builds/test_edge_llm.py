"""What is refused before NVIDIA's exporter runs, and when its graph is not the documented one."""

from __future__ import annotations

import copy
import shutil
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from nemo_diffgemma.checkpoint import Checkpoint
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.hf_config import load_architecture
from tests.support import small_architecture
from trtllm_build.compilers.edge_llm.compile import export
from trtllm_build.compilers.edge_llm.contract import EXPERT_OP, check_graph, expert_inputs, inputs, outputs
from trtllm_build.compilers.edge_llm.layout import quantization, write_layout
from trtllm_build.quantization.unified import write_unified

ARCH = small_architecture()


def graph(nvfp4: bool = False) -> dict[str, Any]:
    """A report as the documented graph gives it."""
    ports = inputs(ARCH) + (expert_inputs(ARCH) if nvfp4 else [])
    plugins = {"AttentionPlugin": 3} | ({EXPERT_OP: 3} if nvfp4 else {})
    return {"inputs": [astuple(p) for p in ports], "outputs": [astuple(p) for p in outputs(ARCH)], "plugins": plugins}


@pytest.mark.parametrize("nvfp4", [False, True])
def test_the_contract(nvfp4: bool) -> None:
    check_graph(graph(nvfp4), ARCH, nvfp4)
    for kind in ("inputs", "outputs"):
        for i in range(len(graph(nvfp4)[kind])):
            changed = graph(nvfp4)
            name, dtype, shape = changed[kind][i]
            changed[kind][i] = (name, dtype, (*shape, 7))
            with pytest.raises(FieldError, match="edge_llm:"):
                check_graph(changed, ARCH, nvfp4)
    more = copy.deepcopy(graph(nvfp4))
    more["inputs"].append(("attention_mask", "INT32", ("num_sequences",)))
    with pytest.raises(FieldError, match="edge_llm:input attention_mask"):
        check_graph(more, ARCH, nvfp4)


def test_experts_for_another_gpu_are_refused() -> None:
    found = graph(nvfp4=True)
    found["plugins"] = {"AttentionPlugin": 3, "Nvfp4MoePlugin": 3}
    with pytest.raises(FieldError, match="edge_llm:plugins"):
        check_graph(found, ARCH, nvfp4=True)


def test_no_environment(text_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(FieldError, match="edge_llm:environment: .* fix: run `make setup-edge-llm`"):
        export(text_checkpoint, tmp_path / "out", tmp_path / "bin" / "python", print)


def test_an_fp8_directory_is_refused(text_checkpoint: Path, tmp_path: Path) -> None:
    fp8 = write_unified(Checkpoint(text_checkpoint), tmp_path / "fp8", print)
    with pytest.raises(FieldError, match="quant_algo: 'FP8_PER_CHANNEL_PER_TOKEN' cannot be used; allowed: NVFP4"):
        quantization(fp8)


def test_a_checkpoint_without_a_chat_template_is_refused(text_checkpoint: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(text_checkpoint, tmp_path / "model")
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(FieldError, match=r"checkpoint:chat_template.jinja: None cannot be used"):
        write_layout(copied, tmp_path, print)


def test_the_layout_has_the_exporters_names(text_checkpoint: Path, tmp_path: Path) -> None:
    write_layout(text_checkpoint, tmp_path, print)
    arch = load_architecture(tmp_path)
    assert arch == load_architecture(text_checkpoint)
    assert "per_layer_config" not in (tmp_path / "config.json").read_text()
    index = (tmp_path / "model.safetensors.index.json").read_text()
    last = f"experts._experts.{arch.num_experts - 1}.up_proj.weight"
    assert f"model.decoder.layers.0.moe_block.{last}" in index
    assert "layers.0.moe_block.router.per_expert_scale" in index
    assert "layers.0.router" not in index
