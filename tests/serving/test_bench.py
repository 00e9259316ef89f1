"""diffgemma bench against a real server, as a user runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from triton_repo.launcher.server import Server

pytestmark = pytest.mark.server


def bench(server: Server, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "triton_repo.cli", "bench", "--url", server.grpc_url, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def report(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_closed_loop_reports_every_request(server: Server, tmp_path: Path) -> None:
    options = ["--concurrency=3", "--requests=12", "--max-tokens=40", "--ignore-eos", "--max-denoising-steps=2"]
    done = bench(server, *options, "--input-tokens=20", f"--json={tmp_path / 'a.json'}", f"--png={tmp_path / 'a.png'}")
    assert (done.returncode, done.stderr.count("error")) == (0, done.stderr.count("0 errors"))
    assert "12 of 12 requests answered; errors: none" in done.stdout
    found = report(tmp_path / "a.json")
    assert sorted(r["index"] for r in found["requests"]) == list(range(12))
    for request in found["requests"]:
        assert request["outcome"] == "length"
        assert [block["tokens"] for block in request["blocks"]] == [16, 16, 8]
        assert min(block["steps"] for block in request["blocks"]) >= 1
    assert found["summary"]["first_block"]["count"] == 12
    assert found["summary"]["block"]["count"] == 24
    assert found["times_are_from"] == "sending"
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_an_open_loop_of_a_file_of_prompts(server: Server, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text('{"prompt": "red chair"}\ngreen table\n')
    options = [f"--prompts={tmp_path / 'prompts'}", f"--json={tmp_path / 'a.json'}", "--max-tokens=8"]
    done = bench(server, "--rate=40", "--duration=1", *options)
    assert done.returncode == 0
    assert "from the intended arrival" in done.stdout
    found = report(tmp_path / "a.json")
    assert found["summary"]["errors"] == {}
    assert found["summary"]["answered"] == len(found["requests"]) > 0
    assert all(r["due"] <= 1.0 for r in found["requests"])


def test_refusals_are_counted_and_shown(server: Server) -> None:
    done = bench(server, "--requests=4", "--max-tokens=100000", "--warm-up=0")
    assert done.returncode == 1
    assert "0 of 4 requests answered; errors: 4 refused" in done.stdout
    assert "max_tokens: 100000 cannot be used" in done.stdout
    warm_up = bench(server, "--requests=4", "--max-tokens=100000")
    assert (warm_up.returncode, warm_up.stdout) == (1, "")
    assert warm_up.stderr.startswith("error: max_tokens: 100000 cannot be used")


def test_control_c_prints_what_there_is(server: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "triton_repo.cli", "bench", "--url", server.grpc_url, "--duration=600"]
    options = ["--max-tokens=16", "--max-denoising-steps=1", f"--json={tmp_path / 'a.json'}"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=8)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in out
    found = report(tmp_path / "a.json")
    assert found["interrupted"] is True
    assert found["summary"]["answered"] == len(found["requests"]) > 0


def test_a_missing_server_is_one_line_and_status_2() -> None:
    command = [sys.executable, "-m", "triton_repo.cli", "bench", "--url=127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(
        "error: url: '127.0.0.1:1' cannot be used; allowed: the host:port of a running server"
    )
