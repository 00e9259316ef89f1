"""Extras of this distribution: a command that lacks what it needs says which one brings it."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from nemo_diffgemma.errors import FieldError


def needs(extra: str, *modules: str) -> None:
    """End the process with status 2 and one line unless every module can be imported; imports none of them."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        error = FieldError(
            field="installation",
            value=f"without {', '.join(missing)}",
            allowed=f"diffgemma[{extra}]",
            fix=f"{sys.executable} -m pip install 'diffgemma[{extra}]'",
        )
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2)
