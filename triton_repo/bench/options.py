"""The command line of ``diffgemma bench``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_diffgemma.errors import require
from triton_repo.bench import prompts
from triton_repo.bench.picture import check_drawable
from triton_repo.client.options import SAMPLER, add_connection_options, add_sampler_options, tls_files
from triton_repo.client.settings import Tls

_ABOUT = """\
Measure a running diffgemma server (start one with `diffgemma-serve --engine DIR`): send it requests, print percentiles.

With --rate requests arrive at random (Poisson), whatever has become of those before: an open loop, as many users make
it. Times are then measured from when a request was due, not from when it was sent, so that a server that stalls cannot
hide the requests that would have come meanwhile. With --concurrency that many clients send their next request when
their last has been answered: a closed loop, which shows the most that a server gives, and no queue.

Every request is streamed, and tried once. The request of number N, from 0, has the seed SEED + N. Ctrl-C ends the load
and prints what there is."""


@dataclass(frozen=True)
class BenchOptions:
    """A parsed command line, checked.

    Args:
        url, tls: where the server is.
        prompts: inputs that say what is asked.
        inputs: inputs of every request.
        rate: arrivals per second of the open loop; None for the closed one.
        concurrency: clients of the closed loop.
        requests: how many; None for as many as ``duration`` holds.
        duration: seconds after which none is sent any more; None for no limit.
        seed: of the first request, and of what is drawn here.
        warm_up: requests before the load, which are not counted.
        json, png: files to write; None for none.
        settings: what was asked for, for the JSON.
    """

    url: str
    tls: Tls | None
    prompts: prompts.Prompts
    inputs: dict[str, Any]
    rate: float | None
    concurrency: int
    requests: int | None
    duration: float | None
    seed: int
    warm_up: int
    json: Path | None
    png: Path | None
    settings: dict[str, Any]


def parse_arguments(arguments: Sequence[str] | None) -> BenchOptions:
    """Read the command line; exits with status 2 and the usage where it has the wrong form.

    Raises:
        FieldError: for a value out of range, a file that cannot be read or written.
    """
    parser = argparse.ArgumentParser(
        prog="diffgemma bench", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arrivals = parser.add_mutually_exclusive_group()
    arrivals.add_argument("--rate", type=float, metavar="R", help="open loop: R requests per second on average")
    arrivals.add_argument(
        "--concurrency", type=int, default=8, metavar="N", help="closed loop of N clients (default: %(default)s)"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--requests", type=int, metavar="N", help="send N requests (default: 100)")
    length.add_argument("--duration", type=float, metavar="S", help="send requests for S seconds")
    asked = parser.add_mutually_exclusive_group()
    about = 'a prompt per line: {"messages": [...]}, {"prompt": "..."} or plain text; in turn, by the chat template'
    asked.add_argument("--prompts", metavar="FILE", help=about)
    about = "without a file: prompts of N random token ids (default: %(default)s)"
    asked.add_argument("--input-tokens", type=int, default=128, metavar="N", help=about)
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N", help="most tokens (default: %(default)s)")
    parser.add_argument("--ignore-eos", action="store_true", help="go on to --max-tokens whatever the model writes")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: %(default)s)")
    about = "requests before the load that are not counted (default: %(default)s)"
    parser.add_argument("--warm-up", type=int, default=2, metavar="N", help=about)
    parser.add_argument("--json", metavar="FILE", help="write figures and every request there")
    parser.add_argument("--png", metavar="FILE", help="draw latencies, and throughput over time")
    add_connection_options(parser)
    add_sampler_options(parser)
    given = parser.parse_args(arguments)
    tls = tls_files(given, parser)
    _check(given)
    requests = given.requests if given.requests or given.duration else 100
    if given.prompts is None:
        source = prompts.synthetic(given.input_tokens, given.seed)
    else:
        source = prompts.from_file(Path(given.prompts))
    inputs = {name: getattr(given, name) for name in ("max_tokens", "ignore_eos", *SAMPLER)}
    load = {"rate": given.rate} if given.rate else {"concurrency": given.concurrency}
    what = {"input_tokens": given.input_tokens} if given.prompts is None else {"prompts": given.prompts}
    rest = {"requests": requests, "duration": given.duration, "seed": given.seed, "warm_up": given.warm_up}
    return BenchOptions(
        url=given.url,
        tls=tls,
        prompts=source,
        inputs=inputs,
        rate=given.rate,
        concurrency=given.concurrency,
        requests=requests,
        duration=given.duration,
        seed=given.seed,
        warm_up=given.warm_up,
        json=_output("json", given.json),
        png=_output("png", given.png),
        settings={**load, **what, **rest, **{name: value for name, value in inputs.items() if value is not None}},
    )


def _check(given: argparse.Namespace) -> None:
    for name in ("rate", "duration"):
        value = getattr(given, name)
        good = value is None or (value > 0 and math.isfinite(value))
        require(good, field=name, value=value, allowed="a number > 0", fix=f"pass --{name} 10")
    for name, least in (("concurrency", 1), ("requests", 1), ("input_tokens", 1), ("max_tokens", 1), ("warm_up", 0)):
        value = getattr(given, name)
        option = f"--{name.replace('_', '-')}"
        require(
            value is None or value >= least,
            field=name,
            value=value,
            allowed=f"an integer >= {least}",
            fix=f"pass {option} {least}",
        )
    require(
        0 <= given.seed < 2**63,
        field="seed",
        value=given.seed,
        allowed="an integer from 0 to 2**63 - 1",
        fix="pass --seed 0",
    )


def _output(name: str, text: str | None) -> Path | None:
    if text is None:
        return None
    path = Path(text)
    good = path.parent.is_dir() and not path.is_dir()
    require(good, field=name, value=text, allowed="a file in a folder that exists", fix=f"mkdir -p {path.parent}")
    if name == "png":
        check_drawable(path)
    return path
