"""``diffgemma-engine``: build a bundle, look at one."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from nemo_diffgemma.entry import Stopped, status_of_output, stoppable
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.machine import named, refusal
from nemo_diffgemma.quiet import quiet_start

_EXAMPLES = """examples:
  diffgemma-engine build gpu=cpu checkpoint=build/demo/checkpoint out=build/demo/engine
  diffgemma-engine build gpu=cpu precision=bf16 gpu.limits.slots=4 checkpoint=DIR
  diffgemma-engine build gpu=h100 checkpoint=DIR
  diffgemma-engine sizes
  diffgemma-engine inspect build/demo/engine
  diffgemma-engine calibrate build/demo/engine --questions labelled.jsonl
  diffgemma-engine wait /engines/h100-0a1b2c3d4e5f --gpu h100 --timeout 3600

keys of build (Hydra overrides):
  checkpoint=DIR        Hugging Face-layout DiffusionGemma checkpoint
  gpu=NAME              cpu | h100 | h200 | dgx_spark | rtx5090
  backend=edge_llm      for gpu=dgx_spark: export for NVIDIA TensorRT Edge-LLM (make setup-edge-llm)
  precision=NAME        what the GPU allows; its first where not given
  weights=random        instead of a checkpoint: made on the GPU, to measure speed (model=NAME: whose shapes)
  calibration=FILE      conversations (JSONL) to find scales of activations with; the checkpoint's own where not given
  held_out=FILE         conversations (JSONL), the last message of each the one right answer, to measure quality on; the
                        checkpoint's own where not given; for GPUs
  largest_loss=X        most exact match that may be lost on held-out questions against float32
  out=DIR               bundle directory; engines/<checkpoint>/<gpu>-<precision> where not given
  gpu.limits.slots=N    canvases denoised at the same time
  gpu.limits.context=N  most prompt and output tokens of one request
  gpu.limits.queue=N    requests that may wait for a slot
  gpu.limits.cache_tokens=N  tokens of cache of all requests together
  unified=false         do not write <out>-hf, the quantised checkpoint in ModelOpt's unified Hugging Face layout
  compile=false         run the network eagerly, without compiling it ahead of time
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script.

    Exits 2 on a user's mistake, 1 when a file cannot be read or written or what it waits for does not come, 130 and 143
    when it is interrupted or told to end.
    """
    parser = argparse.ArgumentParser(
        prog="diffgemma-engine",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser(
        "build",
        help="turn a checkpoint into an engine bundle",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    build.add_argument("overrides", nargs="*", metavar="key=value", help="what to build; see below")
    build.add_argument("--json", action="store_true", help="print the manifest instead of progress")
    sizing = commands.add_parser("sizes", help="what a model's weights take at each precision, by arithmetic")
    sizing.add_argument("model", nargs="?", default="diffusion_gemma_26b_a4b", help="a configuration or a checkpoint")
    sizing.add_argument("--json", action="store_true", help="print JSON instead of the table")
    inspect = commands.add_parser("inspect", help="check a bundle and print its manifest")
    inspect.add_argument("directory")
    waiting = commands.add_parser("wait", help="wait until a bundle is there, and is for the right GPU")
    waiting.add_argument("directory")
    waiting.add_argument("--gpu", required=True, metavar="NAME", help="what it must have been built for")
    waiting.add_argument(
        "--timeout", type=float, default=0.0, metavar="SECONDS", help="(default: %(default)s, look once)"
    )
    fitting = commands.add_parser(
        "calibrate", help="fit what decisions' probabilities are divided by, on known answers"
    )
    fitting.add_argument("directory")
    fitting.add_argument("--questions", required=True, metavar="FILE", help="JSON lines of input, question and answer")
    fitting.add_argument("--png", metavar="FILE", help="draw how often answers are right by how confident they are")
    fitting.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(arguments)
    # Before torch is imported: a build times on how many threads an engine runs best, and where it is served they wait
    # like this. With threads that spin while they wait, which nothing else may disturb, it would choose too many.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    quiet_start()
    again = "; run the same command again: it goes on where it stopped" if options.command == "build" else ""
    status = 0
    try:
        if options.command == "build":
            # transformers takes seconds to import, which --help should not; and imports may catch what a signal raises
            import_module("trtllm_build.pipeline")
        with stoppable():
            _run(options)
        status = status_of_output(printed=options.command != "build" or options.json)
    except FieldError as error:
        _end(f"error: {error}", 2)
    except TimeoutError as error:
        _end(f"error: {error}", 1)
    except Stopped as stopped:
        what = "interrupted" if stopped.number == signal.SIGINT else "told to end"
        _end(f"stopped: {what}{again}", 128 + stopped.number)
    except BaseException as error:
        found = refusal(error)
        if found is None:
            raise
        _end(f"error: {named(found)}{again}", 1)
    if status:
        raise SystemExit(status)


def _end(line: str, status: int) -> NoReturn:
    """Say why, on one line, and exit."""
    if line:
        print(line, file=sys.stderr)
    raise SystemExit(status) from None


def _run(options: argparse.Namespace) -> None:
    if options.command == "build":
        _build(options.overrides, options.json)
    elif options.command == "sizes":
        _sizes(options.model, options.json)
    elif options.command == "wait":
        _wait(options.directory, options.gpu, options.timeout)
    elif options.command == "calibrate":
        _calibrate(options.directory, options.questions, options.png, options.json)
    else:
        _inspect(options.directory)


def _build(overrides: Sequence[str], as_json: bool) -> None:
    from trtllm_build.pipeline import build
    from trtllm_build.plan import make_plan

    console = Console(stderr=as_json, highlight=False)
    manifest = build(make_plan(overrides), partial(console.print, soft_wrap=True))
    if as_json:
        print(json.dumps(manifest, indent=2, sort_keys=True))


def _sizes(model: str, as_json: bool) -> None:
    from trtllm_build.sizes import show, sizes

    found = sizes(model)
    print(json.dumps(found, indent=2)) if as_json else show(found)


def _wait(directory: str, gpu: str, timeout_s: float) -> None:
    from trtllm_build.plan import gpu_name
    from trtllm_build.wait import wait_for_bundle

    wait_for_bundle(Path(directory), gpu_name(gpu), timeout_s, partial(print, flush=True))


def _calibrate(directory: str, questions: str, png: str | None, as_json: bool) -> None:
    from trtllm_build.decisions.judge import run

    say = partial(print, file=sys.stderr) if as_json else print
    found = run(Path(directory), Path(questions), None if png is None else Path(png), say)
    if as_json:
        print(json.dumps(found, indent=2))


def _inspect(directory: str) -> None:
    from trtllm_build.bundle import Bundle

    print(json.dumps(Bundle.open(directory, elsewhere=True).manifest, indent=2, sort_keys=True))
