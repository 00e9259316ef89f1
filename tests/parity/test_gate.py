"""The build's parity gate: right engines pass whatever their model, wrong ones do not at any precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from nemo_diffgemma.architecture import GLOBAL, SLIDING
from nemo_diffgemma.checkpoint import Checkpoint, text_tensors
from nemo_diffgemma.checkpoint_writer import write_checkpoint
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.hf_config import write_config
from tests.support import GENERATION_CONFIG, random_checkpoint, random_tensors, small_architecture
from trtllm_build.backends.cuda.backend import Cuda
from trtllm_build.backends.cuda.device_weights import from_bundle, from_checkpoint, widened
from trtllm_build.backends.cuda.fused import simulated as static_ops
from trtllm_build.backends.cuda.ops import reference_ops
from trtllm_build.backends.torch_cpu import TorchCpu
from trtllm_build.bundle import Bundle
from trtllm_build.compilers.cuda.compile import device_bound
from trtllm_build.compilers.tensorrt_rtx.check import simulated
from trtllm_build.contract import Backend
from trtllm_build.gates.calibrate import WEIGHTED, recording_ops
from trtllm_build.gates.reference import Precision, Reference
from trtllm_build.gates.verify import FLOOR, RATIO, Parity, verify
from trtllm_build.limits import Limits
from trtllm_build.lowering.initializers import PRODUCT_OF, reader
from trtllm_build.lowering.initializers import widened as widened_reader
from trtllm_build.lowering.lower import lower
from trtllm_build.network.pieces import eager_pieces
from trtllm_build.network.weights import HEAD, NetworkWeights, weight_files
from trtllm_build.pipeline import build
from trtllm_build.plan import make_plan
from trtllm_build.quantization.activations import rounding_by_product
from trtllm_build.quantization.fp8 import LARGEST
from trtllm_build.quantization.fp8 import widen as widen_fp8
from trtllm_build.quantization.nvfp4 import Nvfp4, dequantize, quantize_nvfp4, round_rows
from trtllm_build.quantization.recipe import named_recipe

ARCH = small_architecture(sliding_window=16)
LIMITS = Limits(256, 1, ARCH.canvas_length, ARCH.vocab_size, 1, None)
CPU = torch.device("cpu")
Scales = Mapping[str, float]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(random_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", ARCH, 1))


@pytest.fixture(scope="module")
def scales(checkpoint: Checkpoint) -> dict[str, float]:
    """Of what every product reads, found with random tokens."""
    weights = from_checkpoint(checkpoint, named_recipe("bf16"), CPU)
    largest: dict[str, float] = {}
    watched = Cuda(ARCH, weights, recording_ops(weights, largest), LIMITS)
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        watched.logits(torch.randint(97, (30,), generator=g), torch.randint(97, (8,), generator=g), None)
    return {name: value / LARGEST for name, value in largest.items()}


@dataclass(frozen=True)
class Engine:
    """What is verified."""

    backend: Backend
    precision: Precision | None
    widened: Callable[[], Backend] | None


def on_cpu(right: Checkpoint, built_from: Checkpoint, precision: str) -> Engine:
    files, recipe = weight_files(built_from.arch), named_recipe(precision)

    def engine(dtype: torch.dtype) -> TorchCpu:
        stored = getattr(torch, recipe.dtype)
        weights = NetworkWeights.read(built_from.arch, lambda f, n: built_from.tensor(files[f][n]).to(stored).to(dtype))
        return TorchCpu(built_from.arch, weights, eager_pieces(built_from.arch))

    of = None if precision == "fp32" else Precision.of_recipe(right, recipe, {})
    return Engine(engine(getattr(torch, recipe.dtype)), of, lambda: engine(torch.float32))


def on_gpu(right: Checkpoint, built_from: Checkpoint, precision: str, read: Scales, true: Scales) -> Engine:
    """Computed on the CPU; ``read`` are the engine's scales, ``true`` those that calibration found."""
    recipe, arch = named_recipe(precision), right.arch
    weights = from_checkpoint(built_from, recipe, CPU)
    ops = static_ops(reference_ops(), weights, read) if recipe.static else reference_ops()
    limits = Limits(arch.max_position_embeddings, 1, arch.canvas_length, arch.vocab_size, 1, None)
    plain = widened(weights)
    engine = Cuda(arch, weights, ops, limits)
    return Engine(engine, Precision.of_recipe(right, recipe, true), lambda: Cuda(arch, plain, reference_ops(), limits))


def as_graph(right: Checkpoint, built_from: Checkpoint, precision: str, scales: Scales, folder: Path) -> Engine:
    recipe, path = named_recipe(precision), folder / f"{precision}.onnx"
    weighted = {n.replace(WEIGHTED, "experts_down"): s for n, s in scales.items() if WEIGHTED in n}
    lower(ARCH, reader(built_from), recipe, {**scales, **weighted}, path, lambda _: None)
    weight = widened_reader(ARCH, reader(right), recipe)
    rounding = rounding_by_product(recipe, scales, PRODUCT_OF)
    table = widened_reader(ARCH, reader(built_from), recipe)(HEAD, "embedding")
    return Engine(
        simulated(path, ARCH, table),
        Precision(torch.bfloat16, weight, rounding),
        lambda: simulated(path, ARCH, table, rounding=False),
    )


def engine_of(kind: str, right: Checkpoint, built_from: Checkpoint, scales: Scales, folder: Path) -> Engine:
    where, _, precision = kind.partition(" ")
    if where == "cpu":
        return on_cpu(right, built_from, precision)
    if where == "gpu":
        return on_gpu(right, built_from, precision, scales, scales)
    return as_graph(right, built_from, precision, scales, folder)


KINDS = ("cpu fp32", "cpu bf16", "gpu bf16", "gpu fp8", "gpu fp8_static", "graph bf16", "graph fp8", "graph nvfp4")


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_engine(kind: str, checkpoint: Checkpoint, scales: Scales, tmp_path: Path) -> None:
    """It is as far from float32 as transformers itself at its precision, and its weights are exactly right."""
    engine = engine_of(kind, checkpoint, checkpoint, scales, tmp_path)
    parity = verify(checkpoint, engine.backend, engine.precision, engine.widened)
    if engine.precision is None:
        assert parity.mean_relative < 1e-5
        return
    assert parity.reference_mean_relative is not None
    assert parity.float32_mean_relative is not None
    assert parity.reference_top1 is not None
    assert 0.5 < parity.mean_relative / parity.reference_mean_relative < 1.1
    assert abs(parity.top1 - parity.reference_top1) < 0.1
    assert parity.float32_mean_relative < 1e-5
    assert parity.cases == 68


LAYER = "model.decoder.layers.1."


def swapped_experts(tensors: dict[str, Tensor]) -> None:
    tensors[f"{LAYER}experts.gate_up_proj"][[0, 1]] = tensors[f"{LAYER}experts.gate_up_proj"][[1, 0]]


def a_wrong_scale(tensors: dict[str, Tensor]) -> None:
    """Of one expert's matrix: quantised, its values are the same and its scale is twice as large."""
    tensors[f"{LAYER}experts.down_proj"][2] *= 2


def a_dropped_norm(tensors: dict[str, Tensor]) -> None:
    tensors[f"{LAYER}pre_feedforward_layernorm.weight"].fill_(1)


def no_scalars_of_the_encoder(tensors: dict[str, Tensor]) -> None:
    for name in [n for n in tensors if n.endswith("layer_scalar") and "encoder" in n]:
        tensors[name] = tensors[name.replace("encoder.language_model", "decoder")].clone()


DAMAGES = (swapped_experts, a_wrong_scale, a_dropped_norm, no_scalars_of_the_encoder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_engine(kind: str, checkpoint: Checkpoint, scales: Scales, tmp_path: Path) -> None:
    """What rounding would hide is found without rounding."""
    for damage in DAMAGES:
        tensors = random_tensors(ARCH, 1)
        damage(tensors)
        folder = tmp_path / damage.__name__
        damaged = Checkpoint(write_checkpoint(folder / "checkpoint", ARCH, tensors, GENERATION_CONFIG))
        engine = engine_of(kind, checkpoint, damaged, scales, folder)
        how = "for fp32" if engine.precision is None else "for its weights in float32, nothing rounded"
        with pytest.raises(FieldError, match=rf"engine:parity: .* allowed: mean_relative at most 0.0003 {how}"):
            verify(checkpoint, engine.backend, engine.precision, engine.widened)


def test_wrong_scales_of_activations(checkpoint: Checkpoint, scales: Scales) -> None:
    """They round what the engine computes, and nothing of its weights."""
    for product in ("experts_gate_up", "experts_down"):
        wrong = {n: s / 6 if n.endswith(product) else s for n, s in scales.items()}
        engine = on_gpu(checkpoint, checkpoint, "fp8_static", wrong, scales)
        with pytest.raises(FieldError, match=r"engine:parity: .* 1.2 times what transformers loses at this precision"):
            verify(checkpoint, engine.backend, engine.precision, engine.widened)


def test_an_engine_that_gives_no_numbers(checkpoint: Checkpoint) -> None:
    engine = on_cpu(checkpoint, checkpoint, "bf16")

    class Broken:
        def logits(self, *arguments: Tensor) -> Tensor:
            return torch.full_like(engine.backend.logits(*arguments), float("nan"))

    broken: Backend = Broken()  # type: ignore[assignment]
    with pytest.raises(FieldError, match="engine:parity"):
        verify(checkpoint, broken, engine.precision, engine.widened)


# -- models that rounding is hard on ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """transformers' own random weights: wide heads and 32 experts, of which rounding decides."""
    arch = small_architecture(
        vocab_size=500, hidden_size=128, intermediate_size=128, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=8, head_dim=64, num_global_key_value_heads=2, global_head_dim=128, num_experts=32,
        top_k_experts=4, moe_intermediate_size=32, sliding_window=64, canvas_length=16,
        layer_types=(*[SLIDING] * 5, GLOBAL),
    )  # fmt: skip
    from trtllm_build.gates.reference import SMALLEST_VISION

    config = DiffusionGemmaConfig(**write_config(arch.with_changes(vision_config=SMALLEST_VISION)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = DiffusionGemmaForBlockDiffusion(config).state_dict()
    tensors = {name: state[name].clone() for name in text_tensors(arch)}
    folder = tmp_path_factory.mktemp("untrained") / "checkpoint"
    return Checkpoint(write_checkpoint(folder, arch, tensors, GENERATION_CONFIG))


def test_an_untrained_model_builds_in_bfloat16(untrained: Checkpoint, tmp_path: Path) -> None:
    """transformers loses as much there; both figures are told and kept."""
    lines: list[str] = []
    given = ["gpu=cpu", "compile=false", "precision=bf16", f"checkpoint={untrained.directory}", f"out={tmp_path / 'e'}"]
    manifest = build(make_plan(given), lines.append)
    parity = manifest["measured"]["parity"]
    assert parity["mean_relative"] > 0.15
    assert parity["mean_relative"] <= RATIO * parity["reference_mean_relative"] + FLOOR
    assert {"top1", "reference_top1", "float32_mean_relative", "max_abs", "cases"} < set(parity)
    (line,) = [line for line in lines if line.startswith("verify")]
    assert "transformers itself at this precision" in line


def test_a_damaged_bundle_of_an_untrained_model(untrained: Checkpoint) -> None:
    tensors = {name: untrained.tensor(name) for name in untrained.text_shapes}
    swapped_experts(tensors)
    damaged = Checkpoint(
        write_checkpoint(untrained.directory.with_name("damaged"), untrained.arch, tensors, GENERATION_CONFIG)
    )
    engine = on_cpu(untrained, damaged, "bf16")
    with pytest.raises(FieldError, match="for its weights in float32"):
        verify(untrained, engine.backend, engine.precision, engine.widened)


# -- the reference at a precision ------------------------------------------------------------------------------------


def test_the_reference_in_bfloat16_is_transformers_in_bfloat16(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As `from_pretrained(dtype=bfloat16)` loads it."""
    reference = Reference(checkpoint)
    reference.model.save_pretrained(tmp_path / "whole")
    expected, report = DiffusionGemmaForBlockDiffusion.from_pretrained(
        tmp_path / "whole", dtype=torch.bfloat16, output_loading_info=True
    )
    assert not report["missing_keys"]
    precision = Precision.of_recipe(checkpoint, named_recipe("bf16"), {})
    reference.hold(precision)
    reference.compute(precision)
    g = torch.Generator().manual_seed(0)
    prompt, canvas = (torch.randint(97, (n,), generator=g) for n in (30, 8))
    with torch.inference_mode():
        logits = expected(input_ids=prompt[None], decoder_input_ids=canvas[None]).logits[0]
    assert torch.equal(reference.logits(prompt, canvas, None), logits)


def test_the_reference_holds_what_the_bundle_stores(text_checkpoint: Path, tmp_path: Path) -> None:
    given = ["gpu=h100", "unified=false", f"checkpoint={text_checkpoint}", f"out={tmp_path / 'h100'}"]
    build(make_plan(given), lambda line: None)
    checkpoint, recipe = Checkpoint(text_checkpoint), named_recipe("fp8")
    stored = from_bundle(Bundle.open(tmp_path / "h100", elsewhere=True).spec, CPU)
    weight = Precision.of_recipe(checkpoint, recipe, {}).weight
    layer = stored.layers[1]
    assert torch.equal(widen_fp8(layer.experts_down), weight("layer_001", "experts_down"))
    assert torch.equal(widen_fp8(layer.o), weight("layer_001", "o_proj"))
    assert torch.equal(layer.rest["router_proj"].float(), weight("layer_001", "router_proj"))
    assert torch.equal(stored.embedding.float(), weight(HEAD, "embedding"))


def test_rows_are_rounded_to_nvfp4_as_weights_are() -> None:
    rows = torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
    found: Nvfp4 = quantize_nvfp4(rows)
    assert torch.equal(round_rows(rows, float(found.scale)), dequantize(found))


def test_two_engines_on_a_device_may_each_be_as_far_as_the_build_allows() -> None:
    assert device_bound("bf16", None) == 0.1
    assert device_bound("bf16", 0.01) == 0.1
    assert device_bound("bf16", 0.6) == pytest.approx(2 * (1.2 * 0.6 + 2**-9))


def test_words() -> None:
    text = str(Parity(68, 1.5, 0.0512, 0.915, 0.0561, 0.908, 2e-7))
    assert text == (
        "mean difference 5.1e-02 of the logits' spread, same argmax 91.5%; "
        "transformers itself at this precision 5.6e-02 and 90.8%, of what it gives in float32"
    )
