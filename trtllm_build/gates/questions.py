"""Files of conversations that a build asks: looked at whole before anything is built."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_diffgemma.chat import Chat
from nemo_diffgemma.checkpoint import Checkpoint
from nemo_diffgemma.conversations.faults import Faults
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.questions import Question, read_questions
from nemo_diffgemma.tokenizer import Tokenizer
from trtllm_build.gates.quality import QUESTIONS, room
from trtllm_build.plan import Plan

CALIBRATION_QUESTIONS = 64  # at most: enough to see every expert


def check_questions(plan: Plan, checkpoint: Checkpoint) -> int:
    """Read ``calibration`` and ``held_out``, render what will be asked of them and count its tokens.

    Returns:
        Tokens of the longest question with room for its answer; 0 where none is asked.

    Raises:
        FieldError: naming file and line of the first conversation that cannot be asked, and how many more there are;
            or when a file has none, or there is no tokenizer to calibrate with.
    """
    longest = 0
    for key, path, most in (
        ("calibration", plan.calibration, CALIBRATION_QUESTIONS),
        ("held_out", plan.held_out, QUESTIONS),
    ):
        if path is None:
            continue
        questions = read_questions(path, key=key)  # the last line too: a broken file is a mistake
        has_tokenizer = bool(checkpoint.tokenizer_files)
        require(
            has_tokenizer or key != "calibration",
            field=key,
            value=str(checkpoint.directory),
            allowed="a model with a tokenizer",
            fix="add its tokenizer's files to the checkpoint",
        )
        if has_tokenizer:
            longest = max(longest, _longest(plan, Tokenizer(checkpoint.directory), questions[:most], key))
    return longest


def _longest(plan: Plan, tokenizer: Tokenizer, questions: Sequence[Question], key: str) -> int:
    faults, longest = Faults(), 0
    prompts = tokenizer.chats([Chat(q.messages, q.tools) for q in questions])
    for question, prompt in zip(questions, prompts, strict=True):
        try:
            longest = max(longest, _tokens(plan, tokenizer, question, prompt, key))
        except FieldError as error:
            faults.add(question.where, error)
    faults.check()
    return longest


def _tokens(plan: Plan, tokenizer: Tokenizer, question: Question, prompt: list[int] | FieldError, key: str) -> int:
    if isinstance(prompt, FieldError):
        field = f"{key}: {question.where}: {prompt.field}"
        raise FieldError(field=field, value=prompt.value, allowed=prompt.allowed, fix=prompt.fix)
    field, limits = f"{key}: {question.where}", plan.limits
    require(
        len(prompt) > 0 and max(prompt) < limits.vocab_size,
        field=f"{field}: messages",
        value=f"token id {max(prompt)}" if prompt else "no tokens",
        allowed=f"one token or more, below the model's vocab_size {limits.vocab_size}",
        fix="add the model's own tokenizer and chat template to the checkpoint",
    )
    answer = room(tokenizer, question, limits.canvas)
    total, most = len(prompt) + answer, plan.arch.max_position_embeddings
    wider = f"pass gpu.limits.context={total}, or " if limits.context < total <= most else ""
    require(
        total <= limits.context,
        field=f"{field}: messages",
        value=f"{total} tokens ({len(prompt)} asked, {answer} for the answer in whole canvases of {limits.canvas})",
        allowed=f"at most {limits.context}, the engine's context (gpu.limits.context)",
        fix=f"{wider}pass {key}=FILE without it",
    )
    return total
