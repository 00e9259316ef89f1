"""What an image of the Dockerfile will hold, as far as its text says."""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

PATH = Path(__file__).parents[2] / "Dockerfile"
# of the bases: Debian's and Ubuntu's
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Stage:
    """One stage with all that it has from the stages that it is made from.

    Args:
        base: image at the bottom of it, with the defaults of the build arguments.
        instructions: name and value of each instruction, the base's first.
    """

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def values(self, instruction: str) -> list[str]:
        """Values of every instruction of one name, the base's first."""
        return [value for name, value in self.instructions if name == instruction]

    @property
    def environment(self) -> dict[str, str]:
        """``ENV``, with references to what was set before put in."""
        found = {"PATH": _SYSTEM_PATH}
        for line in self.values("ENV"):
            for key, _, value in (part.partition("=") for part in line.split()):
                found[key] = re.sub(r"\$(\w+)", lambda name: found[name[1]], value)
        return found

    @property
    def user(self) -> tuple[int, int]:
        """User and group as numbers: what `runAsNonRoot` can check."""
        user, _, group = self.values("USER")[-1].partition(":")
        return int(user), int(group)

    @property
    def directory(self) -> str:
        """``WORKDIR``."""
        return self.values("WORKDIR")[-1]

    @property
    def command(self) -> list[str]:
        """``CMD``."""
        found: list[str] = json.loads(self.values("CMD")[-1])
        return found


def stages() -> dict[str, Stage]:
    """Every stage by name."""
    parser = DockerfileParser(fileobj=io.BytesIO(PATH.read_bytes()))
    defaults: dict[str, str] = {}
    found: dict[str, Stage] = {}
    current: Stage | None = None
    for entry in parser.structure:
        name, value = entry["instruction"], entry["value"]
        if name == "COMMENT":
            continue
        if name == "FROM":
            base, _, stage = value.partition(" AS ")
            base = re.sub(r"\$\{(\w+)\}", lambda argument: defaults[argument[1]], base)
            parent = found.get(base)
            current = Stage(parent.base, list(parent.instructions)) if parent else Stage(base)
            found[stage] = current
        elif current is None:
            assert name == "ARG", f"{name} before the first FROM"
            argument, _, default = value.partition("=")
            defaults[argument] = default
        else:
            current.instructions.append((name, value))
    return found


def sources(stage: Stage) -> list[str]:
    """What ``COPY`` takes from the project."""
    lines = [line.split() for line in stage.values("COPY")]
    return [os.path.normpath(part) for line in lines if not line[0].startswith("--from") for part in line[:-1]]
