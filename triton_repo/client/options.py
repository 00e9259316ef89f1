"""The ``diffgemma`` command's options."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from triton_repo.client.settings import DEFAULT_URL, Retry, Tls

Output = Literal["live", "text", "json"]

_ABOUT = """\
Generate text with a running diffgemma server (start one with `make serve` or `diffgemma-serve --engine DIR`).

`diffgemma decide --help`: questions that are answered with probabilities. `diffgemma bench --help`: measuring.

In a terminal the canvas is shown while it is denoised: committed text in normal style, the provisional canvas dim,
with its step and mean entropy. Piped, only the committed text is written. With --json every response is one line:
text, token_ids, provisional, canvas_index, denoising_steps, entropy (nats), finish_reason (on the last line),
num_input_tokens, num_output_tokens; the output is the concatenated text of the lines with "provisional": false.
Ctrl-C cancels the generation on the server and exits with status 130."""
SAMPLER: dict[str, tuple[type, str]] = {
    "max_denoising_steps": (int, "most denoising steps per canvas"),
    "temperature": (float, "times the schedule's where tokens are drawn, 0 to 2"),
    "top_p": (float, "draw from the likeliest tokens that weigh as much, 0 to 1"),
    "t_min": (float, "temperature at the end of the schedule"),
    "t_max": (float, "temperature at its start"),
    "entropy_bound": (float, "nats of summed entropy accepted in one step"),
    "confidence_threshold": (float, "mean entropy in nats at which a stable canvas stops"),
    "stability_threshold": (int, "earlier steps that the argmax canvas must equal"),
}


@dataclass(frozen=True)
class CommandOptions:
    """A parsed command line.

    Args:
        url: host and port of the server.
        tls: files for TLS, None without.
        retry: when a server that is not available is asked again.
        inputs: what :meth:`triton_repo.client.client.Client.generate` is called with.
        output: how responses are shown.
    """

    url: str
    tls: Tls | None
    retry: Retry
    inputs: dict[str, Any]
    output: Output


def parse_arguments(arguments: Sequence[str] | None) -> CommandOptions:
    """Read the command line; exits with status 2 and the usage on a mistake.

    Raises:
        FieldError: for a TLS certificate without its key.
    """
    parser = argparse.ArgumentParser(
        prog="diffgemma", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prompt", metavar="PROMPT", help="what the user says")
    parser.add_argument("--raw", action="store_true", help="send PROMPT as raw text, without the chat template")
    parser.add_argument("--system", metavar="TEXT", help="system message before it")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="most tokens (default: what the context holds)")
    parser.add_argument("--seed", type=int, metavar="N", help="same seed, same text (default: 0)")
    parser.add_argument("--ignore-eos", action="store_true", help="go on to --max-tokens whatever the model writes")
    add_connection_options(parser)
    about = "tries after a first that found the server unavailable (default: %(default)s)"
    parser.add_argument("--retries", type=int, default=Retry.attempts - 1, metavar="N", help=about)
    parser.add_argument("--json", action="store_true", help="one JSON object per line for every response")
    parser.add_argument("--no-drafts", action="store_true", help="without provisional canvases")
    _add_form_options(parser)
    add_sampler_options(parser)
    given = parser.parse_args(arguments)
    if given.raw and given.system is not None:
        parser.error("--system needs the chat template: leave out --raw")
    tls = tls_files(given, parser)
    if given.retries < 0:
        parser.error("--retries: 0 or more")
    output: Output = "json" if given.json else "live" if sys.stdout.isatty() else "text"
    inputs: dict[str, Any] = {name: getattr(given, name) for name in ("max_tokens", "seed", "ignore_eos", *SAMPLER)}
    inputs["drafts"] = output != "text" and not given.no_drafts
    inputs["grammar"] = _grammar(given, parser)
    if given.raw:
        inputs["prompt"] = given.prompt
    else:
        system = [] if given.system is None else [{"role": "system", "content": given.system}]
        inputs["messages"] = [*system, {"role": "user", "content": given.prompt}]
    inputs["request_id"] = f"diffgemma-{os.getpid()}"
    return CommandOptions(given.url, tls, Retry(attempts=given.retries + 1), inputs, output)


def _add_form_options(parser: argparse.ArgumentParser) -> None:
    form = parser.add_argument_group("form of the answer (default: any)").add_mutually_exclusive_group()
    form.add_argument("--schema", metavar="FILE", help="JSON of this JSON Schema")
    form.add_argument("--json-object", action="store_true", help="any JSON object")
    form.add_argument("--regex", metavar="REGEX", help="text that this regular expression matches, the whole of it")
    form.add_argument("--choice", metavar="TEXT", nargs="+", help="one of these texts")


def _grammar(given: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[str, Any] | None:
    if given.schema is not None:
        try:
            return {"json_schema": json.loads(Path(given.schema).read_text())}
        except (OSError, ValueError, RecursionError) as error:
            parser.error(f"--schema {given.schema}: a file with a JSON Schema is wanted: {error}")
    if given.json_object:
        return {"json_object": True}
    if given.regex is not None:
        return {"regex": given.regex}
    return None if given.choice is None else {"choice": given.choice}


def add_connection_options(parser: argparse.ArgumentParser) -> None:
    """Where the server is, and TLS."""
    parser.add_argument("--url", default=DEFAULT_URL, metavar="HOST:PORT", help="gRPC endpoint (default: %(default)s)")
    tls = parser.add_argument_group("TLS (default: without)")
    tls.add_argument("--tls-ca", metavar="FILE", help="certificates that the server's must be signed by, in PEM")
    tls.add_argument("--tls-cert", metavar="FILE", help="this client's certificate, for a server that asks for one")
    tls.add_argument("--tls-key", metavar="FILE", help="its key")
    tls.add_argument("--tls-name", metavar="NAME", help="what the server's certificate is for, if not for its host")


def add_sampler_options(parser: argparse.ArgumentParser) -> None:
    """How canvases are denoised: the names of :data:`SAMPLER`."""
    sampler = parser.add_argument_group("denoising (default: the checkpoint's values)")
    for name, (kind, about) in SAMPLER.items():
        sampler.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N" if kind is int else "X", help=about)


def tls_files(given: argparse.Namespace, parser: argparse.ArgumentParser) -> Tls | None:
    """The files of the options of :func:`add_connection_options`; None without.

    Raises:
        FieldError: for a certificate without its key.
    """
    if given.tls_ca is None and (given.tls_cert or given.tls_key):
        parser.error("--tls-cert and --tls-key need --tls-ca")
    return None if given.tls_ca is None else Tls(given.tls_ca, given.tls_cert, given.tls_key, given.tls_name)
