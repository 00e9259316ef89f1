"""Options of OpenAI's endpoint that the launcher hands on to its process."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from triton_repo import web
from triton_repo.gateway.options import parse


@pytest.mark.parametrize("given", [[], ["--keep-alive=90", "--cors-origin=https://a.example", "--cors-origin=*"]])
def test_the_gateway_reads_what_the_launcher_was_told(given: list[str]) -> None:
    parser = argparse.ArgumentParser()
    web.add(parser)
    told = parser.parse_args(given)
    read = parse(web.passed_on(told))
    assert (read.keep_alive, read.cors_origin) == (told.keep_alive, told.cors_origin)
    assert read.keep_alive > 60


def test_the_launcher_refuses_a_wrong_origin_before_anything_starts() -> None:
    command = [sys.executable, "-m", "triton_repo.launcher", "--engine=/nowhere", "--cors-origin=chat.example"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    said = "error: --cors-origin: 'chat.example' cannot be used; allowed: scheme://host or scheme://host:port, or * for"
    assert (done.returncode, done.stderr.startswith(said)) == (2, True), done.stderr
