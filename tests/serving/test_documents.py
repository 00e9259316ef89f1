"""Every example in README, docs and Makefile: those that ask the demo model run, and are answered right.

What asks the model runs as it stands but for what :func:`rewritten` and :func:`run` say; a command that is neither run
nor listed in ``NOT_RUN`` fails. They ask the demo's own engine where `make demo` has left one of this code. Elsewhere
they ask a random model: then they must run, and what it answers is not looked at.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from nemo_diffgemma.checkpoint import Checkpoint
from nemo_diffgemma.demo_task import KINDS, right_answer
from nemo_diffgemma.errors import FieldError
from tests.clients.page import CLIENTS, PAGE, is_elsewhere, not_printed, stated
from tests.support import quick_engine
from triton_repo.demo.examples import PROJECT, Block, asked, blocks, is_right, prompts
from triton_repo.demo.training import CHECKPOINT, ENGINE, ROOT, is_trained
from triton_repo.launcher.server import Server
from trtllm_build.bundle import Bundle

pytestmark = pytest.mark.server

RUN = r"(?:make chat|curl|diffgemma|diffgemma bench|python -c)(?= |$)"
NOT_RUN = {
    r"make (?:demo|train|engine GPU=cpu|serve)\b": "minutes, or without end: what it leaves is asked here",
    r"diffgemma-serve --new-key ": "tests/serving/test_keys.py",
    r"diffgemma-serve --engine ": "does not end; tests/serving/test_launcher.py",
    r"make (?:setup|setup-edge-llm|test|test-clients|check|format|help|image)\b": "asks no model",
    r"diffgemma-engine sizes": "asks no model",
    r"diffgemma-train (?:data=chat|--dry-run)": "a user's own data, the released sizes; tests/training",
    r"diffgemma-engine calibrate ": "a user's own questions; tests/decisions/test_calibrate_command.py",
    r"diffgemma-engine build ": "a user's own checkpoint; tests/runtime/test_engine.py builds one",
    r"make (?:engine|bench) GPU=(?:h100|dgx-spark)\b": "the released checkpoint, or a GPU",
    r"nvidia-smi|nvcc|dpkg|uname|rsync|cmake|export EDGELLM": "a DGX Spark",
    r"\(cd \$HOME|\$HOME|git clone|python3 -m pip": "a DGX Spark",
    r"pip install -e|python -m trtllm_build\.providers\.tensorrt_llm": "an H100, and nvcc",
    r"helm |kubectl |kind |--set autoscaling": "a cluster; tests/helm renders the chart and runs its commands",
    r"docker ": "a container engine",
    r"python -m benchmarks\.": "measures; takes minutes",
    r"python3\.11 -m venv aiperf|echo '\{\"messages\"|aiperf/bin/aiperf": "fetches AIPerf from PyPI",
}
# what an example writes or waits for is made small
SMALLER = {
    "--requests 200": "--requests 8",
    "--duration 60": "--duration 1",
    "--input-tokens 512": "--input-tokens 64",
    "--max-tokens 256": "--max-tokens 32",
}


@dataclass(frozen=True)
class Command:
    """A line for the shell, continued lines and all."""

    document: str
    line: int
    text: str


def commands(block: Block) -> list[Command]:
    """The commands of a block: a line each, with the lines that a backslash continues and a here-document."""
    found, lines = [], iter(enumerate(block.text.splitlines(), block.line))
    for number, text in lines:
        while text.endswith("\\"):
            text = f"{text[:-1].rstrip()} {next(lines)[1].strip()}"
        if end := re.search(r"<<'(\w+)'", text):
            for _, more in lines:
                text += f"\n{more}"
                if more == end[1]:
                    break
        if text.strip():
            found.append(Command(block.document, number, text))
    return found


ALL = blocks()
BLOCKS = [block for block in ALL if not is_elsewhere(block)]
COMMANDS = [c for block in BLOCKS if not block.language for c in commands(block)]
(DEFAULT,) = re.findall(r"^PROMPT \?= (.+)$", (PROJECT / "Makefile").read_text(), re.MULTILINE)
RUNNING = [c for c in COMMANDS if re.match(RUN, c.text)]
RUNNING.append(Command("Makefile", 0, f"make chat  # what is asked by default: PROMPT={json.dumps(DEFAULT)}"))
# There examples print what form an answer has, not what it says.
FORMS = ("docs/decisions.md", "docs/structured.md")
PYTHON = sorted({b.document for b in BLOCKS if b.language == "python"})


@dataclass(frozen=True)
class Served:
    """A model that is served.

    Args:
        engine: its bundle.
        grpc, http, openai: host and port of each endpoint.
        prompts: a file of prompts for it.
        trained: whether it is the demo's model, trained by this code.
    """

    engine: Path
    grpc: str
    http: str
    openai: str
    prompts: Path
    trained: bool


def demo_engine() -> Path | None:
    """What `make demo` left, when this code trained it."""
    engine = PROJECT / ENGINE
    try:
        weights = Bundle.open(engine).manifest["checkpoint"]["sha256"]
        good = is_trained(PROJECT / ROOT) and weights == Checkpoint(PROJECT / CHECKPOINT).sha256
    except FieldError:
        return None
    return engine if good else None


@pytest.fixture(scope="module")
def served(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server on free ports for all examples."""
    folder = tmp_path_factory.mktemp("examples")
    file = folder / "prompts.jsonl"
    lines = [{"messages": [{"role": "user", "content": prompt}]} for prompt in prompts()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    trained = demo_engine()
    engine = trained or quick_engine(text_checkpoint, folder)
    with Server(engine, http_port=0, grpc_port=0, metrics_port=0, openai_port=0) as server:
        addresses = server.grpc_url, _address(server.http_url), _address(server.openai_url)
        yield Served(engine, *addresses, file, trained=trained is not None)


def _address(url: str) -> str:
    return url.removeprefix("http://").removesuffix("/v1")


def rewritten(text: str, served: Served) -> str:
    """An example for the server of these tests: its ports, its engine, its prompts, and fewer of them."""
    changes = {
        "127.0.0.1:8001": served.grpc,
        "127.0.0.1:8000": served.http,
        "127.0.0.1:8080": served.openai,
        "127.0.0.1:9000": served.openai,
        "build/demo/engine": str(served.engine),
        "build/demo/checkpoint/held_out.jsonl": str(served.prompts),
        "docs/orders.yaml": str(PROJECT / "docs" / "orders.yaml"),
        "--prompts FILE": f"--prompts {served.prompts}",
        **SMALLER,
    }
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


def run(command: Command, served: Served, folder: Path) -> str:
    """What a command prints.

    `make chat` becomes what make would run; `diffgemma` and `python` are this environment's, and told the server.
    """
    text = re.sub(r"\s+# .*$", "", rewritten(command.text, served))
    shell = {"cwd": folder, "capture_output": True, "text": True, "timeout": 300}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "PROMPT"}
    environment["PYTHONPATH"] = str(PROJECT)
    if text.startswith("make "):
        make = f"make --dry-run --no-print-directory --assume-old=.venv/.installed -C {shlex.quote(str(PROJECT))}"
        found = subprocess.run(["bash", "-c", text.replace("make", make, 1)], env=environment, **shell)  # type: ignore[call-overload]
        assert found.returncode == 0, found.stderr
        text = found.stdout.removeprefix(".venv/bin/")
    if text.startswith("diffgemma "):
        bench = next((f" {name}" for name in ("bench", "decide") if text.startswith(f"diffgemma {name} ")), "")
        few = " --requests 8" if bench == " bench" and "--requests" not in text and "--duration" not in text else ""
        program = f"{shlex.quote(sys.executable)} -m triton_repo.cli{bench} --url {served.grpc}{few}"
        text = text.replace(f"diffgemma{bench}", program, 1)
    text = re.sub("^python ", f"{shlex.quote(sys.executable)} ", text)
    if text.startswith("curl "):
        if shutil.which("curl") is None:
            pytest.skip("no curl here")
        text = text.replace("curl ", "curl --silent --show-error --fail ", 1)
    done = subprocess.run(["bash", "-c", text], env=environment, **shell)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    return str(done.stdout)


def run_python(text: str, name: str, namespace: dict[str, object]) -> str:
    """What a block of Python prints; it may await."""
    printed = io.StringIO()
    code = compile(text, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    with contextlib.redirect_stdout(printed):
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, namespace))
        else:
            exec(code, namespace)
    return printed.getvalue()


def check_answers(text: str, printed: str, served: Served) -> None:
    """What an example says that it prints is printed, and every prompt in it is answered right."""
    if not served.trained:
        return
    assert not_printed(text, printed) == [], printed
    for prompt in asked(text):
        right = right_answer((prompt,))[1]
        good = right in printed if isinstance(right, str) else is_right(prompt, printed.strip())
        assert good, f"{prompt!r} is not answered right: {printed!r}"


def test_documents_ask_what_the_demo_model_is_taught() -> None:
    unknown = KINDS[-1]
    assert [prompt for prompt in prompts() if right_answer((prompt,))[0] == unknown] == []
    assert len(prompts()) >= 2


def test_what_a_document_says_is_printed_is_a_right_answer_to_what_it_asks() -> None:
    pages = [d for d in PYTHON if d not in FORMS]
    texts = [c.text for c in RUNNING] + ["".join(b.text for b in BLOCKS if b.document == d) for d in pages]
    for text in texts:
        right = [right_answer((prompt,))[1] for prompt in asked(text)]
        for pieces in stated(text):
            assert any(isinstance(r, str) and all(piece in r for piece in pieces) for r in right), pieces
    assert sum(len(stated(text)) for text in texts) >= 6


def test_every_command_is_run_or_listed() -> None:
    lost = [c for c in COMMANDS if not any(re.match(pattern, c.text) for pattern in (RUN, *NOT_RUN))]
    assert lost == []
    unused = [p for p in NOT_RUN if not any(re.match(p, c.text) for c in COMMANDS)]
    assert unused == []
    both = [c for c in RUNNING if any(re.match(pattern, c.text) for pattern in NOT_RUN)]
    assert both == []


def test_every_block_is_of_a_language_that_is_looked_at() -> None:
    for block in ALL:
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            assert yaml.safe_load(block.text)
        else:
            assert block.language in ("", "python"), f"{block.document}:{block.line}"


def test_every_client_has_a_section_with_examples() -> None:
    sections = {block.section for block in ALL if block.document == PAGE}
    assert sections == set(CLIENTS)


def test_every_prompt_is_asked_by_an_example_that_runs() -> None:
    texts = [c.text for c in RUNNING] + [b.text for b in BLOCKS if b.language == "python"]
    found = {prompt for text in texts for prompt in asked(text)}
    assert {prompt for prompt, where in prompts().items() if where != "Makefile"} == found


@pytest.mark.parametrize("command", RUNNING, ids=lambda c: f"{c.document}:{c.line}")
def test_a_command(command: Command, served: Served, tmp_path: Path) -> None:
    printed = run(command, served, tmp_path)
    writes = ">" in command.text
    assert bool(printed) != writes
    if command.text.startswith("curl "):
        (choice,) = json.loads(printed)["choices"]
        assert choice["finish_reason"] in ("stop", "length")
        printed = str(choice["message"]["content"])
    check_answers(command.text, printed, served)


@pytest.mark.parametrize("document", PYTHON)
def test_python(document: str, served: Served) -> None:
    """All blocks of a document, one after another, with the names of those before."""
    namespace: dict[str, object] = {}
    for block in BLOCKS:
        if (block.document, block.language) == (document, "python"):
            text = rewritten(block.text, served)
            printed = run_python(text, f"{document}:{block.line}", namespace)
            assert printed or not asked(text)
            if document in FORMS:
                assert not_printed(text, printed) == [], printed
            else:
                check_answers(text, printed, served)
    if "engine" in namespace:
        namespace["engine"].close()  # type: ignore[attr-defined]
