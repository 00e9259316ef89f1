"""NeMo's Hydra runner around one training run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from nemo.core.config import hydra_runner
from nemo.utils import logging as nemo_logging
from omegaconf import DictConfig

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.hydra_paths import quote_paths
from nemo_diffgemma.training.config import CONF, parse_config
from nemo_diffgemma.training.launcher import exit_with
from nemo_diffgemma.training.run import train


def _main(config: DictConfig) -> None:
    # Hydra has just let everything from INFO on through, and NeMo calls every strategy but DDP an error
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.ERROR)
    nemo_logging.setLevel(logging.CRITICAL)
    try:
        train(parse_config(config))
    except FieldError as error:
        # inside Hydra, which would make a traceback of it
        exit_with(error)


_runner: Callable[[], None] = hydra_runner(config_path=str(CONF), config_name="train")(_main)


def hydra_main() -> None:
    """Run with the command line's overrides, which Hydra reads from ``sys.argv``; so do processes started from here."""
    sys.argv[1:] = quote_paths(sys.argv[1:])
    _runner()
