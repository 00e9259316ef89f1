"""The build's check of a lowered graph: what it stores, and what ONNX Runtime makes of it, against the torch engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.errors import require
from trtllm_build.backends.lowered import Lowered
from trtllm_build.backends.torch_cpu import TorchCpu
from trtllm_build.contract import CanvasStep, EncodeStep, ReadOut
from trtllm_build.lowering.initializers import Read, lower_layer, widened_weights
from trtllm_build.lowering.widen import stored_tensor, write_widened
from trtllm_build.network.cache import KVCache
from trtllm_build.network.pieces import eager_pieces
from trtllm_build.quantization.fp8 import Fp8
from trtllm_build.quantization.nvfp4 import Nvfp4
from trtllm_build.quantization.recipe import Recipe

# Float32, all of it: what is left is the order of sums. It bounds the root mean square of differences. The largest is 2
# to 13 times as much, most where untrained layers amplify rounding, and another CPU makes it another (of 60 random
# architectures and two instruction sets the worst had 2.6e-5, and 1.3e-4 for the largest; a third CPU, 1.8e-4).
TOLERANCE = 1e-4
_ON_A_BOUNDARY = 1e-5  # of cumulative probability: a draw this near to it may fall on either side
_REMEDY = "report it with the checkpoint's config.json; no engine was written"


@dataclass(frozen=True)
class Agreement:
    """How far a graph is from the torch engine, both in float32.

    Args:
        cases: compared, each of both phases.
        largest: of the cases' differences: the root mean square of those of soft embeddings over that of the
            embeddings, or of those of entropies, in nats.
    """

    cases: int
    largest: float


class OrtRunner:
    """Executes a float32 graph on the CPU; see :data:`trtllm_build.backends.lowered.Run`."""

    def __init__(self, path: Path):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = [o.name for o in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Execute once."""
        arrays: list[Any] = self._session.run(self._names, {name: t.numpy() for name, t in inputs.items()})
        return {name: torch.from_numpy(array) for name, array in zip(self._names, arrays, strict=True)}


def simulated(path: Path, arch: Architecture, embedding: Tensor, rounding: bool = True) -> Lowered:
    """The engine of a lowered graph, computed in float32 on the CPU.

    Args:
        path: of the graph. Weights in NVFP4 are widened in memory, to 2 GB at most.
        arch: the network's shapes.
        embedding: ``[vocab, hidden]``.
        rounding: whether quantised products' inputs are rounded, as they will be on the device.
    """
    wide = path.with_name(path.name + ".wide")
    try:
        write_widened(path, wide, arch.embed_scale, rounding)
        run = OrtRunner(wide)
    finally:
        wide.unlink(missing_ok=True)
    return Lowered(arch, torch.float32, torch.device("cpu"), run, lambda: embedding)


def check_weights(path: Path, arch: Architecture, read: Read, recipe: Recipe) -> int:
    """Compare every layer's stored weights with the checkpoint's, byte for byte, and return how many there are.

    Raises:
        FieldError: naming the first that differs.
    """
    stored = {t.name: t for t in onnx.load(path, load_external_data=False).graph.initializer}
    count = 0
    for i in range(arch.num_hidden_layers):
        layer = lower_layer(arch, i, read, recipe)
        expected: dict[str, Tensor] = dict(layer.rest)
        for name, weight in layer.products.items():
            if isinstance(weight, Tensor):
                expected[name] = weight
            elif isinstance(weight, Fp8):
                expected |= {name: weight.values, f"{name}.scale": weight.scale}
            elif isinstance(weight, Nvfp4):
                expected |= {name: weight.values, f"{name}.block_scale": weight.block_scale}
                expected[f"{name}.scale"] = weight.scale
        for name, tensor in expected.items():
            found = stored_tensor(path, stored[f"layer_{i:03d}.{name}"])
            same = torch.equal(found, tensor.contiguous().flatten().view(torch.uint8))
            require(
                same,
                field=f"onnx:layer_{i:03d}.{name}",
                value="other bytes",
                allowed="the checkpoint's, quantised",
                fix=_REMEDY,
            )
        count += len(expected)
    return count


def check_graph(
    path: Path, arch: Architecture, read: Read, recipe: Recipe, note: Callable[[str], None] = lambda _: None
) -> Agreement:
    """Run the graph in float32 on the CPU, both phases, and compare with the torch engine at the same weights.

    Args:
        path: of the lowered graph.
        arch: the network's shapes.
        read: gives the checkpoint's tensors.
        recipe: that it was lowered with.
        note: called with a line of what was found.

    Raises:
        FieldError: when they differ by more than rounding.
    """
    engine = TorchCpu(arch, widened_weights(arch, read, recipe), eager_pieces(arch))
    graph = simulated(path, arch, engine.network.weights.embedding, rounding=False)
    window, canvas = arch.sliding_window, arch.canvas_length
    lengths = [[], [1], [window // 2 + 1, window], [2 * window + 3]]
    largest = max(compare(engine, graph, case, canvas - i, seed=i) for i, case in enumerate(lengths))
    require(
        largest <= TOLERANCE,
        field="onnx",
        value=f"a difference of {largest:.1e} to the torch engine",
        allowed=f"at most {TOLERANCE:.0e}, in float32",
        fix=_REMEDY,
    )
    note(
        f"{len(lengths)} cases of both phases by ONNX Runtime: at most {largest:.1e} from the torch engine, in float32"
    )
    return Agreement(len(lengths), largest)


@torch.inference_mode()
def compare(engine: TorchCpu, graph: Lowered, prompt: list[int], canvas: int, seed: int) -> float:
    """Largest difference, as in :class:`Agreement`; infinite when a chosen token is wrong.

    Args:
        engine: the torch engine, float32.
        graph: the lowered one.
        prompt: tokens of each piece of it, in which it is encoded.
        canvas: tokens of it; it is denoised twice, the second time with soft embeddings, and encoded; then the
            next one, once.
        seed: of tokens and draws.
    """
    g = torch.Generator().manual_seed(seed)
    vocab, cache = engine.arch.vocab_size, KVCache(engine.arch, torch.float32, sum(prompt) + 2 * canvas)
    graph.admit(0, cache.room, 0)

    def encode(ids: Tensor) -> None:
        (error,) = graph.encode([EncodeStep(0, ids, cache.length)])
        if error is not None:
            raise error
        engine.network.encode(ids, cache)

    for piece in prompt:
        encode(torch.randint(0, vocab, (piece,), generator=g))
    ids = torch.randint(0, vocab, (canvas,), generator=g)
    differences, soft = [0.0], None
    for temperature in (0.8, 0.4, 0.6):
        step = CanvasStep(0, ids, soft, temperature, torch.rand(canvas, generator=g))
        hidden = engine.network.denoise(ids, soft, cache)
        expected = engine.vocabulary.read_out(hidden, temperature, step.draws, soft=True)
        (found,) = graph.denoise([step])
        if isinstance(found, Exception):
            raise found
        assert expected.soft_embeddings is not None
        assert found.soft_embeddings is not None
        soft_error = _rms(expected.soft_embeddings - found.soft_embeddings)
        differences.append(soft_error / _rms(expected.soft_embeddings))
        differences.append(_rms(expected.entropy - found.entropy))
        if not _same_tokens(engine, hidden, step, expected, found):
            return float("inf")
        soft, ids = expected.soft_embeddings, expected.sampled_ids
        if temperature == 0.4:  # the canvas is done: the next one follows it
            encode(ids)
            soft = None
    return max(differences)


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


@torch.inference_mode()
def _same_tokens(engine: TorchCpu, hidden: Tensor, step: CanvasStep, expected: ReadOut, found: ReadOut) -> bool:
    """Whether chosen tokens are the engine's, or as good as those where rounding decides."""
    tempered = engine.vocabulary.logits(hidden).double() / step.temperature
    chosen = tempered.gather(1, found.argmax_ids[:, None])[:, 0]
    upper = torch.softmax(tempered, -1).cumsum(-1)
    at = found.sampled_ids[:, None]
    lower = torch.where(at > 0, upper.gather(1, (at - 1).clamp_min(0)), 0.0)[:, 0]
    draws = step.draws
    near = (lower <= draws + _ON_A_BOUNDARY) & (draws <= upper.gather(1, at)[:, 0] + _ON_A_BOUNDARY)
    best = (tempered.amax(-1) - chosen) <= TOLERANCE
    return bool(((found.sampled_ids == expected.sampled_ids) | near).all() and best.all())
