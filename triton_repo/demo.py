"""``make demo``: config -> trained model -> engine bundle -> Triton server -> streamed, checked answers."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import nemo_diffgemma
from nemo_diffgemma.checkpoint import HELD_OUT, Checkpoint
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.questions import read_questions
from nemo_diffgemma.quiet import quiet_start
from triton_repo import evaluate, report
from triton_repo.blocking import BlockingClient
from triton_repo.client import GenerationError
from triton_repo.server import Server, ServerFailed
from triton_repo.terminal import show

ROOT = Path("build/demo")
RUN, CHECKPOINT, ENGINE = ROOT / "train", ROOT / "checkpoint", ROOT / "engine"
MAX_TOKENS = 64
IN_FLIGHT = 8
SHOWN = 3  # prompts whose canvas is shown while it is denoised
TRACED = 24  # prompts asked with drafts, for the entropy curve


def main() -> None:
    """Run every stage; exits 1 when one fails, with what it said."""
    console = Console(highlight=False)
    quiet_start()
    start = time.perf_counter()
    ROOT.mkdir(parents=True, exist_ok=True)
    try:
        train(console)
        build(console)
        values = serve(console)
    except (FieldError, ServerFailed, GenerationError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        raise SystemExit(1) from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"error: stage failed with exit status {error.returncode}: {' '.join(error.cmd)}") from None
    report.print_table(values, console)
    console.print(f"{ROOT / 'report.json'}  {ROOT / 'report.png'}  done in {time.perf_counter() - start:.0f} s")


def train(console: Console) -> None:
    """Train the demo model with NeMo, unless this code has already trained the checkpoint in place."""
    stamp = ROOT / "trained_by"
    fingerprint = _fingerprint()
    if stamp.is_file() and stamp.read_text() == fingerprint and _whole(CHECKPOINT):
        _stage(console, 1, f"train: {CHECKPOINT} is up to date (remove {ROOT} to train again)")
        return
    _stage(console, 1, "train: a 1.2 M-parameter DiffusionGemma with NeMo, from nemo_diffgemma/conf/model/demo.yaml")
    _run("nemo_diffgemma.training.cli", f"run={RUN}", f"output={CHECKPOINT}", "output_conversations=true")
    stamp.write_text(fingerprint)


def build(console: Console) -> None:
    """Compile the checkpoint to the CPU engine and check it against transformers."""
    _stage(console, 2, "engine: checkpoint -> bundle for the CPU")
    _run("trtllm_build.cli", "build", "gpu=cpu", f"checkpoint={CHECKPOINT}", f"out={ENGINE}")


def serve(console: Console) -> dict[str, object]:
    """Serve the bundle, stream a few answers, check all of them, stop the server; returns the report."""
    questions = read_questions(CHECKPOINT / HELD_OUT)
    _stage(console, 3, "serve: tritonserver on loopback")
    with (
        Server(
            ENGINE, http_port=0, grpc_port=0, metrics_port=0, log_file=ROOT / "tritonserver.log", progress=console.print
        ) as server,
        BlockingClient(server.grpc_url) as client,
    ):
        metadata = client.server_metadata()
        _stage(console, 4, f"stream: {SHOWN} held-out prompts; the canvas is provisional until it is committed")
        for question in questions[:SHOWN]:
            console.print(f"[bold]> {question.prompt}[/bold]")
            responses = client.generate(messages=question.messages, max_tokens=MAX_TOKENS, drafts=console.is_terminal)
            show(responses, "live" if console.is_terminal else "text")
        _stage(console, 5, f"answer: {len(questions)} held-out prompts, {IN_FLIGHT} in flight")
        with _bar(console, "through tritonserver", len(questions)) as tick:
            answers, seconds = evaluate.ask_all(client, questions, IN_FLIGHT, MAX_TOKENS, tick)
        traced = [evaluate.ask(client, q, MAX_TOKENS, seed=i, drafts=True) for i, q in enumerate(questions[:TRACED])]
    console.print("server stopped")
    _stage(console, 6, "judge: the same prompts through transformers' own generate")
    with _bar(console, "through transformers", len(questions)) as tick:
        reference = evaluate.transformers_exact_match(CHECKPOINT, questions, MAX_TOKENS, tick)
    training = json.loads((CHECKPOINT / "training.json").read_text())
    entropies = report.entropy_by_step([a.entropies for a in traced])
    values = {
        **evaluate.figures(questions, answers, seconds),
        "exact_match_transformers": reference,
        "in_flight": IN_FLIGHT,
        "entropy_by_step": entropies,
        "server": {"name": metadata.name, "version": metadata.version},
        "engine": json.loads((ENGINE / "manifest.json").read_text())["manifest_hash"],
        "training": {key: training[key] for key in ("parameters", "steps", "seconds")},
    }
    report.write_json(values, ROOT / "report.json")
    report.write_picture(training, entropies, ROOT / "report.png")
    return values


class _bar:
    """A progress bar as a context: entering gives the function that advances it by one."""

    def __init__(self, console: Console, label: str, total: int):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task(label, total=total)

    def __enter__(self) -> evaluate.Progress:
        self._progress.start()
        return lambda: self._progress.advance(self._task)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _stage(console: Console, number: int, text: str) -> None:
    console.print(f"[bold cyan]\\[{number}/6][/bold cyan] {text}")


def _run(module: str, *arguments: str) -> None:
    """A stage as its own command, exactly as a user would type it."""
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


def _whole(checkpoint: Path) -> bool:
    try:
        Checkpoint(checkpoint)
    except FieldError:
        return False
    return True


def _fingerprint() -> str:
    """Hash of everything that decides what is trained: the code and configs of nemo_diffgemma."""
    root = Path(nemo_diffgemma.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".yaml")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
