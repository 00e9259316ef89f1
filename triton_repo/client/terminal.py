"""What the ``diffgemma`` command shows: a live canvas, plain text, or JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict

from rich.console import Console
from rich.live import Live
from rich.text import Text

from nemo_diffgemma.entry import lost
from triton_repo.client.options import Output
from triton_repo.client.wire import Response


def show(responses: Iterable[Response], output: Output) -> None:
    """Write ``responses`` to standard output as they come."""
    if output == "live":
        _show_live(responses, Console(highlight=False))
        return
    for response in responses:
        line = json.dumps(asdict(response), ensure_ascii=False) + "\n" if output == "json" else response.text
        sys.stdout.write(line)
        sys.stdout.flush()
        if lost() is not None:
            return
    if output == "text":
        sys.stdout.write("\n")


def _show_live(responses: Iterable[Response], console: Console) -> None:
    """The canvas while it is denoised; at the end, or when interrupted, the committed text stays."""
    committed = ""
    reason = "interrupted"
    try:
        with Live(console=console, transient=True, refresh_per_second=30) as live:
            for response in responses:
                if not response.provisional:
                    committed += _printable(response.text)
                    reason = response.finish_reason or reason
                live.update(_view(committed, response, console))
    finally:
        console.print(Text(committed), soft_wrap=True)
        if reason not in ("stop", "interrupted"):
            console.print(Text(f"[{reason}]", style="dim"))


def _printable(text: str) -> str:
    """``text`` without what would steer the terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def _view(committed: str, response: Response, console: Console) -> Text:
    """Committed text, then the provisional canvas, cut to the end that the terminal has room for."""
    view = Text(committed)
    if response.provisional:
        view.append(_printable(response.text), style="dim italic")
    lines = view.wrap(console, console.width)[-max(1, console.height - 2) :]
    if response.provisional:
        entropy = "" if response.entropy is None else f", entropy {response.entropy:.3f} nats"
        status = f"provisional: canvas {response.canvas_index}, step {response.denoising_steps}{entropy}"
        lines.append(Text(status, style="dim reverse"))
    return Text("\n").join(lines)
