"""Random architectures: a batch of requests of mixed lengths against transformers run alone on each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nemo_diffgemma.architecture import GLOBAL, SLIDING, Architecture
from nemo_diffgemma.checkpoint import Checkpoint
from nemo_diffgemma.checkpoint_writer import write_checkpoint
from tests.support import GENERATION_CONFIG, random_tensors, small_architecture
from trtllm_build.backends.torch_cpu import TorchCpu
from trtllm_build.contract import CanvasStep, EncodeStep, ReadOut
from trtllm_build.gates.reference import Reference
from trtllm_build.network.cache import PREFILL_CHUNK
from trtllm_build.network.experts import experts, gelu_gated
from trtllm_build.network.pieces import eager_pieces
from trtllm_build.network.vocabulary import CHUNK
from trtllm_build.network.weights import NetworkWeights, weight_files

LIMIT = 1e-4
ARCHITECTURES = 30
TEMPERATURE = 0.6
# Two experts whose router logits differ by less than this share of the logits' spread: rounding decides which of them
# is read, and either is right.
TIE = 1e-5

# Narrow experts and heads are left out: of a few numbers that all happen to be small, a norm makes large ones, rounding
# included.
_SIZES: dict[str, tuple[Any, ...]] = {
    "vocab_size": (50, 97, 129, 300, 1000),
    "hidden_size": (16, 24, 64, 100),
    "intermediate_size": (17, 32, 96),
    "num_hidden_layers": (1, 2, 3, 4, 6),
    "num_attention_heads": (1, 3, 4, 8),
    "head_dim": (6, 8, 10, 32),
    "global_head_dim": (6, 16, 40, 64),
    "num_experts": (1, 3, 8, 16),
    "top_k_experts": (1, 2, 5),
    "moe_intermediate_size": (12, 16, 36),
    "sliding_window": (2, 3, 9, 16, 33, 70),
    "canvas_length": (1, 4, 8, 19, 32),
    "rope_theta": (10_000.0, 500.0),
    "global_rope_theta": (1_000_000.0, 3000.0),
    "global_partial_rotary_factor": (0.25, 0.5, 1.0),
    "rms_norm_eps": (1e-6, 1e-4),
    "final_logit_softcapping": (30.0, 8.0),
}
# What makes an architecture large in one respect; the rest of it stays small.
_SPECIAL: dict[str, dict[str, tuple[Any, ...]]] = {
    "plain": {},
    "experts": {"num_experts": (64, 128), "top_k_experts": (8,), "sliding_window": (2, 5, 9), "canvas_length": (1, 7)},
    "wide heads": {"head_dim": (128, 256), "global_head_dim": (256, 512), "hidden_size": (96, 128)},
    "large products": {
        "vocab_size": (4097, 9001), "hidden_size": (256, 512), "intermediate_size": (1024,), "num_experts": (4,),
        "moe_intermediate_size": (512,), "num_hidden_layers": (1, 2), "sliding_window": (3, 16),
    },
    "long": {"sliding_window": (190, 257), "num_experts": (1, 4), "top_k_experts": (1,), "num_hidden_layers": (2, 3)},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One architecture, and three requests: of up to one, two and three windows, in any order.

    Args:
        arch: what is drawn.
        prompts: lengths of the prompts.
        canvases: lengths of each request's canvases.
        grows: room is asked for canvas by canvas, not for all of them at first.
        seed: of weights and tokens.
    """

    arch: Architecture
    prompts: tuple[int, ...]
    canvases: tuple[tuple[int, ...], ...]
    grows: bool
    seed: int


@st.composite
def cases(draw: Any) -> Case:
    """Every size is drawn on its own."""
    sizes = _SIZES | _SPECIAL[draw(st.sampled_from([*_SPECIAL]))]
    values = {name: draw(st.sampled_from(options)) for name, options in sizes.items()}
    values["top_k_experts"] = min(values["top_k_experts"], values["num_experts"])
    for name in ("num_key_value_heads", "num_global_key_value_heads"):
        divisors = [n for n in (1, 2, 3, 4, 8) if values["num_attention_heads"] % n == 0]
        values[name] = draw(st.sampled_from(divisors))
    kinds = [draw(st.sampled_from((SLIDING, SLIDING, GLOBAL))) for _ in range(values["num_hidden_layers"] - 1)]
    arch = small_architecture(**values, layer_types=(*kinds, GLOBAL), max_position_embeddings=1024)
    window, canvas = arch.sliding_window, arch.canvas_length
    prompts = [draw(st.integers(n * window + 1, (n + 1) * window)) for n in range(3)]
    lasts = st.sampled_from(sorted({1, -(-canvas // 2), canvas}))  # only a request's last canvas may be cut
    canvases = tuple((canvas,) * draw(st.integers(0, 3)) + (draw(lasts),) for _ in prompts)
    seed = int.from_bytes(draw(st.binary(min_size=3, max_size=3)), "big")
    return Case(arch, tuple(draw(st.permutations(prompts))), canvases, draw(st.booleans()), seed)


def moderate_tensors(arch: Architecture, seed: int) -> dict[str, Tensor]:
    """Random weights whose attention scores have a spread of about 1, whatever the size of a head.

    Attention has no factor of its own. With norms of about 1 the scores' spread would be the root of the head size,
    and wide heads multiply rounding layer by layer: transformers in float32 would be 5e-4 from itself in float64.
    """
    tensors = random_tensors(arch, seed)
    for name, tensor in tensors.items():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            tensor *= len(tensor) ** -0.25
    return tensors


def cpu_backend(checkpoint: Checkpoint) -> TorchCpu:
    """The engine's CPU side, straight from a checkpoint: float32, nothing compiled."""
    files = weight_files(checkpoint.arch)
    weights = NetworkWeights.read(checkpoint.arch, lambda file, name: checkpoint.tensor(files[file][name]))
    return TorchCpu(checkpoint.arch, weights, eager_pieces(checkpoint.arch))


@contextmanager
def closest_routing(reference: Reference) -> Iterator[list[float]]:
    """One number: how near the first expert left out came to the last one chosen, as a share of the logits' spread."""
    closest = [float("inf")]
    top_k = reference.model.config.text_config.top_k_experts

    def look(module: object, inputs: object, logits: Tensor) -> None:
        if top_k < logits.shape[-1]:
            best = logits.topk(top_k + 1).values
            closest[0] = min(closest[0], float((best[..., -2] - best[..., -1]).min() / logits.std()))

    layers = [*reference.model.model.encoder.language_model.layers, *reference.model.model.decoder.layers]
    handles = [layer.router.proj.register_forward_hook(look) for layer in layers]
    yield closest
    for handle in handles:
        handle.remove()


class Batch:
    """Three requests in slots of one backend: encoded piece by piece in turn, denoised together."""

    def __init__(self, case: Case, backend: TorchCpu):
        self.case, self.backend = case, backend
        self.generator = torch.Generator().manual_seed(case.seed)
        self.slots = [5, 0, 2]
        self.tokens = [self.ids(n) for n in case.prompts]
        for slot, prompt, canvases in zip(self.slots, case.prompts, case.canvases, strict=True):
            backend.admit(slot, prompt + (canvases[0] if case.grows else sum(canvases)), 0)

    def ids(self, count: int) -> Tensor:
        """Random tokens."""
        return torch.randint(self.case.arch.vocab_size, (count,), generator=self.generator)

    def held(self, index: int) -> int:
        """Tokens in the cache of a request."""
        return self.backend._caches[self.slots[index]].length

    def encode(self, indices: list[int]) -> None:
        """What is not yet in the caches, in pieces of different sizes, one of each request in turn."""
        sizes = (1, 3, self.case.arch.sliding_window, 64, PREFILL_CHUNK)
        while pending := [i for i in indices if self.held(i) < len(self.tokens[i])]:
            for index in pending:
                start = self.held(index)
                size = sizes[int(torch.randint(len(sizes), (1,), generator=self.generator))]
                self.backend.encode([EncodeStep(self.slots[index], self.tokens[index][start : start + size], start)])

    def logits(self, index: int, canvas: Tensor, soft: Tensor | None) -> Tensor:
        """What the next call of :meth:`denoise` reads out of."""
        with torch.inference_mode():
            hidden = self.backend.network.denoise(canvas, soft, self.backend._caches[self.slots[index]])
            return self.backend.vocabulary.logits(hidden)

    def denoise(self, canvases: dict[int, Tensor], soft: dict[int, Tensor | None]) -> dict[int, ReadOut]:
        """One step of several requests in one call."""
        steps = [
            CanvasStep(self.slots[i], ids, soft[i], TEMPERATURE, torch.rand(len(ids), generator=self.generator))
            for i, ids in canvases.items()
        ]
        results = dict(zip(canvases, self.backend.denoise(steps), strict=True))
        for result in results.values():
            assert isinstance(result, ReadOut), result
        return results

    def commit(self, index: int, ids: Tensor, next_canvas: int) -> None:
        """Append a finished canvas, and ask for the room of the next one."""
        self.tokens[index] = torch.cat([self.tokens[index], ids])
        if self.case.grows:
            self.backend.admit(self.slots[index], len(self.tokens[index]) + next_canvas, self.held(index))


def differences(case: Case, backend: TorchCpu, reference: Reference) -> list[float]:
    """Largest difference of a logit from transformers', at every denoising step of every request."""
    batch, found = Batch(case, backend), []
    batch.encode([0, 1, 2])
    for turn in range(max(map(len, case.canvases))):
        running = [i for i, lengths in enumerate(case.canvases) if turn < len(lengths)]
        soft: dict[int, Tensor | None] = dict.fromkeys(running)
        previous: dict[int, Tensor | None] = dict.fromkeys(running)
        for _ in range(2):  # without self-conditioning, then with what the first step read out
            canvases = {i: batch.ids(case.canvases[i][turn]) for i in running}
            logits = {i: batch.logits(i, canvases[i], soft[i]) for i in running}
            read_outs = batch.denoise(canvases, soft)
            for i in running:
                expected = reference.logits(batch.tokens[i], canvases[i], previous[i])
                assert logits[i].shape == expected.shape
                # the argmax of the call for all, too: how far below the highest logit the one that it chose is
                short = expected.max(-1).values - expected.gather(-1, read_outs[i].argmax_ids[:, None])[:, 0]
                found.append(max(float((logits[i] - expected).abs().max()), float(short.max())))
                soft[i], previous[i] = read_outs[i].soft_embeddings, expected / TEMPERATURE
        going_on = [i for i in running if turn + 1 < len(case.canvases[i])]
        for i in going_on:
            batch.commit(i, read_outs[i].argmax_ids, case.canvases[i][turn + 1])
        batch.encode(going_on)
    return found


def compare(case: Case) -> tuple[list[float], float]:
    """:func:`differences` on fresh weights, and :func:`closest_routing` meanwhile."""
    with TemporaryDirectory() as folder:
        tensors = moderate_tensors(case.arch, case.seed)
        checkpoint = Checkpoint(write_checkpoint(Path(folder) / "model", case.arch, tensors, GENERATION_CONFIG))
        backend, reference = cpu_backend(checkpoint), Reference(checkpoint)
        with closest_routing(reference) as closest:
            return differences(case, backend, reference), closest[0]


@pytest.mark.slow
def test_a_batch_of_mixed_lengths_equals_transformers_alone_on_30_random_architectures() -> None:
    """Prompts of 1 to 3 windows, up to 4 canvases, both phases, with and without self-conditioning."""
    tried: set[Architecture | int] = set()
    seen: list[tuple[Case, list[float]]] = []

    @settings(
        max_examples=ARCHITECTURES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(cases())
    def check(case: Case) -> None:
        assume(not {case.seed, case.arch} & tried)  # hypothesis follows an example with variations of it
        found, closest = compare(case)
        assume(closest > TIE)
        assert max(found) <= LIMIT
        tried.update({case.seed, case.arch})
        seen.append((case, found))

    check()
    steps = sum(len(found) for _, found in seen)
    print(f"{len(seen)} architectures, {steps} denoising steps, largest difference {max(max(f) for _, f in seen):.1e}")
    architectures = {case.arch for case, _ in seen}
    assert len(architectures) == ARCHITECTURES
    assert any(a.num_experts == 128 and a.top_k_experts == 8 for a in architectures)
    assert any(a.head_dim == 256 for a in architectures)
    assert any(a.global_head_dim == 512 for a in architectures)
    assert any(a.vocab_size > 2 * CHUNK for a in architectures)
    assert any(max(case.prompts) > PREFILL_CHUNK for case, _ in seen)
    assert any(len(canvases) == 4 for case, _ in seen for canvases in case.canvases)


@pytest.mark.parametrize(("width", "dtype"), [(10, torch.float32), (12, torch.bfloat16)])
def test_experts_whose_rows_are_not_whole_16_bytes(width: int, dtype: torch.dtype) -> None:
    """Widths that an Architecture takes; transformers in float32 cannot compute the first of them either."""
    g = torch.Generator().manual_seed(0)
    x, gate_up, down = (torch.randn(s, generator=g).to(dtype) for s in ((5, 16), (3, 2 * width, 16), (3, 16, width)))
    weights, ids = torch.rand(5, 2, generator=g), torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2], [2, 1]])
    expected = torch.zeros(5, 16)
    for token, expert in ((t, e) for t in range(5) for e in range(2)):
        matrices = gate_up[ids[token, expert]].float(), down[ids[token, expert]].float()
        gate, up = (matrices[0] @ x[token].float()).chunk(2)
        expected[token] += weights[token, expert] * (matrices[1] @ gelu_gated(gate, up))
    found = experts(x, gate_up, down, weights, ids).float()
    assert (found - expected).norm() <= {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype] * expected.norm()
