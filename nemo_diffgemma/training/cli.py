"""``diffgemma-train``: train or fine-tune DiffusionGemma with NeMo."""

from __future__ import annotations

import json
import os
import sys

from nemo_diffgemma.conversations.forms import FORMS
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.hydra_config import choices
from nemo_diffgemma.quiet import quiet_start
from nemo_diffgemma.training.config import CONF, load_config
from nemo_diffgemma.training.launcher import exit_with

GROUPS = ("model", "data", "parallel", "optim")

HELP = """\
usage: diffgemma-train [GROUP=CHOICE ...] [KEY=VALUE ...] [--dry-run [--json]]

Trains a DiffusionGemma and writes a Hugging Face-layout checkpoint. Without arguments: the demo model on the demo task.

groups
{groups}

common keys (all of them: nemo_diffgemma/conf/)
  run=DIR                 logs, training checkpoints, generated data       [runs/train]
  output=DIR              the trained model                                [RUN/checkpoint]
  init_from=DIR           fine-tune this Hugging Face-layout checkpoint
  resume=true             go on from the newest training checkpoint in run
  data.train=FILE         conversations: JSON lines (may be gzipped) or Parquet; 'DIR/*.jsonl', [FILE,FILE] (data=chat)
  data.validation=FILE    held-out conversations
  data.format=NAME        {forms}; recognised where not given
  data.too_long=refuse    or skip, or cut (drops older messages): conversations over data.max_tokens
  data.batch=N            examples a step, over all processes
  optim.steps=N  optim.lr=X  seed=N
  parallel.devices=N      processes a node                                 (parallel=fsdp2, fsdp2_ep)

  --dry-run               print parameters, bytes by precision, and what each process would hold; run nothing
  --json                  the same as JSON
  --help                  this text

examples
  diffgemma-train
  diffgemma-train data=chat data.train=my.jsonl init_from=CHECKPOINT optim=reference
  diffgemma-train parallel=fsdp2_ep parallel.devices=2 parallel.expert_parallel=2
  diffgemma-train model=diffusion_gemma_26b_a4b parallel=fsdp2_ep --dry-run
"""


def main() -> None:
    """Console script. A user's mistake is one line on standard error and exit status 2."""
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        groups = [f"  {group + '=':<24}{', '.join(choices(CONF, group))}" for group in GROUPS]
        print(HELP.format(groups="\n".join(groups), forms=", ".join(FORMS)))
        return
    # before torch is imported: threads that wait by spinning make a step ten times slower as soon as anything else runs
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # AutoModel compiles a few functions; on a CPU that costs more than it gives
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    quiet_start()
    try:
        _run(arguments)
    except FieldError as error:
        exit_with(error)


def _run(arguments: list[str]) -> None:
    flags = [a for a in arguments if a.startswith("-")]
    overrides = [a for a in arguments if not a.startswith("-")]
    for flag in flags:
        if flag not in ("--dry-run", "--json") or "--dry-run" not in flags:
            raise FieldError("command line", flag, "--dry-run, --dry-run --json, --help", "see diffgemma-train --help")
    config = load_config(overrides)
    if flags:
        from nemo_diffgemma.training.dry_run import show, summary

        values = summary(config)
        print(json.dumps(values, indent=2)) if "--json" in flags else show(values)
        return
    # NeMo takes seconds to import: only once the configuration is known to be right
    from nemo_diffgemma.training.hydra_main import hydra_main

    hydra_main()


if __name__ == "__main__":
    main()
