"""The engine contract on a device: canvases of one step go through the network together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Self, TypeVar

import torch
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.backends.cuda.cache import DeviceCache
from trtllm_build.backends.cuda.calls import DenoiseCall, EncodeCall
from trtllm_build.backends.cuda.device_weights import DeviceWeights, load_weights
from trtllm_build.backends.cuda.fused import loaded_ops
from trtllm_build.backends.cuda.network import DeviceNetwork
from trtllm_build.backends.cuda.ops import Ops
from trtllm_build.contract import CanvasStep, Constraint, EncodeStep, LabelLogits, ReadOut, ReadStep, TokenChoice
from trtllm_build.limits import PAGE, Limits
from trtllm_build.network import nucleus
from trtllm_build.spec import EngineSpec

BATCHES = (1, 2, 4, 8, 16, 32, 64)
_T = TypeVar("_T")
_CHUNK = 8192  # tokens of the vocabulary whose logits are in memory while a nucleus is looked for
_PREFILL = 1024  # tokens of a prompt encoded at a time: enough rows for the products to be bound by arithmetic


class Cuda:
    """See :class:`trtllm_build.contract.Backend`.

    Args:
        arch: the network's shapes.
        weights: on the device to run on: a GPU, or the CPU with the kernels' references.
        ops: who provides each operation.
        limits: what the engine admits.
        graphs: capture CUDA graphs; without them every operation may look at what it is given.
    """

    draws_nuclei = True
    keeps_forms = True
    reads_labels = False

    def __init__(self, arch: Architecture, weights: DeviceWeights, ops: Ops, limits: Limits, graphs: bool = True):
        self.arch = arch
        self.network = DeviceNetwork(arch, weights, ops)
        self.dtype = self.network.dtype
        self._device = weights.embedding.device
        room = limits.context + limits.canvas  # the last canvas may reach past the context
        self.prefill_chunk = min(_PREFILL, room)
        # a request's pages are whole ones: each may leave most of one empty
        pages = -(-(limits.cache_tokens or limits.slots * room) // PAGE) + limits.slots
        self._cache = DeviceCache(arch, self.dtype, self._device, limits.slots, pages, room + PAGE, self.prefill_chunk)
        pool = torch.cuda.graph_pool_handle() if graphs and self._device.type == "cuda" else None
        batches = [b for b in BATCHES if b < 2 * limits.slots]
        with torch.inference_mode():
            self._denoise = [DenoiseCall(self.network, self._cache, b, pool) for b in batches]
            self._commit = [EncodeCall(self.network, self._cache, b, arch.canvas_length, pool) for b in batches]
            # long chunks are bound by arithmetic, not by launches: no graph, and its memory is saved
            self._prefill = [EncodeCall(self.network, self._cache, 1, self.prefill_chunk, None)]

    @classmethod
    def load(cls, spec: EngineSpec) -> Self:
        """Read the bundle's weights to this machine's GPU, and capture its calls."""
        weights = load_weights(spec, torch.device("cuda"))
        return cls(spec.arch, weights, loaded_ops(spec, weights), spec.limits)

    def admit(self, slot: int, room: int, reused: int) -> None:
        self._cache.admit(slot, room, reused)

    @torch.inference_mode()
    def encode(self, steps: Sequence[EncodeStep]) -> list[Exception | None]:
        results: list[Exception | None] = [None] * len(steps)
        good = []
        for index, step in enumerate(steps):
            held = self._cache.held(step.slot)
            if step.start != held:
                results[index] = ValueError(f"slot {step.slot} holds {held} tokens, cannot go on at {step.start}")
            else:
                good.append(step)
        short = [s for s in good if len(s.token_ids) <= self.arch.canvas_length]
        for part in _parts(short, self._commit[-1].batch):
            self._encode(next(c for c in self._commit if c.batch >= len(part)), part)
        for step in good:
            if len(step.token_ids) > self.arch.canvas_length:
                self._encode(self._prefill[0], [step])
        return results

    def _encode(self, call: EncodeCall, steps: Sequence[EncodeStep]) -> None:
        ids = torch.zeros(call.batch, call.tokens, dtype=torch.int64)
        which = torch.tensor([[self._cache.spare] * call.batch, [0] * call.batch], dtype=torch.int32)
        for row, step in enumerate(steps):
            count = len(step.token_ids)
            ids[row, :count] = step.token_ids
            which[0, row], which[1, row] = step.slot, count
            self._cache.appended(step.slot, count)
        call.ids.copy_(ids)
        call.which.copy_(which)
        call.run()

    @torch.inference_mode()
    def denoise(self, steps: Sequence[CanvasStep]) -> list[ReadOut | Exception]:
        results: list[ReadOut | Exception] = []
        for part in _parts(steps, self._denoise[-1].batch):
            results += self._denoise_part(next(c for c in self._denoise if c.batch >= len(part)), part)
        return results

    def read(self, steps: Sequence[ReadStep]) -> list[LabelLogits | Exception]:
        raise NotImplementedError("this backend does not read labels")

    def _denoise_part(self, call: DenoiseCall, steps: Sequence[CanvasStep]) -> list[ReadOut | Exception]:
        canvas, b = self.arch.canvas_length, call.buffers
        ids = torch.zeros(call.batch, canvas, dtype=torch.int64)
        row = torch.ones(2, call.batch, canvas)
        row[1] = 0.5
        which = torch.tensor([[self._cache.spare] * call.batch, [0] * call.batch], dtype=torch.int32)
        for i, step in enumerate(steps):
            count = len(step.canvas_ids)
            ids[i, :count] = step.canvas_ids
            row[0, i] = 1.0 / step.temperature
            row[1, i, :count] = step.draws
            which[0, i], which[1, i] = step.slot, count
            if step.soft_embeddings is None:
                b.soft[i].zero_()
            else:
                b.soft[i, :count].copy_(step.soft_embeddings)
        b.ids.copy_(ids)
        b.row.copy_(row.flatten(1))
        b.which.copy_(which)
        call.run()
        tokens, entropy = b.tokens.cpu().view(2, call.batch, canvas), b.entropy.cpu().view(call.batch, canvas)
        return [self._result(call, i, s, tokens[:, i], entropy[i]) for i, s in enumerate(steps)]

    def _result(
        self, call: DenoiseCall, index: int, step: CanvasStep, tokens: Tensor, entropy: Tensor
    ) -> ReadOut | Exception:
        count = len(step.canvas_ids)
        # the call's buffer is written over by its next run
        soft = call.buffers.soft[index, :count].clone() if step.soft else None
        found = ReadOut(tokens[0, :count].clone(), tokens[1, :count].clone(), entropy[:count].clone(), soft)
        if not bool(found.entropy.isfinite().all()):
            return FloatingPointError("NaN or infinity in the canvas, or in what it reads of the cache")
        hidden = call.buffers.hidden[index * self.arch.canvas_length :][:count]
        bound = 0
        if step.constraint is not None:
            found, bound = self._bind(found, hidden, step, step.constraint), step.constraint.rows
        if step.choices is not None:
            self._choose(found, hidden, step, step.choices)
        if not step.sampling.plain:
            for choice in step.choices or (TokenChoice(torch.arange(bound, count)),):
                if choice.fixed is None:
                    rows = choice.rows
                    if 0 < step.sampling.top_p < 1:
                        rows = rows[nucleus.undecided(found.entropy[rows], step.sampling)]
                    found.sampled_ids[choice.rows] = found.argmax_ids[choice.rows]
                    if len(rows):
                        found.sampled_ids[rows] = self._sample(
                            found.argmax_ids, hidden, step, replace(choice, rows=rows)
                        )
        return found

    def _bind(self, found: ReadOut, hidden: Tensor, step: CanvasStep, constraint: Constraint) -> ReadOut:
        """``found`` with the rows that a grammar binds as it has them."""
        from trtllm_build.backends.cuda.form import read_bound  # numba, which takes 100 MB, is for those who need it

        bound, rows = read_bound(self.network, hidden, step, constraint), constraint.rows
        found.argmax_ids[:rows], found.sampled_ids[:rows] = bound.argmax_ids, bound.sampled_ids
        found.entropy[:rows] = bound.entropy
        if found.soft_embeddings is not None and bound.soft_embeddings is not None:
            found.soft_embeddings[:rows] = bound.soft_embeddings
        return replace(found, log_z=bound.log_z)

    def _sample(self, argmax_ids: Tensor, hidden: Tensor, step: CanvasStep, choice: TokenChoice) -> Tensor:
        """Tokens ``[rows]`` of positions that choose from the same, drawn as the step's ``sampling`` has it."""
        rows, sampling = choice.rows, step.sampling
        if sampling.certain(step.temperature):
            return argmax_ids[rows]
        temperature = step.temperature * sampling.temperature
        on_device = rows.to(self._device)
        hidden, draws = hidden[on_device].contiguous(), step.draws[rows].to(self._device)
        embedding, cap = self.network.weights.embedding, self.arch.final_logit_softcapping
        allowed = None if choice.allowed is None else choice.allowed.to(self._device)
        table = embedding if allowed is None else embedding[allowed]
        banned = torch.tensor(choice.excluded, dtype=torch.int32, device=self._device)
        if sampling.top_p == 1:
            inverse = torch.full((len(rows),), 1.0 / temperature, device=self._device)
            ruled_out = banned.expand(len(rows), -1).contiguous() if choice.excluded else None
            found: ReadOut = self.network.ops.read_out(
                hidden, table, inverse, draws, ruled_out, cap, self.arch.embed_scale, False
            )
            return (found.sampled_ids if allowed is None else allowed[found.sampled_ids]).cpu()

        def chunks() -> Iterator[tuple[int, Tensor]]:
            # in float32, as the kernels accumulate; rows are of this canvas only: sums do not depend on its company
            wide = hidden.float()
            for start in range(0, len(table), _CHUNK):
                products = wide @ table[start : start + _CHUNK].float().T
                inside = banned[(banned >= start) & (banned < start + _CHUNK)].long() - start
                yield start, products.index_fill_(1, inside, float("-inf"))

        likeliest = argmax_ids[rows].to(self._device)
        highest = (hidden.float() * embedding[likeliest].float()).sum(-1)
        if allowed is not None:
            likeliest = torch.searchsorted(allowed, likeliest)
        sampled = nucleus.draw(chunks, 1.0 / temperature, cap, likeliest, highest, sampling.top_p, draws)
        return (sampled if allowed is None else allowed[sampled]).cpu()

    def _choose(self, found: ReadOut, hidden: Tensor, step: CanvasStep, choices: Sequence[TokenChoice]) -> None:
        """Write over the rows that may not choose from the whole vocabulary."""
        network, table = self.network, self.network.weights.embedding
        for choice in choices:
            rows = choice.rows
            if choice.fixed is not None:
                found.argmax_ids[rows], found.sampled_ids[rows], found.entropy[rows] = choice.fixed, choice.fixed, 0.0
                if found.soft_embeddings is not None:
                    scaled = table[choice.fixed.to(self._device)] * network.arch.embed_scale
                    found.soft_embeddings[rows.to(self._device)] = scaled.to(self.dtype)
                continue
            if choice.allowed is None and not choice.excluded:
                continue
            on_device = rows.to(self._device)
            allowed = None if choice.allowed is None else choice.allowed.to(self._device)
            banned = torch.tensor(choice.excluded, dtype=torch.int32, device=self._device)
            chosen: ReadOut = network.ops.read_out(
                hidden[on_device].contiguous(),
                table if allowed is None else table[allowed],
                torch.full((len(rows),), 1.0 / step.temperature, device=self._device),
                step.draws[rows].to(self._device),
                banned.expand(len(rows), -1).contiguous() if choice.excluded else None,
                network.arch.final_logit_softcapping,
                network.arch.embed_scale,
                step.soft,
            )
            argmax, sampled = chosen.argmax_ids, chosen.sampled_ids
            if allowed is not None:
                argmax, sampled = allowed[argmax], allowed[sampled]
            found.argmax_ids[rows], found.sampled_ids[rows] = argmax.cpu(), sampled.cpu()
            found.entropy[rows] = chosen.entropy.cpu()
            if found.soft_embeddings is not None and chosen.soft_embeddings is not None:
                found.soft_embeddings[on_device] = chosen.soft_embeddings

    @torch.inference_mode()
    def logits(self, prompt_ids: Tensor, canvas_ids: Tensor, previous_logits: Tensor | None) -> Tensor:
        arch, table = self.arch, self.network.weights.embedding
        room = len(prompt_ids) + len(canvas_ids)
        cache = DeviceCache(arch, self.dtype, self._device, 1, -(-room // PAGE), room + PAGE, self.prefill_chunk)
        cache.admit(0, room, 0)
        slot = torch.zeros(1, dtype=torch.int32, device=self._device)
        for ids in torch.split(prompt_ids.to(self._device), self.prefill_chunk):
            self.network.encode(ids[None], slot, slot + len(ids), cache)
        soft = torch.zeros(1, len(canvas_ids), arch.hidden_size, dtype=self.dtype, device=self._device)
        if previous_logits is not None:
            probabilities = torch.softmax(previous_logits.to(self._device).float(), dim=-1).to(self.dtype)
            soft[0] = (probabilities @ table) * self.arch.embed_scale
        hidden = self.network.denoise(canvas_ids.to(self._device)[None], soft, slot, slot + len(canvas_ids), cache)
        cap = arch.final_logit_softcapping
        return (torch.tanh(hidden.float() @ table.float().T / cap) * cap).cpu()

    def denoise_calls(self) -> list[tuple[int, Callable[[], None]]]:
        """For measuring: each captured batch, and what runs its step on whatever its buffers hold."""
        return [(call.batch, call.run) for call in self._denoise]

    def release(self, slot: int) -> None:
        self._cache.release(slot)

    def cache_bytes(self) -> int:
        return self._cache.nbytes()


def _parts(items: Sequence[_T], size: int) -> list[Sequence[_T]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


load = Cuda.load
