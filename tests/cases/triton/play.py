"""One attack carried out, and what is wrong afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from tests.cases.triton.attack import Attack
from tests.cases.triton.target import Target
from triton_repo.launcher.server import Server, ServerFailed


@dataclass(frozen=True)
class Outcome:
    """What became of an attack.

    Args:
        told: what the client was told.
        wrong: what is not as it must be; empty when all is.
    """

    told: str
    wrong: tuple[str, ...]


def play(attack: Attack, target: Target, server: Server, honest: bytes) -> Outcome:
    """Attack ``target``, which is ``server``; ``honest`` is the answer to the honest question, before and afterwards."""
    wrong = []
    try:
        told = attack.run(target)
    except OSError as error:
        told = f"no answer: {error}"
    if not told.startswith(attack.told):
        wrong.append(f"told {told[:100]!r}, not {attack.told!r}")
    try:
        server.check()
        if target.honest() != honest:
            wrong.append("another answer to the honest question")
    except ServerFailed as error:
        wrong.append(str(error).splitlines()[0])
    except Exception as error:
        wrong.append(f"no answer to the honest question: {type(error).__name__}: {str(error)[:200]}")
    return Outcome(told, tuple(wrong))
