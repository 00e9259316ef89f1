"""NeMo's exp_manager: TensorBoard and logs in a folder of their own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from unittest.mock import patch

from nemo.utils import exp_manager as nemo
from nemo.utils import logging as nemo_logging

from nemo_diffgemma.training.run_folder import LOGS


def log_to(trainer: Any, run: Path, log_git: bool) -> None:
    """Have a trainer log below ``run``. Logs of an earlier start move to ``run_0`` and on, inside the same folder.

    Args:
        log_git: whether the commit and ``git diff`` of the folder one is in are written down; NeMo always would.
    """
    nemo_logging.setLevel(logging.CRITICAL)  # it calls every strategy but DDP an error, and prints its whole schema
    options = {
        # of its own: NeMo moves every file that lies where it logs
        "explicit_log_dir": str(run / LOGS),
        "create_tensorboard_logger": True,
        "create_checkpoint_callback": False,
        "create_preemption_callback": False,
        "disable_validation_on_resume": False,
        "log_step_timing": False,
        "log_tflops_per_sec_per_gpu": False,
        "seconds_to_sleep": 0,
    }
    if log_git:
        nemo.exp_manager(trainer, options)
    else:
        with patch.object(nemo, "get_git_hash", return_value=(False, "")):
            nemo.exp_manager(trainer, options)
