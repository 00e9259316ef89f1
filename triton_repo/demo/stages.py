"""The demo from its first stage to its report."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from rich.console import Console

from nemo_diffgemma import demo_task
from nemo_diffgemma.demo_task import Conversation
from nemo_diffgemma.entry import Stopped
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.files import write_json
from triton_repo.client.blocking import BlockingClient
from triton_repo.client.client import GenerationError
from triton_repo.client.terminal import show
from triton_repo.demo import evaluate, examples, report, training
from triton_repo.demo.console import Stages, run, stop_on_signals
from triton_repo.demo.picture import entropy_by_step, write_picture
from triton_repo.demo.trace import to_be_traced, trace
from triton_repo.demo.training import CHECKPOINT, ENGINE, ROOT
from triton_repo.launcher.server import Server, ServerFailed

REPORT, PICTURE = ROOT / "report.json", ROOT / "report.png"
MAX_TOKENS = 64
IN_FLIGHT = 8
JUDGED = 400  # held-out prompts, and as many in wordings that are never trained
JUDGED_BY_TRANSFORMERS = 100  # of the held-out ones: it takes ten times as long a prompt
SHOWN = 3  # prompts whose canvas is shown while it is denoised
TRACED = 24  # prompts asked with drafts, for the entropy by step
_SEED = 1  # of the judged prompts, none of which training sees whatever the seed
_STAGES = 8


def main(start: float) -> None:
    """Run every stage. Exits with 1 when one fails, with what it said; 128 plus a signal's number when stopped.

    Args:
        start: when the demo began, in seconds of :func:`time.perf_counter`: what is imported takes some, too.
    """
    console = Console(highlight=False)
    stop_on_signals()
    ROOT.mkdir(parents=True, exist_ok=True)
    stages = Stages(console, _STAGES, {"imports": round(time.perf_counter() - start, 1)})
    try:
        train(stages)
        build(stages)
        values = judge(stages)
    except (FieldError, ServerFailed, GenerationError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        raise SystemExit(1) from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"error: stage failed with exit status {error.returncode}: {' '.join(error.cmd)}") from None
    except Stopped as stopped:
        console.print("stopped; `make demo` goes on from here")
        raise SystemExit(128 + stopped.number) from None
    values["seconds"] = {**stages.seconds, "total": round(time.perf_counter() - start, 1)}
    write_json(REPORT, values)
    report.print_tables(values, console)
    console.print(f"{REPORT}  {PICTURE}  done in {values['seconds']['total']:.0f} s")


def train(stages: Stages) -> None:
    """Train the demo model with NeMo, unless this code has already trained the checkpoint in place."""
    if training.is_trained():
        with stages.stage("train", f"train: {CHECKPOINT} is up to date (remove {ROOT} to train again)"):
            return
    about = f"a DiffusionGemma of {training.parameters() / 1e6:.1f} M parameters with NeMo"
    with stages.stage("train", f"train: {about}, from nemo_diffgemma/conf/model/demo.yaml"):
        run("nemo_diffgemma.training", *training.begin())
        training.finish()


def build(stages: Stages) -> None:
    """Compile the checkpoint to the CPU engine and check it against transformers."""
    with stages.stage("build", "engine: checkpoint -> bundle for the CPU"):
        run("trtllm_build", "build", "gpu=cpu", f"checkpoint={CHECKPOINT}", f"out={ENGINE}")


def judge(stages: Stages) -> dict[str, Any]:
    """Serve the bundle, stream a few answers, judge all of them, stop the server; returns the report."""
    console = stages.console
    held_out, unseen = (demo_task.judged(JUDGED, seed=_SEED, unseen=unseen) for unseen in (False, True))
    with ExitStack() as stack:
        with stages.stage("serve", "serve: tritonserver on loopback"):
            log = ROOT / "tritonserver.log"
            server = stack.enter_context(
                Server(ENGINE, http_port=0, grpc_port=0, metrics_port=0, log_file=log, progress=console.print)
            )
            client = stack.enter_context(BlockingClient(server.grpc_url))
            metadata = client.server_metadata()
        with stages.stage("stream", f"stream: {SHOWN} held-out prompts; a canvas is provisional until it is committed"):
            _stream(client, held_out[:SHOWN], console)
        about = f"{JUDGED} held-out prompts, and {JUDGED} in wordings never trained, {IN_FLIGHT} in flight"
        with stages.stage("answer", f"answer: {about}"):
            answers, figures = {}, {}
            for name, said in (("held_out", held_out), ("unseen_wordings", unseen)):
                with stages.progress(f"{name.replace('_', ' ')}, through tritonserver", len(said)) as tick:
                    answers[name], seconds = evaluate.ask_all(client, said, IN_FLIGHT, MAX_TOKENS, tick)
                figures[name] = evaluate.figures(said, answers[name], seconds)
            traced = [
                evaluate.ask(client, evaluate.asked(c), MAX_TOKENS, seed=i, drafts=True)
                for i, c in enumerate(held_out[:TRACED])
            ]
        with stages.stage("documents", "documents' examples: what README, docs and Makefile ask"):
            documents = _documents(client, console)
    console.print("server stopped")
    judged = held_out[:JUDGED_BY_TRANSFORMERS]
    with stages.stage("judge", f"judge: {len(judged)} of the held-out prompts through transformers' own generate"):
        by_transformers = _by_transformers(judged, stages)
    losses = json.loads((CHECKPOINT / "training.json").read_text())
    entropies = entropy_by_step([a.entropies for a in traced])
    with stages.stage("picture", f"picture: a canvas at each of its denoising steps -> {PICTURE}"):
        index = to_be_traced(
            [c.is_right(a.text) for c, a in zip(held_out, answers["held_out"], strict=True)], answers["held_out"]
        )
        canvas = trace(ENGINE, evaluate.asked(held_out[index]), MAX_TOKENS, seed=index)
        write_picture(canvas, losses, entropies, figures["held_out"]["by_kind"], PICTURE)
    return {
        **figures,
        "transformers": by_transformers,
        "documents": documents,
        "in_flight": IN_FLIGHT,
        "entropy_by_step": entropies,
        "canvas": asdict(canvas),
        "server": {"name": metadata.name, "version": metadata.version},
        "engine": _manifest()["manifest_hash"],
        "training": {key: losses[key] for key in ("parameters", "steps", "seconds")},
    }


def _stream(client: BlockingClient, conversations: Sequence[Conversation], console: Console) -> None:
    """Ask, and show the answers as they come."""
    for conversation in conversations:
        console.print(f"> {conversation.turns[-1]}", style="bold", markup=False)
        asked = evaluate.asked(conversation)
        responses = client.generate(messages=asked, max_tokens=MAX_TOKENS, drafts=console.is_terminal)
        show(responses, "live" if console.is_terminal else "text")


def _documents(client: BlockingClient, console: Console) -> list[dict[str, Any]]:
    """What the documents' examples ask, and how it was answered."""
    rows = []
    for prompt, where in examples.prompts().items():
        found = evaluate.ask(client, [{"role": "user", "content": prompt}], MAX_TOKENS).text
        right = examples.is_right(prompt, found)
        rows.append({"prompt": prompt, "where": where, "found": found, "right": right})
        console.print(f"> {prompt}  ({where})", style="bold", markup=False)
        console.print(found if right else f"{found}  [wrong]", style=None if right else "red", markup=False)
    return rows


def _by_transformers(conversations: Sequence[Conversation], stages: Stages) -> dict[str, Any]:
    """What transformers makes of them; taken from the last report where that asked the same of the same weights."""
    weights = _manifest()["checkpoint"]["sha256"]
    key = evaluate.transformers_key(weights, conversations, MAX_TOKENS)
    try:
        before = json.loads(REPORT.read_text())["transformers"]
        if before["key"] == key:
            stages.console.print(
                f"the same prompts to the same weights are in {REPORT}: not asked again", soft_wrap=True
            )
            return dict(before)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no report, or not this one's
    stages.console.print("loading transformers")
    with stages.progress("through transformers", len(conversations)) as tick:
        exact = evaluate.transformers_exact_match(CHECKPOINT, conversations, MAX_TOKENS, tick)
    return {"key": key, "questions": len(conversations), "exact_match": exact}


def _manifest() -> dict[str, Any]:
    return dict(json.loads((ENGINE / "manifest.json").read_text()))
