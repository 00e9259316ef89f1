"""Exact-match evaluation of held-out conversations: through the server, and through transformers' own generate."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_diffgemma.questions import Question
from nemo_diffgemma.tokenizer import Tokenizer
from triton_repo.client.blocking import BlockingClient

Progress = Callable[[], None]


@dataclass(frozen=True)
class Answer:
    """What the server made of a question.

    Args:
        text: all committed text.
        steps: denoising steps of each canvas.
        tokens: tokens returned.
        first_block_s: seconds from sending the request to its first committed block.
        entropies: mean entropy (nats) after each denoising step of the first canvas; empty without drafts.
    """

    text: str
    steps: tuple[int, ...]
    tokens: int
    first_block_s: float
    entropies: tuple[float, ...] = ()


def ask(client: BlockingClient, question: Question, max_tokens: int, seed: int, drafts: bool = False) -> Answer:
    """Send one question and read its answer to the end."""
    start, first = time.perf_counter(), None
    text, steps, tokens, entropies = "", [], 0, []
    for response in client.generate(messages=question.messages, max_tokens=max_tokens, seed=seed, drafts=drafts):
        if response.provisional:
            if response.canvas_index == 0 and response.entropy is not None:
                entropies.append(response.entropy)
            continue
        first = first if first is not None else time.perf_counter() - start
        text += response.text
        steps.append(response.denoising_steps)
        tokens += len(response.token_ids)
    assert first is not None, "the server ends every stream with a committed response"
    return Answer(text, tuple(steps), tokens, first, tuple(entropies))


def ask_all(
    client: BlockingClient, questions: Sequence[Question], in_flight: int, max_tokens: int, progress: Progress
) -> tuple[list[Answer], float]:
    """Ask every question, ``in_flight`` at a time, each with its own seed.

    Returns:
        The answers in order, and the seconds all of it took.
    """

    def one(numbered: tuple[int, Question]) -> Answer:
        answer = ask(client, numbered[1], max_tokens, seed=numbered[0])
        progress()
        return answer

    start = time.perf_counter()
    with ThreadPoolExecutor(in_flight) as pool:
        answers = list(pool.map(one, enumerate(questions)))
    return answers, time.perf_counter() - start


def figures(questions: Sequence[Question], answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """The report's numbers of one evaluation; rates are over the whole run, whatever ran side by side."""
    right = [q.answer == a.text for q, a in zip(questions, answers, strict=True)]
    steps = [s for a in answers for s in a.steps]
    tokens = sum(a.tokens for a in answers)
    return {
        "questions": len(questions),
        "exact_match": sum(right) / len(right),
        "steps_per_canvas_mean": statistics.fmean(steps),
        "tokens_per_step_mean": tokens / sum(steps),
        "time_to_first_block_ms_p50": 1000 * statistics.median(a.first_block_s for a in answers),
        "tokens_per_second": tokens / seconds,
        "wrong": [
            {"prompt": q.prompt, "answer": q.answer, "found": a.text}
            for q, a, good in zip(questions, answers, right, strict=True)
            if not good
        ],
    }


def transformers_exact_match(
    checkpoint: Path, questions: Sequence[Question], max_tokens: int, progress: Progress
) -> float:
    """Exact match of transformers' own ``generate`` on the checkpoint, with the checkpoint's sampler settings.

    Raises:
        RuntimeError: when transformers finds a tensor missing or unexpected.
    """
    import torch
    from transformers import DiffusionGemmaForBlockDiffusion

    model, report = DiffusionGemmaForBlockDiffusion.from_pretrained(
        str(checkpoint), dtype=torch.float32, output_loading_info=True
    )
    if report["missing_keys"] or report["unexpected_keys"]:
        raise RuntimeError(f"transformers: missing {report['missing_keys']}, unexpected {report['unexpected_keys']}")
    tokenizer = Tokenizer(checkpoint)
    special = {*model.generation_config.eos_token_id, model.generation_config.pad_token_id}
    right = 0
    for seed, question in enumerate(questions):
        torch.manual_seed(seed)
        prompt = torch.tensor([tokenizer.chat(question.messages)])
        output = model.eval().generate(prompt, max_new_tokens=max_tokens).sequences[0, prompt.shape[1] :].tolist()
        end = next((i for i, token in enumerate(output) if token in special), len(output))
        right += tokenizer.decode(output[:end]) == question.answer
        progress()
    return right / len(questions)
