"""The demo's questions, asked through the server and through transformers' own generate, and judged."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_diffgemma.chat import Message
from nemo_diffgemma.demo_task import Conversation
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


def asked(conversation: Conversation) -> list[Message]:
    """What is sent: the conversation up to its last question."""
    return list(conversation.messages[:-1])


def ask(
    client: BlockingClient, messages: Sequence[Message], max_tokens: int, seed: int = 0, drafts: bool = False
) -> Answer:
    """Send one conversation and read the answer to its end."""
    start, first = time.perf_counter(), None
    text, steps, tokens, entropies = "", [], 0, []
    for response in client.generate(messages=messages, max_tokens=max_tokens, seed=seed, drafts=drafts):
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
    client: BlockingClient,
    conversations: Sequence[Conversation],
    in_flight: int,
    max_tokens: int,
    progress: Progress,
) -> tuple[list[Answer], float]:
    """Ask every question, ``in_flight`` at a time, each with its number as its seed.

    Returns:
        The answers in order, and the seconds all of it took.
    """

    def one(numbered: tuple[int, Conversation]) -> Answer:
        answer = ask(client, asked(numbered[1]), max_tokens, seed=numbered[0])
        progress()
        return answer

    start = time.perf_counter()
    with ThreadPoolExecutor(in_flight) as pool:
        answers = list(pool.map(one, enumerate(conversations)))
    return answers, time.perf_counter() - start


def figures(conversations: Sequence[Conversation], answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """The report's numbers of one evaluation; rates are over the whole run, whatever ran side by side.

    Where several answers are right, each of them counts as a match.
    """
    judged = [(c, a, c.is_right(a.text)) for c, a in zip(conversations, answers, strict=True)]
    names = sorted({c.kind.name for c in conversations})
    steps = [s for a in answers for s in a.steps]
    tokens = sum(a.tokens for a in answers)
    return {
        "questions": len(judged),
        "exact_match": statistics.fmean(good for _, _, good in judged),
        "steps_per_canvas_mean": statistics.fmean(steps),
        "tokens_per_step_mean": tokens / sum(steps),
        "time_to_first_block_ms_p50": 1000 * statistics.median(a.first_block_s for a in answers),
        "tokens_per_second": tokens / seconds,
        "by_kind": {
            name: {
                "questions": sum(c.kind.name == name for c, _, _ in judged),
                "exact_match": statistics.fmean(good for c, _, good in judged if c.kind.name == name),
                "steps_per_canvas_mean": statistics.fmean(
                    s for c, a, _ in judged if c.kind.name == name for s in a.steps
                ),
            }
            for name in names
        },
        "wrong": [
            {"kind": c.kind.name, "turns": list(c.turns), "a_right_answer": c.answer, "found": a.text}
            for c, a, good in judged
            if not good
        ],
    }


def transformers_key(checkpoint_sha256: str, conversations: Sequence[Conversation], max_tokens: int) -> str:
    """Hash of all that :func:`transformers_exact_match` depends on, to find an earlier result by."""
    import transformers

    said = [transformers.__version__, checkpoint_sha256, max_tokens, [[*c.turns, c.answer] for c in conversations]]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def transformers_exact_match(
    checkpoint: Path, conversations: Sequence[Conversation], max_tokens: int, progress: Progress
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
    for seed, conversation in enumerate(conversations):
        torch.manual_seed(seed)
        prompt = torch.tensor([tokenizer.chat(asked(conversation))])
        output = model.eval().generate(prompt, max_new_tokens=max_tokens).sequences[0, prompt.shape[1] :].tolist()
        end = next((i for i, token in enumerate(output) if token in special), len(output))
        right += conversation.is_right(tokenizer.decode(output[:end]))
        progress()
    return right / len(conversations)
