"""Prompts are read in processes of their own: none holds up another or lasts for ever; all that wait are counted."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.tokenizer import Tokenizer
from tests.model.templates import tokenizer as make_tokenizer
from triton_repo.python_backend import readers as module
from triton_repo.python_backend.prompt import Prompt, TokenIds
from triton_repo.python_backend.readers import LONG, MOST_CHARACTERS, MOST_WAITING, Readers
from trtllm_build.runtime.scheduler import QueueFull

# Harmless for the short message that a template is tried with.
HOSTILE = """\
{%- for message in messages -%}
{%- if message['content'] == 'loop' -%}
{%- for i in range(100000) -%}{%- for j in range(100000) -%}{%- for k in range(100) -%}{%- endfor -%}{%- endfor -%}
{%- endfor -%}
{%- elif message['content'] == 'grow' -%}{{- message['content'] * 1000000 * 1000 -}}
{%- elif message['content'] == 'long' -%}{{- message['content'] * 1000000 -}}
{%- endif -%}
<|turn>{{ message['role'] }}
{{ message['content'] }}<turn|>
{%- endfor -%}
"""
CONTEXT = 2**16


def said(text: str) -> Prompt:
    return Prompt("messages", json.dumps([{"role": "user", "content": text}]))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    make_tokenizer(folder, HOSTILE)
    return folder


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer(directory)


@pytest.fixture(scope="module")
def readers(directory: Path) -> Iterator[Readers]:
    opened = Readers(lambda: None)
    opened.open(directory, CONTEXT, 32, 300, (1,))
    yield opened
    opened.close()


class Inbox(queue.Queue[tuple[str, Any]]):
    """What became of prompts, by name, in that order."""

    def read(self, readers: Readers, name: str, prompt: Prompt, gone: Callable[[], bool] = lambda: False) -> None:
        readers.read(prompt, gone, partial(self.add, name))

    def add(self, name: str, read: Any) -> None:
        self.put((name, read))

    def next(self) -> tuple[str, Any]:
        return self.get(timeout=60)


def test_they_read_what_the_tokenizer_reads(readers: Readers, tokenizer: Tokenizer) -> None:
    inbox = Inbox()
    texts = ["red", "größe <turn|> naïve", "日本 <|turn>model", "a" * 3000]
    for text in texts:
        inbox.read(readers, "chat", said(text))
        inbox.read(readers, "raw", Prompt("text_input", text))
        inbox.read(readers, "suffix", Prompt("text_input", "red", text))
        inbox.read(readers, "literal", Prompt("messages", said("red").value, text))
        inbox.read(readers, "ids", Prompt("input_ids", (3, 4)))
    found = [inbox.next()[1] for _ in range(5 * len(texts))]
    red = tuple(tokenizer.chat([{"role": "user", "content": "red"}]))
    expected = []
    for text in texts:
        expected.append(TokenIds(tuple(tokenizer.chat([{"role": "user", "content": text}]))))
        expected.append(TokenIds(tuple(tokenizer.encode(text))))
        expected.append(TokenIds(tuple(tokenizer.encode("red")), tuple(tokenizer.encode(text))))
        expected.append(TokenIds(red, tuple(tokenizer.literal(text))))
        expected.append(TokenIds((3, 4)))
    assert found == expected  # in the order in which they came, too


def test_refusals_come_as_they_were_raised(readers: Readers) -> None:
    inbox = Inbox()
    inbox.read(readers, "shape", Prompt("messages", "[1]"))
    inbox.read(readers, "long", said("long"))
    _, shape = inbox.next()
    assert isinstance(shape, FieldError)
    assert str(shape).startswith("messages[0]: 1 cannot be used; allowed: an object with role and content")
    _, long = inbox.next()  # rendered, and refused before any of it is tokenised
    assert isinstance(long, FieldError)
    assert str(long).startswith("messages: '40000")


def test_what_takes_long_is_read_beside_the_others(readers: Readers, tokenizer: Tokenizer) -> None:
    inbox = Inbox()
    text = "red " * LONG
    inbox.read(readers, "long", Prompt("text_input", text))
    for i in range(20):
        inbox.read(readers, str(i), Prompt("text_input", f"red {i}"))
    found = dict(inbox.next() for _ in range(21))
    assert [name for name in found if name != "long"] == [str(i) for i in range(20)]
    assert found["long"] == TokenIds(tuple(tokenizer.encode(text)))


def test_in_a_full_queue_who_has_most_gives_way(directory: Path, tokenizer: Tokenizer) -> None:
    opened, inbox, red = Readers(lambda: None), Inbox(), Prompt("text_input", "red")

    def ask(client: str, name: str) -> None:
        opened.read(red, lambda: False, partial(inbox.add, name), client)

    for i in range(MOST_WAITING):
        ask("a", f"a{i}")
    with pytest.raises(QueueFull):
        ask("a", "one more")
    with pytest.raises(QueueFull):  # what is too long displaces nobody
        opened.read(Prompt("text_input", "r" * MOST_CHARACTERS), lambda: False, partial(inbox.add, "long"), "c")
    for name in ("b0", "b1"):
        ask("b", name)
    displaced = [inbox.next() for _ in range(2)]
    assert [name for name, _ in displaced] == [f"a{MOST_WAITING - 1}", f"a{MOST_WAITING - 2}"]
    assert all(isinstance(error, QueueFull) for _, error in displaced)
    opened.open(directory, CONTEXT, 32, 300, (1,))
    found = [inbox.next() for _ in range(MOST_WAITING)]
    opened.close()
    assert [name for name, _ in found[:5]] == ["a0", "b0", "a1", "b1", "a2"]
    assert {read for _, read in found} == {TokenIds(tuple(tokenizer.encode("red")))}


def test_clients_take_turns(directory: Path) -> None:
    opened, inbox = Readers(lambda: None), Inbox()
    for name in ["a1", "a2", "a3", "a4", "b1", "b2", "c1"]:  # before any is read
        opened.read(Prompt("text_input", "red"), lambda: False, partial(inbox.add, name), name[0])
    opened.open(directory, CONTEXT, 32, 300, (1,))
    found = [inbox.next()[0] for _ in range(7)]
    opened.close()
    assert found == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


@pytest.mark.slow
def test_a_template_that_does_not_end_is_ended(readers: Readers, tokenizer: Tokenizer) -> None:
    """Two of them run as long as they may; the others are read meanwhile."""
    inbox = Inbox()
    inbox.read(readers, "loop", said("loop"))
    inbox.read(readers, "loop", said("loop"))
    for i in range(5):
        inbox.read(readers, "red", said("red"))
        assert inbox.next() == ("red", TokenIds(tuple(tokenizer.chat([{"role": "user", "content": "red"}])))), i
    for _ in range(2):
        name, refusal = inbox.next()
        assert name == "loop"
        assert isinstance(refusal, FieldError)
        assert str(refusal).startswith("messages: '37 characters' cannot be used; allowed: what the checkpoint's chat")
    assert not readers._waiting


def test_a_template_gets_so_much_memory_and_no_more(readers: Readers) -> None:
    inbox = Inbox()
    inbox.read(readers, "grow", said("grow"))
    _, refusal = inbox.next()
    assert str(refusal).startswith("messages: 'MemoryError' cannot be used; allowed: what the chat template renders")


def test_who_has_gone_is_not_waited_for(readers: Readers, tokenizer: Tokenizer) -> None:
    inbox, gone = Inbox(), threading.Event()
    for _ in range(4):  # more than are read at a time
        inbox.read(readers, "loop", said("loop"), gone.is_set)
    inbox.read(readers, "red", Prompt("text_input", "red"))
    red = TokenIds(tuple(tokenizer.encode("red")))
    assert inbox.next() == ("red", red)
    gone.set()
    wait_until(lambda: not readers._waiting)
    inbox.read(readers, "long", Prompt("text_input", "r" * (LONG + 1)))  # what they ran in is free again
    assert inbox.next()[0] == "long"
    assert inbox.empty()


def test_as_many_wait_as_may_wait(directory: Path, tokenizer: Tokenizer) -> None:
    readers, inbox, gone = Readers(lambda: None), Inbox(), threading.Event()
    readers.open(directory, 2**30, 32, 300, (1,))
    ask = Prompt("text_input", "red")
    for _ in range(3):
        inbox.read(readers, "loop", said("loop"), gone.is_set)
    with pytest.raises(QueueFull, match=r"3 prompts of \d+ characters wait to be read"):
        readers.read(Prompt("text_input", "r" * MOST_CHARACTERS), gone.is_set, lambda _read: None)
    for _ in range(MOST_WAITING - 3):
        inbox.read(readers, "loop", said("loop"), gone.is_set)
    with pytest.raises(QueueFull, match=f"the queue is full: {MOST_WAITING} prompts"):
        inbox.read(readers, "red", ask)
    gone.set()  # who has gone takes no place
    inbox.read(readers, "red", ask)
    assert inbox.next() == ("red", TokenIds(tuple(tokenizer.encode("red"))))
    readers.close()


def children(pid: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_process_that_is_killed_takes_one_prompt_with_it(directory: Path, tokenizer: Tokenizer) -> None:
    died = threading.Event()
    readers, inbox = Readers(died.set), Inbox()
    readers.open(directory, CONTEXT, 32, 300, (1,))
    red = TokenIds(tuple(tokenizer.encode("red")))
    inbox.read(readers, "red", Prompt("text_input", "red"))
    assert inbox.next() == ("red", red)
    (reader,) = children(readers._process.pid)
    os.kill(reader, signal.SIGKILL)
    inbox.read(readers, "red", Prompt("text_input", "red"))
    assert str(inbox.next()[1]) == "the process that read the prompt has ended"
    inbox.read(readers, "red", Prompt("text_input", "red"))
    assert inbox.next() == ("red", red)
    (reader,) = children(readers._process.pid)
    readers._process.kill()
    # it ends just after what made it, and may read what comes meanwhile
    wait_until(lambda: not Path(f"/proc/{reader}").exists())
    inbox.read(readers, "lost", Prompt("text_input", "red"))
    inbox.read(readers, "lost", Prompt("text_input", "red"))
    assert died.wait(60)  # who watches the service starts it again
    readers.close()


def test_they_end_with_their_owner(directory: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from triton_repo.python_backend.prompt import Prompt
from triton_repo.python_backend.readers import Readers
readers = Readers(lambda: None)
readers.open(Path({str(directory)!r}), 100, 32, 300, (1,))
readers.read(Prompt("text_input", "red"), lambda: False, lambda _read: print(readers._process.pid, flush=True))
sys.stdin.read()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        first = int(owner.stdout.readline())
        below = [first, *children(first)]
        assert len(below) == 2
        owner.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))


def test_a_tokenizer_that_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    readers = Readers(lambda: None)
    with pytest.raises(RuntimeError, match="the reading process ended with status 1"):
        readers.open(tmp_path, 100, 32, 300, (1,))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_limits_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    for number in (MOST_WAITING, MOST_CHARACTERS // 2**20, module.RENDER_S, LONG // 2**10):
        assert str(number) in page
