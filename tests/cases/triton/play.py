"""One attack carried out, and what is wrong afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from tests.cases.triton.attacks import Attack
from tests.cases.triton.target import Target
from triton_repo.launcher.server import ServerFailed


@dataclass(frozen=True)
class Outcome:
    """What became of an attack.

    Args:
        told: what the client was told.
        wrong: what is not as it must be; empty when all is.
    """

    told: str
    wrong: tuple[str, ...]


def play(attack: Attack, target: Target, honest: bytes) -> Outcome:
    """Attack; ``honest`` is the answer to the honest question, before and afterwards."""
    wrong = []
    try:
        told = attack.run(target)
    except OSError as error:
        told = f"no answer: {error}"
    if not told.startswith(attack.told):
        wrong.append(f"told {told[:100]!r}, not {attack.told!r}")
    try:
        target.server.check()
        if target.honest() != honest:
            wrong.append("another answer to the honest question")
    except ServerFailed as error:
        wrong.append(str(error).splitlines()[0])
    except Exception as error:
        wrong.append(f"no answer to the honest question: {type(error).__name__}")
    return Outcome(told, tuple(wrong))
