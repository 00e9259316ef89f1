"""TensorRT-RTX compiles the lowered graph for GPUs that are not here, and says so when it is asked to run one."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import nemo_diffgemma
from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import Checkpoint
from nemo_diffgemma.errors import FieldError
from tests.support import random_checkpoint
from trtllm_build.backends.tensorrt_rtx.runner import Runner, check_device
from trtllm_build.compilers.tensorrt_rtx.engine_file import SMS, compile_engine_file
from trtllm_build.lowering.initializers import reader
from trtllm_build.lowering.lower import lower, quantized_products
from trtllm_build.quantization.recipe import named_recipe

DEMO = Path(nemo_diffgemma.__file__).parent / "conf" / "model" / "demo.yaml"
SPARK = {"kind": "cuda", "name": "DGX_SPARK", "sm": 121}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    values = OmegaConf.to_container(OmegaConf.load(DEMO))
    assert isinstance(values, dict)
    arch = Architecture.from_dict({str(k): v for k, v in values.items()}).with_changes(vision_config=None)
    return Checkpoint(random_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", arch))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp8", "nvfp4"])
def test_the_demo_compiles_for_both_gpus(checkpoint: Checkpoint, tmp_path: Path, precision: str) -> None:
    arch, recipe, path = checkpoint.arch, named_recipe(precision), tmp_path / "graph.onnx"
    scales = dict.fromkeys(quantized_products(arch, recipe), 0.05)
    lower(arch, reader(checkpoint), recipe, scales, path, lambda _: None)
    stored = path.with_name("graph.onnx.data").stat().st_size
    said: list[str] = []
    for sm in SMS:
        plan = tmp_path / f"sm{sm}.plan"
        compiled = compile_engine_file(path, arch, sm, arch.max_position_embeddings, plan, said.append)
        assert compiled.bytes == plan.stat().st_size > 0
        # one copy serves both phases, embedding and output projection: no more than what is stored
        assert 0.8 * stored < compiled.weights_bytes < 1.05 * stored
        assert "Engine generation completed" in Path(f"{plan}.log").read_text()
    assert [line.partition(":")[0] for line in said] == ["SM 120", "SM 121"]


def test_another_gpu_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(FieldError, match=r"gpu.sm: 90 .*120 or 121.*gpu=dgx_spark"):
        compile_engine_file(tmp_path / "graph.onnx", checkpoint.arch, 90, 64, tmp_path / "plan", lambda _: None)


def test_what_tensorrt_does_not_take_is_an_error_in_its_own_words(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"not a graph")
    with pytest.raises(FieldError, match=r"tensorrt_rtx: .*see .*plan\.log"):
        compile_engine_file(tmp_path / "graph.onnx", checkpoint.arch, 121, 64, tmp_path / "plan", lambda _: None)


def test_a_plan_for_another_machine_is_not_loaded(tmp_path: Path) -> None:
    """Before a byte of it is read: there is no such file."""
    with pytest.raises(FieldError, match=r"a plan for a DGX_SPARK GPU \(SM 121\).*no CUDA GPU.*make engine GPU=cpu"):
        Runner(tmp_path / "plan", SPARK, "1.7.1.116", tmp_path / "kernels")
    with pytest.raises(FieldError, match=r"SM 120"):
        check_device({"kind": "cuda", "name": "RTX5090", "sm": 120}, "1.7.1.116")
