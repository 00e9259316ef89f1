"""The engine contract over a lowered graph, whatever executes it: TensorRT-RTX on its GPU, ONNX Runtime on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.backends.slots import SlotBackend
from trtllm_build.contract import CanvasStep, ReadOut, TokenChoice
from trtllm_build.lowering.lower import DENOISE, ENCODE
from trtllm_build.network.cache import KVCache

Run = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""Executes the graph: inputs by name to outputs by name, all contiguous and on the same device."""


class Lowered(SlotBackend):
    """See :class:`trtllm_build.contract.Backend`; canvases are denoised one after another.

    Args:
        arch: the network's shapes.
        dtype: of hidden states, keys and values.
        device: that ``run`` computes on.
        run: executes the graph.
        table: gives the embedding ``[vocab, hidden]``; only :meth:`logits` asks for it.
    """

    draws_nuclei = False  # its vocabulary is the graph's own

    def __init__(
        self, arch: Architecture, dtype: torch.dtype, device: torch.device, run: Run, table: Callable[[], Tensor]
    ):
        super().__init__(arch, dtype, device)
        self._run = run
        self._table = table
        self._everything = torch.ones(1, arch.vocab_size, dtype=torch.bool, device=device)

    @torch.inference_mode()
    def denoise(self, steps: Sequence[CanvasStep]) -> list[ReadOut | Exception]:
        results: list[ReadOut | Exception] = []
        for step in steps:
            try:
                results.append(self._sampled(step, self._caches[step.slot]))
            except Exception as error:
                results.append(error)
        return results

    @torch.inference_mode()
    def logits(self, prompt_ids: Tensor, canvas_ids: Tensor, previous_logits: Tensor | None) -> Tensor:
        table, cap = self._table().to(self._device, self.dtype), self.arch.final_logit_softcapping
        soft: Tensor | None = None
        if previous_logits is not None:
            probabilities = torch.softmax(previous_logits.to(self._device).float(), dim=-1).to(self.dtype)
            soft = (probabilities @ table) * self.arch.embed_scale
        with self._device:
            cache = KVCache(self.arch, self.dtype, len(prompt_ids) + len(canvas_ids))
        for ids in torch.split(prompt_ids, self.prefill_chunk):
            self._encode(ids, cache)
        hidden, _ = self._denoise(CanvasStep(0, canvas_ids, soft, 1.0, torch.zeros(len(canvas_ids))), cache)
        return (torch.tanh(hidden.float() @ table.float().T / cap) * cap).cpu()

    def _encode(self, ids: Tensor, cache: KVCache) -> None:
        found = self._call(ENCODE, ids, cache, {})
        new = [(found[f"new_keys_{i}"], found[f"new_values_{i}"]) for i in range(self.arch.num_hidden_layers)]
        if not bool(new[-1][0].isfinite().all()):
            raise FloatingPointError("NaN or infinity in the last layer's keys, encoding")
        for i, pair in enumerate(new):
            cache.extend(i, *pair)
        cache.advance(len(ids))

    def _sampled(self, step: CanvasStep, cache: KVCache) -> ReadOut:
        """One step, with tokens drawn at another temperature where that is wanted: the graph runs a second time."""
        _, found = self._denoise(step, cache)
        if step.sampling.plain:
            return found
        if step.sampling.certain(step.temperature):
            return replace(found, sampled_ids=found.argmax_ids)
        _, other = self._denoise(replace(step, temperature=step.temperature * step.sampling.temperature), cache)
        return replace(found, sampled_ids=other.sampled_ids)

    def _denoise(self, step: CanvasStep, cache: KVCache) -> tuple[Tensor, ReadOut]:
        """Normed hidden states ``[canvas, hidden]``, and what the step yields."""
        count = len(step.canvas_ids)
        given = {
            "rows": torch.arange(count),
            "inverse_temperature": torch.tensor(1.0 / step.temperature),
            "draws": step.draws,
        }
        if step.soft_embeddings is not None:
            given["soft_embeddings"] = step.soft_embeddings.to(self.dtype)
        if step.choices is not None:
            given["sets"], given["set_of"] = self._sets(step.choices, count)
        found = self._call(DENOISE, step.canvas_ids, cache, given)
        entropy = found["entropy"].cpu()
        if not bool(entropy.isfinite().all()):
            raise FloatingPointError("NaN or infinity in the canvas, or in what it reads of the cache")
        soft = found["next_soft_embeddings"] if step.soft else None
        return found["hidden"], ReadOut(found["argmax_ids"].cpu(), found["sampled_ids"].cpu(), entropy, soft)

    def _call(self, phase: int, ids: Tensor, cache: KVCache, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        count = len(given["rows"]) if "rows" in given else 1
        inputs = {
            "ids": ids,
            "soft_embeddings": torch.zeros(len(ids), self.arch.hidden_size, dtype=self.dtype, device=self._device),
            "phase": torch.tensor(phase),
            "position": torch.tensor(cache.length),
            "rows": torch.zeros(1, dtype=torch.int64),
            "inverse_temperature": torch.tensor(1.0),
            "draws": torch.zeros(count),
            "sets": self._everything,
            "set_of": torch.zeros(count, dtype=torch.int64),
            **given,
        }
        for i, buffers in enumerate(cache.buffers):
            for name, buffer in zip(("keys", "values"), buffers, strict=True):
                # an empty cache gives a row that is not read
                held = cache.held(i)
                inputs[f"{name}_{i}"] = buffer[:held] if held else buffer[:1].zero_()
        return self._run({name: tensor.to(self._device).contiguous() for name, tensor in inputs.items()})

    def _sets(self, choices: Sequence[TokenChoice], count: int) -> tuple[Tensor, Tensor]:
        """What each position may choose from: sets ``[sets, vocab]`` and which is whose ``[count]``."""
        sets: list[Tensor] = []
        set_of = torch.zeros(count, dtype=torch.int64)
        for choice in choices:
            if choice.fixed is not None:  # a set of one token each
                set_of[choice.rows] = torch.arange(len(sets), len(sets) + len(choice.rows))
                sets += list(torch.nn.functional.one_hot(choice.fixed, self.arch.vocab_size).bool())
                continue
            allowed = torch.full((self.arch.vocab_size,), choice.allowed is None)
            if choice.allowed is not None:
                allowed[choice.allowed] = True
            allowed[list(choice.excluded)] = False
            set_of[choice.rows] = len(sets)
            sets.append(allowed)
        return torch.stack(sets), set_of
