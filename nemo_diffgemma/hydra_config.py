"""Hydra configs of both command lines: compose them, and say what is wrong in the config's own words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from nemo_diffgemma.errors import FieldError


def compose_config(directory: Path, name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose ``directory/name.yaml`` with command-line overrides.

    Raises:
        FieldError: when an override is not ``key=value``, or names an unknown group choice or key.
    """
    for override in overrides:
        check_choice(directory, override)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(directory.resolve()), version_base="1.3"):
        try:
            return compose(name, overrides=list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            unknown = re.search(r"Could not override '([^']+)'", str(error))
            if unknown is None:
                raise FieldError("command line", " ".join(overrides), _first_line(error), "see --help") from None
            key = unknown[1]
            value = next((o.partition("=")[2] for o in overrides if o.partition("=")[0] == key), "")
            groups = [o for o in overrides if (directory / o.partition("=")[0]).is_dir()]
            raise unknown_key(key, value, _keys(compose(name, overrides=groups))) from None


def choices(directory: Path, group: str) -> list[str]:
    """Names that ``group=`` accepts."""
    return sorted(path.stem for path in (directory / group).glob("*.yaml"))


def check_choice(directory: Path, override: str) -> None:
    """Raise :class:`FieldError` unless ``override`` is ``key=value`` and, for a group, an existing choice."""
    key, separator, value = override.partition("=")
    if not separator:
        raise FieldError("command line", override, "key=value", f"write {override}=... or see --help")
    if (directory / key).is_dir() and value not in (known := choices(directory, key)):
        raise FieldError(key, value, ", ".join(known), f"pass {key}={_nearest(value, known)}")


def unknown_key(key: str, value: str, known: Sequence[str]) -> FieldError:
    """The error for an override of a key that the config does not have."""
    parent = key.rpartition(".")[0]
    siblings = [k for k in known if k.rpartition(".")[0] == parent] or list(known)
    return FieldError(key, value, ", ".join(siblings), f"pass {_nearest(key, siblings)}=...")


def _keys(config: DictConfig, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name in config:
        key = f"{prefix}{name!s}"
        keys.append(key)
        value = config._get_node(name)
        if isinstance(value, DictConfig):
            keys += _keys(value, f"{key}.")
    return keys


def _nearest(value: str, known: Sequence[str]) -> str:
    return (difflib.get_close_matches(value, known, n=1, cutoff=0.0) or [known[0]])[0]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
