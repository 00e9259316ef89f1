"""One body posted, and what is wrong with its answer."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.cases.serving.right import Right
from triton_repo.gateway.headers import IGNORED, MAX_TOKENS, SEED

BODIES = Path(__file__).parent / "bodies"
# What only who wrote the server could understand: its libraries' names for shapes and errors, Python's for functions.
_INSIDES = re.compile(
    r"\n|~|lambda|Input should|pydantic|_type\b|union_|Traceback|<class|Error\(|trtllm_build|triton_repo"
)


@dataclass(frozen=True)
class Outcome:
    """What became of a body.

    Args:
        status: of HTTP.
        message: the error's, or how the answer ended and what it says.
        text: of the answer; empty for a refusal.
        ignored: fields that the answer names as without effect.
        wrong: what is not as it must be; empty when all is.
    """

    status: int
    message: str
    text: str
    ignored: tuple[str, ...]
    wrong: tuple[str, ...]


def play(body: bytes, url: str, right: Right | None, baseline: str | None = None) -> Outcome:
    """Post ``body`` to the endpoint that it is for.

    Args:
        body: JSON.
        url: of the gateway's root.
        right: how it is to be answered; None: as it may be, if it is well answered.
        baseline: the text of the body that others are compared with.
    """
    given = json.loads(body)
    path = "completions" if "prompt" in given and "input" not in given else "chat/completions"
    path = "responses" if "input" in given else path
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{url}/v1/{path}", content=body, headers=headers, timeout=120)
    ignored = tuple(name for name in answer.headers.get(IGNORED, "").split(", ") if name)
    if answer.status_code == 200:
        read = _events(answer.text, path) if given.get("stream") is True else _whole(answer.json(), path)
        message, text, wrong = f"{read[1]}: {read[0]!r}", read[0], [] if read[1] in ("stop", "length") else ["no end"]
    else:
        message, text, wrong = _refusal(answer, right)
    if right is not None:
        if answer.status_code != right.status:
            wrong.append(f"status {answer.status_code}, not {right.status}")
        if ignored != right.ignored:
            wrong.append(f"{IGNORED}: {', '.join(ignored)}; not {', '.join(right.ignored)}")
        found = {name for name in (MAX_TOKENS, SEED) if name in answer.headers}
        if found != set(right.headers):
            wrong.append(f"headers {sorted(found)}, not {sorted(right.headers)}")
        if right.alike and baseline is not None and text != baseline:
            wrong.append("another text than the baseline's")
    return Outcome(answer.status_code, message, text, ignored, tuple(wrong))


def _whole(answer: dict[str, Any], path: str) -> tuple[str, str]:
    """The text of an answer, and why it ended."""
    if path == "responses":
        (item,) = answer["output"]
        (part,) = item["content"]
        return part["text"], {"completed": "stop", "incomplete": "length"}[answer["status"]]
    choice = answer["choices"][0]
    return choice["text"] if path == "completions" else choice["message"]["content"], choice["finish_reason"]


def _events(text: str, path: str) -> tuple[str, str]:
    """The same of a stream's events, read as far as a client reads them that knows every end of a line of Unicode."""
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    if path == "responses":
        return _whole(events[-1]["response"], path)
    choices = [event["choices"][0] for event in events if event["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices), choices[-1]["finish_reason"]


def _refusal(answer: httpx.Response, right: Right | None) -> tuple[str, str, list[str]]:
    """The message of a refusal, no text, and what is wrong with it."""
    try:
        error = answer.json()["error"]
        message, param = error["message"], error["param"]
    except (ValueError, KeyError, TypeError):
        return answer.text[:200], "", ["not an error in OpenAI's shape"]
    wrong = []
    if answer.status_code != 400 or error["type"] != "invalid_request_error" or not error["code"]:
        wrong.append(f"status {answer.status_code}, type {error['type']}, code {error['code']}")
    if param is None or not message.startswith(f"{param}: "):
        wrong.append(f"the message does not begin with the field, {param!r}")
    if right is not None and param != right.param:
        wrong.append(f"names {param}, not {right.param}")
    if inside := _INSIDES.search(message.replace(str(param), "")):
        wrong.append(f"shows insides: {inside[0]!r}")
    return message, "", wrong
