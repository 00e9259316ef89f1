"""What NVIDIA has published about tritonserver: no package index knows of it, so no audit of packages does.

Source: the bulletins of https://github.com/NVIDIA/product-security as of August 2026, and number 5875 after it. Left
out is what concerns only backends that are not used here (DALI).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_VERSION = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True)
class Bulletin:
    """One of NVIDIA's security bulletins.

    Args:
        number: NVIDIA's.
        published: year and month.
        fixed: container release in which all of it is fixed.
        version: of the tritonserver in that release, major and minor.
        worst: its highest CVSS base score; None where the list was not at hand.
        cves: what it lists.
    """

    number: int
    published: str
    fixed: str
    version: tuple[int, int]
    worst: float | None
    cves: tuple[str, ...]


def _cves(text: str) -> tuple[str, ...]:
    """``2025-1 2 3 2026-4`` -> ids; a number without a year is of the year before it."""
    found, year = [], ""
    for part in text.split():
        year, number = part.split("-") if "-" in part else (year, part)
        found.append(f"CVE-{year}-{number}")
    return tuple(found)


# 24.10 is 2.51; since then each release raises the minor version, but for 25.07, which is 2.59.1: so what is fixed
# there counts as fixed in 25.08.
BULLETINS = (
    Bulletin(5612, "2025-02", "24.12", (2, 53), 4.9, _cves("2024-53880")),
    Bulletin(
        5687,
        "2025-08",
        "25.07",
        (2, 60),
        9.8,
        _cves(
            "2025-23310 23311 23317 23318 23319 23320 23321 23322 23323 23324 23325 23326 23327 23331 23333 23334 23335"
        ),
    ),
    Bulletin(5691, "2025-09", "25.08", (2, 60), 9.8, _cves("2025-23316 23328 23329 23336")),
    Bulletin(5723, "2025-11", "25.09", (2, 61), 7.5, _cves("2025-33202")),
    Bulletin(5734, "2025-12", "25.10", (2, 62), 7.5, _cves("2025-33201 33211")),
    Bulletin(5790, "2026-03", "26.01", (2, 65), 7.5, _cves("2025-33238 33254 2026-24158")),
    Bulletin(5816, "2026-04", "26.02", (2, 66), 7.5, _cves("2026-24146 24147 24173 24174 24175")),
    Bulletin(5828, "2026-05", "26.03", (2, 67), 9.8, _cves("2026-24206 24207 24208 24209 24210")),
    Bulletin(5848, "2026-06", "26.04", (2, 68), 7.5, _cves("2026-24264 24266")),
    Bulletin(5853, "2026-07", "26.05", (2, 69), 7.5, _cves("2026-47476 47477 47478 47479 47480 47481 47482")),
    Bulletin(5860, "2026-08", "26.03", (2, 67), 4.4, _cves("2026-47487")),
    Bulletin(5865, "2026-08", "26.06", (2, 70), 9.8, _cves("2026-47606 47627 47628 47629 47630")),
    Bulletin(5875, "2026-09", "26.07", (2, 71), None, ()),
)


def known(version: str) -> list[Bulletin]:
    """The bulletins whose fixes a tritonserver of this version lacks.

    Args:
        version: such as ``2.51.0``.

    Raises:
        ValueError: for what is no version.
    """
    found = _VERSION.match(version)
    if found is None:
        raise ValueError(f"{version!r} is no version of tritonserver")
    return [bulletin for bulletin in BULLETINS if (int(found[1]), int(found[2])) < bulletin.version]


def summary(version: str) -> str:
    """In one line what is known of a version."""
    lacking = known(version)
    if not lacking:
        return f"no published vulnerability known here, up to NVIDIA's bulletin {BULLETINS[-1].number}"
    cves = [cve for bulletin in lacking for cve in bulletin.cves]
    worst = max(bulletin.worst or 0.0 for bulletin in lacking)
    newest = max(lacking, key=lambda bulletin: bulletin.version).fixed
    return f"{len(cves)} published vulnerabilities, CVSS up to {worst}; fixed in {newest}: SECURITY.md"
