"""What docs/clients.md has a section of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from triton_repo.demo.examples import PROJECT, Block

PAGE = "docs/clients.md"
REQUIREMENTS = Path(__file__).parent / "requirements"
# Virtual environments, as the Makefile makes them, and what each is made of.
MAIN, LLAMA_INDEX = ".venv-clients", ".venv-clients-llama-index"
ENVIRONMENTS = {MAIN: REQUIREMENTS / "clients.txt", LLAMA_INDEX: REQUIREMENTS / "llama-index.txt"}


@dataclass(frozen=True)
class Client:
    """A client that people use.

    Args:
        tried: what its examples ask for.
        package: whose version is said; None for one that is not a package of Python, or is not installed.
        environment: that it is installed in; None for none.
        program: whose `--version` is said instead; its second word is the version.
        also: its examples are run by `make test`, too, with the project's own environment.
        about: what is said where there is no version.
        score: what its commands print before an accuracy, each of which has to be good.
    """

    tried: str
    package: str | None = None
    environment: str | None = MAIN
    program: str | None = None
    also: bool = False
    about: str = "not installed"
    score: str | None = None


# By the title of its section.
CLIENTS: dict[str, Client] = {
    "curl": Client("chat", environment=None, program="curl", also=True),
    "openai (Python)": Client("chat, stream, usage, Responses, their events, headers", package="openai", also=True),
    "LangChain": Client(
        "ChatOpenAI: invoke, stream, batch, Responses, with_structured_output, tools; OpenAI: invoke",
        package="langchain-openai",
    ),
    "LlamaIndex": Client(
        "OpenAILike: chat, stream, complete by chat and by completion",
        package="llama-index-llms-openai-like",
        environment=LLAMA_INDEX,
    ),
    "LiteLLM": Client("completion, stream, responses", package="litellm"),
    "Pydantic AI": Client(
        "agents with chat and Responses models: run, history, stream, output_type", package="pydantic-ai-slim"
    ),
    "Open WebUI": Client(
        "its requests: models, streamed chat, title", environment=None, about="not installed; as 0.12.4 asks"
    ),
    "lm-evaluation-harness": Client(
        "local-chat-completions, local-completions: exact match of 40 answers",
        package="lm-eval",
        score=r"exact_match\W+",
    ),
    "Inspect": Client("openai-api: exact match of 40 answers", package="inspect-ai", score=r"^exact\s+mean\s+"),
}
# Commands of the page that are shown, not run.
SHOWN = r"open-webui serve$"


def is_elsewhere(block: Block) -> bool:
    """Whether it needs a client that the project's own environment does not have."""
    return block.document == PAGE and block.section in CLIENTS and not CLIENTS[block.section].also


def stated(text: str) -> list[list[str]]:
    """What a text says that it prints: pieces, each of them what is between dots of omission."""
    return [said.strip().split(" ... ") for said in re.findall(r"# prints ([^;\n]+)", text)]


def not_printed(text: str, printed: str) -> list[str]:
    """What an example says that it prints and does not print, in order; empty when all is there."""
    rest, lost = printed, []
    for piece in (piece for pieces in stated(text) for piece in pieces):
        _, found, after = rest.partition(piece)
        if found:
            rest = after
        else:
            lost.append(piece)
    return lost


def folder(environment: str) -> Path:
    """Where an environment is."""
    return PROJECT / environment
