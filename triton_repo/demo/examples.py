"""What the documents' examples are, and what they ask of the demo model."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from nemo_diffgemma import demo_task

PROJECT = Path(__file__).parents[2]
_DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/*.md")
_TEXT = r'"((?:[^"\\]|\\.)*)"'
# how a prompt is written: in a message, for make, for the `diffgemma` command
_ASKED = re.compile(rf'"content": {_TEXT}|\bPROMPT={_TEXT}|^diffgemma (?:-- )?{_TEXT}', re.MULTILINE)
_DEFAULT = re.compile(r"^PROMPT \?= (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of code in a document.

    Args:
        document: path in the project.
        section: the heading of second order that it stands under; empty before the first.
        line: where its code begins, from 1.
        language: as the fence names it; empty for commands.
        text: the code.
    """

    document: str
    section: str
    line: int
    language: str
    text: str


def blocks(project: Path = PROJECT) -> list[Block]:
    """Every fenced block of the README and the other documents, in order."""
    found = []
    for path in (path for pattern in _DOCUMENTS for path in sorted(project.glob(pattern))):
        name, section = path.relative_to(project).as_posix(), ""
        tokens = MarkdownIt().parse(path.read_text(encoding="utf-8"))
        for i, token in enumerate(tokens):
            if token.type == "heading_open" and token.tag == "h2":
                section = tokens[i + 1].content
            if token.type == "fence" and token.map is not None:
                found.append(Block(name, section, token.map[0] + 2, token.info.strip(), token.content))
    return found


def asked(text: str) -> list[str]:
    """The prompts in a block's text, in order."""
    found = (next(group for group in match.groups() if group is not None) for match in _ASKED.finditer(text))
    return [str(json.loads(f'"{text}"')) for text in found]


def prompts(project: Path = PROJECT) -> dict[str, str]:
    """Every prompt that a document or the Makefile asks, and where it is first asked; none without the documents."""
    found: dict[str, str] = {}
    for block in blocks(project):
        for prompt in asked(block.text):
            found.setdefault(prompt, block.document)
    makefile = project / "Makefile"
    for prompt in _DEFAULT.findall(makefile.read_text(encoding="utf-8")) if makefile.is_file() else ():
        found.setdefault(prompt, makefile.name)
    return found


def is_right(prompt: str, answer: str) -> bool:
    """Whether it is a right answer to a prompt that the demo task knows; what it does not know, no document asks."""
    kind, _ = demo_task.right_answer((prompt,))
    return kind != demo_task.KINDS[-1] and kind.is_right((prompt,), answer)
