"""``diffgemma-train``: train or fine-tune DiffusionGemma with NeMo."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext

from nemo_diffgemma.conversations.forms import FORMS
from nemo_diffgemma.entry import status_of_output, told_apart
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.hydra_config import choices
from nemo_diffgemma.quiet import quiet_start
from nemo_diffgemma.training.config import CONF, load_config
from nemo_diffgemma.training.ending import Ending
from nemo_diffgemma.training.launcher import check_launcher, end_with_parent, is_first, launched_by_run
from nemo_diffgemma.training.run_folder import held
from nemo_diffgemma.training.settings import TrainConfig
from nemo_diffgemma.training.signals import StopSignals

GROUPS = ("model", "data", "parallel", "optim")

HELP = """\
usage: diffgemma-train [GROUP=CHOICE ...] [KEY=VALUE ...] [--dry-run [--json]]

Trains a DiffusionGemma and writes a Hugging Face-layout checkpoint. Without arguments: the demo model on the demo task.

groups
{groups}

common keys (all of them: nemo_diffgemma/conf/)
  run=DIR                 logs, training checkpoints, generated data       [runs/train]
  output=DIR              the trained model                                [RUN/checkpoint]
  output_dtype=NAME       float32 or bfloat16                              [as init_from; float32 without]
  init_from=DIR           fine-tune this Hugging Face-layout checkpoint
  resume=auto             go on from the newest training checkpoint in run, or begin where there is none:
                          the one command for a job that is restarted (true: refuse to begin; false: begin anew)
  data.train=FILE         conversations: JSON lines (may be gzipped) or Parquet; 'DIR/*.jsonl', [FILE,FILE] (data=chat)
  data.validation=FILE    held-out conversations
  data.format=NAME        {forms}; recognised where not given
  data.too_long=refuse    or skip, or cut (drops older messages): conversations over data.max_tokens
  data.batch=N            examples per step, over all processes
  optim.steps=N  optim.lr=X  seed=N
  parallel.devices=N      processes per node                               (parallel=ddp, fsdp2, fsdp2_ep)
  output_conversations=true  also write validation conversations and 64 training ones into output   [false]
  log_git=true            also log the commit and `git diff` of the folder you are in                 [false]

  --dry-run               print parameters, bytes by precision, and what each process would hold; run nothing
  --json                  the same as JSON
  --help                  this text

SIGTERM, SIGINT, SIGHUP and SIGUSR1 end a run after the step it is in: a training checkpoint is written, the exit
status is 128 plus the signal's number, and the same command with resume=auto goes on. Under Slurm SIGUSR1 also
requeues the job (sbatch --signal=USR1@120).

examples
  diffgemma-train
  diffgemma-train parallel=ddp                        (one process for each of two CPU cores)
  diffgemma-train data=chat data.train=my.jsonl init_from=CHECKPOINT optim=reference
  diffgemma-train parallel=fsdp2_ep parallel.devices=2 parallel.expert_parallel=2
  diffgemma-train model=diffusion_gemma_26b_a4b parallel=fsdp2_ep --dry-run
"""


def main() -> None:
    """Console script.

    Exit status 2 after a user's mistake, 1 when a run cannot go on, 128 plus the number of a signal that ended it;
    each with one line on standard error.
    """
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        groups = [f"  {group + '=':<24}{', '.join(choices(CONF, group))}" for group in GROUPS]
        print(HELP.format(groups="\n".join(groups), forms=", ".join(FORMS)))
        sys.exit(status_of_output(printed=True))
    # before torch is imported: threads that wait by spinning make a step ten times slower as soon as anything else runs
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # AutoModel compiles a few functions; on a CPU that costs more than it gives
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    quiet_start()
    ending = Ending()
    sys.exit(ending.status_of(lambda: _main(arguments, ending)))


def _main(arguments: list[str], ending: Ending) -> None:
    flags = [a for a in arguments if a.startswith("-")]
    overrides = [a for a in arguments if not a.startswith("-")]
    for flag in flags:
        if flag not in ("--dry-run", "--json") or "--dry-run" not in flags:
            raise FieldError(
                field="command line",
                value=flag,
                allowed="--dry-run, --dry-run --json, --help",
                fix="see diffgemma-train --help",
            )
    config = load_config(overrides)
    if not flags:
        check_launcher(config.parallel)
        ending.run = config.run
        _run(config)
        status_of_output(printed=False)
        return
    from nemo_diffgemma.training.dry_run import show, summary

    values = summary(config)
    print(json.dumps(values, indent=2)) if "--json" in flags else show(values)
    if status := status_of_output(printed=True):
        raise SystemExit(status)


def _run(config: TrainConfig) -> None:
    signals = StopSignals()
    signals.install()
    if launched_by_run():
        end_with_parent()
    with held(config.run) if is_first() else nullcontext(), told_apart():
        # NeMo takes seconds to import, and torch: only once everything that can be wrong has been looked at
        with signals.noted():
            from nemo_diffgemma.training.prepare import prepare
        corpus = prepare(config) if is_first() else None
        with signals.noted():
            from nemo_diffgemma.training.run import train
        train(config, corpus, signals)
