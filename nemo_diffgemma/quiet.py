"""Silence of third-party start-up notices that tell a user nothing."""

import io
import logging
import os
import sys
import warnings

_LOGGERS = ("torchao", "torch.utils._pytree", "transformers", "nemo_automodel", "nv_one_logger")


def quiet_start() -> None:
    """Call before importing transformers or NeMo: their optional GPU extensions announce that they are absent."""
    # a character that the terminal's encoding does not have is no reason to end
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # transformers sets its logger's level itself, from this
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    # "GPU available: False" and the like
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch|transformers|nemo|lightning|megatron_fsdp")
