"""The lowered graph is the torch engine, by ONNX Runtime: any lengths, choices, precisions. A wrong one is caught."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from nemo_diffgemma.checkpoint import Checkpoint
from nemo_diffgemma.errors import FieldError
from tests.support import random_architecture, random_checkpoint, small_architecture
from trtllm_build import Engine
from trtllm_build.backends.lowered import Lowered
from trtllm_build.backends.torch_cpu import TorchCpu
from trtllm_build.compilers.tensorrt_rtx.check import OrtRunner, check_graph, check_weights, compare, simulated
from trtllm_build.contract import CanvasStep, EncodeStep, ReadOut, TokenChoice
from trtllm_build.gates.reference import Reference
from trtllm_build.gates.verify import compare as compare_logits
from trtllm_build.limits import Limits
from trtllm_build.lowering.initializers import Read, reader, widened_weights
from trtllm_build.lowering.lower import inputs, lower, outputs, quantized_products
from trtllm_build.lowering.simulate import rounded_to_nvfp4
from trtllm_build.network.pieces import eager_pieces
from trtllm_build.network.weights import weight_files
from trtllm_build.quantization.nvfp4 import dequantize, quantize_nvfp4
from trtllm_build.quantization.recipe import Recipe, named_recipe
from trtllm_build.quantization.weight_files import count_shapes
from trtllm_build.sampling import SamplerConfig, Sampling
from trtllm_build.sizes import sizes
from trtllm_build.spec import EngineSpec

ARCH = small_architecture(vocab_size=300)  # samples are drawn in two levels, the first of 128 tokens each
CPU = torch.device("cpu")
FP32 = named_recipe("fp32")


def graph(folder: Path, read: Read, recipe: Recipe, scale: float = 0.05) -> Path:
    path = folder / f"{recipe.name}.onnx"
    lower(ARCH, read, recipe, dict.fromkeys(quantized_products(ARCH, recipe), scale), path, lambda _: None)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(random_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", ARCH))


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint) -> TorchCpu:
    return TorchCpu(ARCH, widened_weights(ARCH, reader(checkpoint), FP32), eager_pieces(ARCH))


@pytest.fixture(scope="module")
def path(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return graph(tmp_path_factory.mktemp("graph"), reader(checkpoint), FP32)


@pytest.fixture(scope="module")
def lowered(path: Path, engine: TorchCpu) -> Lowered:
    return Lowered(ARCH, torch.float32, CPU, OrtRunner(path), lambda: engine.network.weights.embedding)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 3 * ARCH.sliding_window), max_size=3),
    st.integers(1, ARCH.canvas_length),
    st.integers(0, 2**32 - 1),
)
def test_any_lengths_in_both_phases(
    engine: TorchCpu, lowered: Lowered, prompt: list[int], canvas: int, seed: int
) -> None:
    """Prompts in pieces, shorter and longer than the window; canvases of one token and more; two canvases in a row."""
    assert compare(engine, lowered, prompt, canvas, seed) < 1e-4


@pytest.mark.parametrize("seed", range(6))
def test_random_architectures(tmp_path: Path, seed: int) -> None:
    """Kinds and numbers of layers, heads of both kinds, windows, experts and vocabularies drawn at random."""
    arch = random_architecture(seed)
    checkpoint = Checkpoint(random_checkpoint(tmp_path / "checkpoint", arch, seed))
    path = tmp_path / "graph.onnx"
    lower(arch, reader(checkpoint), FP32, {}, path, lambda _: None)
    assert check_graph(path, arch, reader(checkpoint), FP32).largest < 1e-4


def test_it_is_transformers_model(checkpoint: Checkpoint, lowered: Lowered) -> None:
    assert compare_logits(Reference(checkpoint), lowered, ARCH).max_abs < 1e-4


def test_pinned_allowed_and_excluded_positions(engine: TorchCpu, lowered: Lowered) -> None:
    ids = torch.arange(8)
    free = denoised(engine, CanvasStep(0, ids, None, 0.7, torch.linspace(0, 0.99, 8)))
    choices = [
        TokenChoice(torch.tensor([1, 4]), fixed=torch.tensor([77, 5])),
        TokenChoice(torch.tensor([0, 2]), allowed=torch.tensor([4, 90, 91]), excluded=(90,)),
        TokenChoice(torch.tensor([3, 5, 6]), excluded=tuple(sorted(set(free.argmax_ids.tolist())))),
        TokenChoice(torch.tensor([7])),
    ]
    step = CanvasStep(0, ids, None, 0.7, torch.linspace(0, 0.99, 8), choices=choices)
    expected, found = denoised(engine, step), denoised(lowered, step)
    assert torch.equal(found.argmax_ids, expected.argmax_ids)
    assert torch.equal(found.sampled_ids, expected.sampled_ids)
    assert torch.allclose(found.entropy, expected.entropy, atol=1e-5)
    assert found.soft_embeddings is not None
    assert expected.soft_embeddings is not None
    assert torch.allclose(found.soft_embeddings, expected.soft_embeddings, atol=1e-4)
    assert found.entropy[1] == found.entropy[4] == 0


@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(0.5), Sampling(1.7), Sampling(1.7, 0)], ids=str)
def test_temperature_as_the_torch_engine_has_it(engine: TorchCpu, lowered: Lowered, sampling: Sampling) -> None:
    plain = CanvasStep(0, torch.arange(8), None, 0.7, torch.linspace(0, 0.99, 8))
    step = replace(plain, sampling=sampling)
    expected, found, usual = denoised(engine, step), denoised(lowered, step), denoised(lowered, plain)
    assert torch.equal(found.sampled_ids, expected.sampled_ids)
    assert not torch.equal(found.sampled_ids, usual.sampled_ids)
    assert torch.equal(found.argmax_ids, usual.argmax_ids)
    assert torch.equal(found.entropy, usual.entropy)


def test_top_p_is_refused_before_anything_runs(lowered: Lowered, tmp_path: Path) -> None:
    (tmp_path / "architecture.json").write_text(json.dumps(ARCH.as_dict()))
    (tmp_path / "sampler.json").write_text(json.dumps(asdict(SamplerConfig(max_denoising_steps=2))))
    limits = Limits(context=64, slots=1, canvas=ARCH.canvas_length, vocab_size=300, queue=2, cache_tokens=None)
    engine = Engine(EngineSpec(tmp_path, limits), lowered, threads=1)
    try:
        with pytest.raises(FieldError, match=r"^top_p: 0\.9 cannot be used; allowed: 1, or 0: "):
            engine.generate([3, 1, 4], max_tokens=8, top_p=0.9)
        assert engine.stats().finished == {}
        (answer,) = engine.generate([3, 1, 4], max_tokens=8, top_p=0, temperature=1.5)
        assert answer.denoising_steps
    finally:
        engine.close()


def denoised(backend: TorchCpu | Lowered, step: CanvasStep) -> ReadOut:
    backend.admit(0, 32, 0)
    assert backend.encode([EncodeStep(0, torch.tensor([3, 1, 4]), 0)]) == [None]
    (result,) = backend.denoise([step])
    assert isinstance(result, ReadOut), result
    return result


def test_nvfp4_of_activations_is_that_of_weights(tmp_path: Path) -> None:
    """In ONNX's operators as in ours: the same numbers, to the last bit."""
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(2)) ** 3
    quantized = quantize_nvfp4(x)
    floats = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", (9, 64)), ("scale", ()), ("y", (9, 64)))]
    model = helper.make_model(
        helper.make_graph(list(rounded_to_nvfp4("x", "scale", "y")), "g", floats[:2], floats[2:]),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=11,
    )
    onnx.save_model(model, tmp_path / "round.onnx")
    found = OrtRunner(tmp_path / "round.onnx")({"x": x, "scale": quantized.scale})["y"]
    assert torch.equal(found, dequantize(quantized))


@pytest.mark.parametrize("precision", ["bf16", "fp8", "nvfp4"])
def test_the_builds_check_passes_at_every_precision(checkpoint: Checkpoint, tmp_path: Path, precision: str) -> None:
    """On the very bytes that TensorRT-RTX reads, widened."""
    recipe = named_recipe(precision)
    path = graph(tmp_path, reader(checkpoint), recipe)
    assert check_weights(path, ARCH, reader(checkpoint), recipe) > 50
    assert check_graph(path, ARCH, reader(checkpoint), recipe).largest < 1e-4


@pytest.mark.parametrize("precision", ["fp32", "nvfp4"])
@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("head", "embedding"),
        ("head", "conditioning_down_proj"),
        ("layer_000", "encode_scalar"),
        ("layer_001", "denoise_scalar"),
        ("layer_001", "v_proj"),
        ("layer_002", "per_expert_scale"),
        ("layer_002", "experts_down"),
    ],
)
def test_a_wrong_weight_is_caught(checkpoint: Checkpoint, tmp_path: Path, file: str, name: str, precision: str) -> None:
    """One number in a tensor, or all of a small one, is off by a tenth of the tensor's largest."""

    def wrong(f: str, n: str) -> torch.Tensor:
        tensor = right(f, n)
        if (f, n) == (file, name):
            tensor = tensor.clone()
            tensor.view(-1)[: max(1, tensor.numel() // 50)] += 0.1 * float(tensor.abs().max())
        return tensor

    right, recipe = reader(checkpoint), named_recipe(precision)
    path = graph(tmp_path, wrong, recipe)
    with pytest.raises(FieldError, match=r"onnx: 'a difference of .* allowed: at most 1e-04, in float32"):
        check_graph(path, ARCH, right, recipe)


@pytest.mark.parametrize("precision", ["fp32", "fp8", "nvfp4"])
def test_a_single_wrong_byte_is_found_by_name(checkpoint: Checkpoint, tmp_path: Path, precision: str) -> None:
    recipe = named_recipe(precision)
    path = graph(tmp_path, reader(checkpoint), recipe)
    tensors = {t.name: t for t in onnx.load(path, load_external_data=False).graph.initializer}
    place = {e.key: e.value for e in tensors["layer_001.experts_down"].external_data}
    data = path.with_name(place["location"])
    content = bytearray(data.read_bytes())
    content[int(place["offset"]) + int(place["length"]) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(FieldError, match=r"onnx:layer_001.experts_down"):
        check_weights(path, ARCH, reader(checkpoint), recipe)


def test_every_weight_of_the_network_is_in_the_graph_once(checkpoint: Checkpoint, path: Path) -> None:
    weights = [t for file, names in weight_files(ARCH).items() for t in (reader(checkpoint)(file, n) for n in names)]
    stored = sum(torch.Size(t.dims).numel() for t in onnx.load(path, load_external_data=False).graph.initializer)
    parameters = sum(t.numel() for t in weights)
    assert parameters <= stored < 1.01 * parameters  # constants and frequencies beside them


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8", "nvfp4"])
def test_bytes_are_known_from_shapes(checkpoint: Checkpoint, tmp_path: Path, precision: str) -> None:
    recipe = named_recipe(precision)
    tensors = onnx.load(graph(tmp_path, reader(checkpoint), recipe), load_external_data=False).graph.initializer
    weights = [t for t in tensors if not t.name.startswith(("constant_", "rope_", "embed_scale"))]
    bits = {onnx.TensorProto.FLOAT: 32, onnx.TensorProto.BFLOAT16: 16, onnx.TensorProto.FLOAT8E4M3FN: 8}
    bits[onnx.TensorProto.FLOAT4E2M1] = 4
    found = sum(torch.Size(t.dims).numel() * bits[t.data_type] // 8 for t in weights)
    counted = count_shapes(ARCH, recipe)
    scales = sum(c.bytes for c in counted if c.name == "scales")
    # but for a few scales: nvfp4's one a tensor, and in fp8 those that experts' down projections share here
    assert abs(found - sum(c.bytes for c in counted)) <= scales


def test_the_released_model_is_18_gb_in_nvfp4() -> None:
    found = sizes("diffusion_gemma_26b_a4b")
    assert found["bytes"]["nvfp4"]["experts"] == 22_837_985_280 // 2
    assert found["bytes"]["nvfp4"]["scales"] == 22_837_985_280 // 16
    assert round(found["total_bytes"]["nvfp4"] / 1e9, 2) == 17.67
    assert round(found["total_bytes"]["fp8"] / 1e9, 2) == 26.09
    assert found["ms_to_read"]["dgx_spark"]["nvfp4"] == 64.73


def test_inputs_and_outputs_are_the_contract(path: Path) -> None:
    model = onnx.load(path, load_external_data=False).graph
    for ports, values in ((inputs(ARCH, torch.float32), model.input), (outputs(ARCH, torch.float32), model.output)):
        shapes = [(v.name, tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim)) for v in values]
        assert shapes == [(p.name, p.shape) for p in ports]
        assert not any("vocab" in str(p.shape) for p in ports)
    assert all(ARCH.vocab_size not in p.shape for p in outputs(ARCH, torch.float32))


@pytest.mark.parametrize("precision", ["fp8", "nvfp4"])
def test_inputs_are_rounded_as_the_device_will(checkpoint: Checkpoint, tmp_path: Path, precision: str) -> None:
    """Near the same weights without it, and not equal to them."""
    recipe = named_recipe(precision)
    path = graph(tmp_path, reader(checkpoint), recipe)
    weights = widened_weights(ARCH, reader(checkpoint), recipe)
    exact = TorchCpu(ARCH, weights, eager_pieces(ARCH))
    rounded = simulated(path, ARCH, weights.embedding)
    step = CanvasStep(0, torch.arange(8), None, 0.7, torch.full((8,), 0.5))
    expected, found = denoised(exact, step), denoised(rounded, step)
    error = float((expected.entropy - found.entropy).abs().mean())
    assert 1e-5 < error < 0.1


def test_a_product_without_a_scale_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(FieldError, match=r"calibration: .*no input scale for 18 products.*layer_000.qkv"):
        lower(ARCH, reader(checkpoint), named_recipe("fp8"), {}, tmp_path / "graph.onnx", lambda _: None)
