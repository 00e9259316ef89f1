"""``diffgemma decide``: a policy's questions about a text."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nemo_diffgemma.errors import FieldError
from triton_repo.client.blocking import BlockingClient
from triton_repo.client.decisions import Decided
from triton_repo.client.failures import GenerationError
from triton_repo.client.options import add_connection_options, tls_files
from triton_repo.client.policy import Policy, differences, read_policy, verdict

_ABOUT = """\
Ask a running diffgemma server the questions of a policy file about a text (INPUT, or standard input), and show its
answers with their probabilities. --lint looks at the file alone, without a server; --test asks about the texts of its
`tests` and exits with 1 when an answer is another than the file says."""


def main(arguments: Sequence[str]) -> int:
    """Ask, check or test.

    Returns:
        0; 1 when the server refuses or fails or a test fails, 2 for a mistake here, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog="diffgemma decide", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", metavar="INPUT", nargs="?", help="the text (default: standard input)")
    parser.add_argument("--questions", metavar="FILE", type=Path, required=True, help="the policy, YAML or JSON")
    parser.add_argument("--json", action="store_true", help="print the answers as JSON")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--lint", action="store_true", help="check the file, and ask nothing")
    what.add_argument("--test", action="store_true", help="ask about the texts of the file's tests")
    add_connection_options(parser)
    given = parser.parse_args(arguments)
    if given.input is not None and (given.lint or given.test):
        parser.error("INPUT: nothing with --lint and --test")
    try:
        tls = tls_files(given, parser)
        policy = read_policy(given.questions)
        if given.lint:
            _say(policy, f"{len(policy.questions)} questions, {len(policy.tests)} tests")
            return 0
        with BlockingClient(given.url, tls=tls) as client:
            if given.test:
                return _test(policy, client)
            text = sys.stdin.read() if given.input is None else given.input
            found = client.decide(text, policy.questions, **policy.options)
    except KeyboardInterrupt:
        return 130
    except (FieldError, GenerationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, FieldError) else 1
    if given.json:
        print(json.dumps({"policy": policy.name, "version": policy.version, "answers": found.answers}))
    else:
        _show(found)
    return 0


def _test(policy: Policy, client: BlockingClient) -> int:
    wrong = []
    for test in policy.tests:
        found = client.decide(test.text, policy.questions, **policy.options)
        wrong += differences(test, found.answers)
    for line in wrong:
        print(line)
    _say(policy, f"{len(policy.tests)} texts, {len(wrong)} wrong answers")
    return 1 if wrong else 0


def _say(policy: Policy, what: str) -> None:
    print(f"{policy.name} version {policy.version}: {what}")


def _show(found: Decided) -> None:
    table = Table("question", "answer", "probability", "label mass", box=None)
    for answer in found.answers:
        said = verdict(answer)
        shown = f"{said} (score {answer['score']:.2f})" if answer["type"] == "score" else json.dumps(said)
        mass = answer["diagnostics"]["label_mass"]
        table.add_row(str(answer["name"]), shown, f"{_probability(answer):.3f}", f"{mass:.3f}")
    Console(highlight=False).print(table)


def _probability(answer: dict[str, Any]) -> float:
    if answer["type"] == "predicate":
        return float(max(answer["probability"], 1 - answer["probability"]))
    return float(max(p["probability"] for p in answer["probabilities"]))
