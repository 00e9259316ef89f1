"""Hydra configs of both command lines: compose them, and say what is wrong in the config's own words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.hydra_paths import PATHS, SEVERAL, check_paths, quote_paths
from nemo_diffgemma.names import check_name, check_path


def compose_config(directory: Path, name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose ``directory/name.yaml`` with command-line overrides.

    Raises:
        FieldError: when an override is not ``key=value``, or names an unknown group choice or key; for a path that can
            be none, is not UTF-8 or has control characters, itself, by a variable or by the folder it lies in.
    """
    check_path("the folder you are in", ".")
    for override in overrides:
        key, _, value = override.partition("=")
        check_name("command line", key)
        check_name(key, value)
        check_choice(directory, override)
    overrides = quote_paths(overrides)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(directory.resolve()), version_base="1.3"):
        try:
            config = compose(name, overrides=list(overrides))
            values = OmegaConf.to_container(config, resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            unknown = re.search(r"Could not override '([^']+)'", str(error))
            if unknown is None:
                raise _unreadable(overrides, error) from None
            key = unknown[1]
            value = next((o.partition("=")[2] for o in overrides if o.partition("=")[0] == key), "")
            groups = [o for o in overrides if (directory / o.partition("=")[0]).is_dir()]
            raise unknown_key(key, value, _keys(compose(name, overrides=groups))) from None
    assert isinstance(values, dict)
    for missing in sorted(OmegaConf.missing_keys(config)):
        for key, _, value in (override.partition("=") for override in overrides):
            given = missing == key or missing.startswith((f"{key}.", f"{key}["))
            allowed = "a value: ??? is Hydra's word for one that is still missing"
            require(not given or "???" not in value, field=key, value=value, allowed=allowed, fix="leave it out")
    _check_names(values)
    check_paths({str(key): value for key, value in values.items()})
    return config


def choices(directory: Path, group: str) -> list[str]:
    """Names that ``group=`` accepts."""
    return sorted(path.stem for path in (directory / group).glob("*.yaml"))


def check_choice(directory: Path, override: str) -> None:
    """Raise :class:`FieldError` unless ``override`` is ``key=value`` and, for a group, an existing choice."""
    plain = override.lstrip("+~")
    fix = "leave it out" if override.startswith("~") else f"pass {plain}"
    require(
        plain == override, field="command line", value=override, allowed="key=value, of a key that there is", fix=fix
    )
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise FieldError(
            field="command line", value=override, allowed="key=value", fix=f"write {override}=... or see --help"
        )
    require(
        re.match(r"hydra\b", key) is None,
        field=key,
        value=value,
        allowed="a key of this command: Hydra composes its configuration, and starts nothing",
        fix="leave it out, or see --help",
    )
    if (directory / key).is_dir() and value not in (known := choices(directory, key)):
        raise FieldError(field=key, value=value, allowed=", ".join(known), fix=f"pass {key}={_nearest(value, known)}")


def unknown_key(key: str, value: str, known: Sequence[str]) -> FieldError:
    """The error for an override of a key that the config does not have."""
    parent, siblings = key, list[str]()
    while not siblings:
        parent = parent.rpartition(".")[0]
        siblings = [k for k in known if k.rpartition(".")[0] == parent]
    near = difflib.get_close_matches(key, [*siblings, *known], n=1, cutoff=0.6)
    return FieldError(
        field=key, value=value, allowed=", ".join(siblings), fix=f"pass {near[0]}=..." if near else "see --help"
    )


def _keys(config: DictConfig, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name in config:
        key = f"{prefix}{name!s}"
        keys.append(key)
        value = config._get_node(name)
        if isinstance(value, DictConfig):
            keys += _keys(value, f"{key}.")
    return keys


def _check_names(values: dict[Any, Any], prefix: str = "") -> None:
    """Check every text of a composed configuration: variables and the home folder are in it."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                (check_path if name in PATHS | SEVERAL else check_name)(name, text)
    for key, value in values.items():  # later: paths of groups lie in folders that are named above
        if isinstance(value, dict):
            _check_names(value, f"{prefix}{key}.")


def _nearest(value: str, known: Sequence[str]) -> str:
    return (difflib.get_close_matches(value, known, n=1, cutoff=0.0) or [known[0]])[0]


def _unreadable(overrides: Sequence[str], error: Exception) -> FieldError:
    """The error for what Hydra cannot parse or OmegaConf cannot resolve, naming the override that it is about."""
    parser = OverridesParser.create()
    for override in overrides:
        key, _, value = override.partition("=")
        try:
            parsed = parser.parse_override(override)
        except HydraException:
            return FieldError(
                field=key, value=value, allowed="a value that Hydra reads", fix=f"quote it: \"{key}='VALUE'\""
            )
        if parsed.is_sweep_override():
            return FieldError(
                field=key, value=value, allowed="one value", fix=f"pass one, or quote it: \"{key}='{value}'\""
            )
    said = str(error).strip().partition("\n")[0]
    merged = said.removeprefix("Error merging override ").partition("=")
    if merged[0] != said and merged[1] and "${" not in merged[2]:
        allowed = "a value of the kind that the key has: one value, a list [a,b], or an object {name:value}"
        return FieldError(field=merged[0], value=merged[2], allowed=allowed, fix="see --help")
    key, _, value = next((o for o in overrides if "${" in o), f"command line={' '.join(overrides)}").partition("=")
    fix = "write \\${ for a ${ that stands for itself" if "${" in value else "see --help"
    return FieldError(field=key, value=value, allowed=said, fix=fix)
