"""Draw the house: `python docs/house.py --write` makes docs/house.svg of the imports, `--check` says whether it is old.

A row per layer, a box per room with its number of files; every import inside a package goes down. The layers are those
that import-linter holds (pyproject.toml).
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "house.svg"
PACKAGES = {"triton_repo": "the service", "trtllm_build": "the engine", "nemo_diffgemma": "the model"}
BOX, HIGH, GAP, LEFT = 128, 44, 10, 24
FILL = {"triton_repo": "#e6f4ea", "trtllm_build": "#e8f0fe", "nemo_diffgemma": "#fef7e0"}


def layers(package: str) -> list[list[str]]:
    """Rooms of a package from top to bottom, by its contract."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    for contract in contracts:
        if contract.get("containers") == [package]:
            found = [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]
            return [layer for layer in found if layer != ["__main__"]]
    raise ValueError(f"pyproject.toml has no contract of layers for {package}")


def files(package: str, room: str) -> int:
    """How many there are in a room, which may be one file."""
    path = ROOT / package / room
    if path.is_dir():
        return len(list(path.rglob("*.py")))
    return 1


def between() -> set[tuple[str, str]]:
    """Which package imports which."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imports = ((m, t) for m in graph.modules for t in graph.find_modules_directly_imported_by(m))
    pairs = {(source.split(".")[0], target.split(".")[0]) for source, target in imports}
    return {pair for pair in pairs if pair[0] != pair[1]}


def draw() -> str:
    """The picture, as SVG."""
    parts: list[tuple[int, int, str, str, str]] = []
    y, width = 20, 0
    imports = sorted(between())
    for package, about in PACKAGES.items():
        top = y
        y += 30
        inner = []
        for layer in layers(package):
            x = LEFT + 14
            for room in layer:
                count = files(package, room)
                about_room = f"{count} file{'s' * (count != 1)}"
                inner.append(
                    f'<rect x="{x}" y="{y}" width="{BOX}" height="{HIGH}" rx="6" fill="#ffffff" stroke="#888"/>'
                    f'<text x="{x + BOX / 2}" y="{y + 19}" text-anchor="middle" font-weight="bold">{room}</text>'
                    f'<text x="{x + BOX / 2}" y="{y + 35}" text-anchor="middle" fill="#555">{about_room}</text>'
                )
                x += BOX + GAP
            width = max(width, x + 14)
            y += HIGH + GAP
        used = ", ".join(target for source, target in imports if source == package)
        title = f"{package}: {about}" + (f"; imports {used}" if used else "")
        parts.append((top, y + 4, package, title, "".join(inner)))
        y += 24
    body = "".join(
        f'<rect x="{LEFT}" y="{top}" width="{width - LEFT}" height="{bottom - top}" rx="10" fill="{FILL[package]}"/>'
        f'<text x="{LEFT + 14}" y="{top + 20}" font-size="14" font-weight="bold">{escape(title)}</text>{inner}'
        for top, bottom, package, title, inner in parts
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + 24} {y}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{body}</svg>\n'
    )


def main() -> None:
    """Exits 1 when the picture is not what the imports say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true")
    what.add_argument("--check", action="store_true")
    if parser.parse_args().write:
        OUT.write_text(draw())
    elif not OUT.is_file() or OUT.read_text() != draw():
        sys.exit("docs/house.svg is not what the imports say: make format")


if __name__ == "__main__":
    main()
