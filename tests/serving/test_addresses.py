"""Hosts, ports and folders that a server is given: they work, or are refused at once, with the reason."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from nemo_diffgemma.errors import FieldError
from tests.serving.test_launcher import PORTS, children, launched, wait_until
from triton_repo.addresses import at, bound, check_different, free_ports, resolved, unproxied
from triton_repo.client.blocking import BlockingClient
from triton_repo.launcher.server import Server
from triton_repo.loopback import is_own


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("localhost", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("0.0.0.0", "0.0.0.0"),
        ("*", "0.0.0.0"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("::", "::"),
    ],
)
def test_a_host_becomes_its_address(host: str, address: str) -> None:
    assert resolved("--host", host) == address


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        "no.such.host.invalid",
        "203.0.113.9",
        "2001:db8::1",
        "fe80::1%lo",
        "[::1",
        "ümlaut",
        "a" * 300,
        "a b",
    ],
)
def test_a_host_that_is_none_of_this_machine(host: str) -> None:
    with pytest.raises(FieldError, match="--host: .* cannot be used; allowed: an address of this machine, or a name"):
        resolved("--host", host)


def test_ports() -> None:
    with bound("--http-port", "127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        for number, allowed in (
            (port, "a free port on 127.0.0.1 (Address"),
            (70000, "a port from 1"),
            (-1, "a port f"),
        ):
            with pytest.raises(FieldError) as error:
                free_ports({"--http-port": ("127.0.0.1", number)})
            assert str(error.value).startswith(f"--http-port: {number} cannot be used; allowed: {allowed}")
    with pytest.raises(FieldError, match="--grpc-port: 8000 cannot be used; allowed: another port than --http-port's"):
        check_different({"--http-port": 8000, "--metrics-port": 0, "--health-port": 0, "--grpc-port": 8000})
    found = free_ports({f"--{i}": ("127.0.0.1", 0) for i in range(50)})
    assert len(set(found.values())) == 50
    assert (at("::1", 5), at("127.0.0.1", 5)) == ("[::1]:5", "127.0.0.1:5")


def test_this_machine_is_reached_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "a.example, 127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "b.example")
    said = unproxied("10.1.2.3")
    assert said["no_proxy"] == said["NO_PROXY"] == "a.example,127.0.0.1,b.example,localhost,::1,10.1.2.3"
    own = {name for name in ("localhost", "127.0.0.1", "[::1]", "203.0.113.9", "example.org") if is_own(name)}
    assert own == {"localhost", "127.0.0.1", "[::1]"}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("203.0.113.9", 9))  # sends nothing
        assert is_own(probe.getsockname()[0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host=no.such.host.invalid"], "--host: 'no.such.host.invalid' cannot"),
        (["--host=203.0.113.9", "--insecure"], "--host: '203.0.113.9' cannot"),
        (["--http-port=70000"], "--http-port: 70000 cannot be used; allowed: a port from 1 to 65535, or 0"),
        (["--openai-port=-1"], "--openai-port: -1 cannot"),
        (["--stall-timeout=2.9"], "--stall-timeout: 2.9 cannot be used; allowed: at least 3 s"),
        (["--health-port=8765", "--openai-port=8765"], "--openai-port: 8765 cannot be used; allowed: another port"),
        (["--metrics-port=8765", "--health-port=8765"], "--health-port: 8765 cannot be used; allowed: another port"),
    ],
)
def test_the_launcher_refuses_at_once(tmp_path: Path, options: list[str], said: str) -> None:
    command = [sys.executable, "-m", "triton_repo.launcher.serve", f"--engine={tmp_path}", *PORTS, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert done.stderr.startswith(f"error: {said}")


@pytest.mark.parametrize("name", ["a b", "a;touch x", "ü", "$(id)", "'", '"', "\\", "a\nb", "日本", "a&b", "#", "*"])
def test_folders_that_tritonserver_could_not_use(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    command = [sys.executable, "-m", "triton_repo.launcher.serve", f"--engine={tmp_path}", *PORTS]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "TMPDIR": str(folder)}
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: TMPDIR: ")
    assert not list(folder.iterdir())


@pytest.mark.server
@pytest.mark.slow
def test_ipv6_and_an_engine_under_a_name_that_is_not_ascii(demo_bundle: Path, tmp_path: Path) -> None:
    engine = tmp_path / "größe 日本;$(x)" / "engine"
    shutil.copytree(demo_bundle, engine)
    with launched(engine, "--host=::1", "--openai-port=0") as (process, lines):
        assert lines[-1].startswith("try: "), process.communicate()[1]
        text = "\n".join(lines)
        assert text.count("[::1]:") >= 6
        api = next(line.removeprefix("OpenAI's API: ") for line in lines if line.startswith("OpenAI"))
        done = httpx.post(
            f"{api}/completions", json={"model": "diffgemma", "prompt": "red", "max_tokens": 1}, timeout=60
        )
        assert done.status_code == 200
        with BlockingClient(lines[-1].split()[3]) as client:
            assert list(client.generate("red", max_tokens=1, ignore_eos=True))[-1].finish_reason == "length"
        health = next(line for line in lines if line.startswith("health: ")).split()[1].rstrip(";")
        assert httpx.get(health).status_code == 200
        assert len(children(process.pid)) == 2


@pytest.mark.server
@pytest.mark.slow
def test_a_name_and_proxies(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Server(demo_bundle, host="localhost", http_port=0, grpc_port=0, metrics_port=0, openai_port=0) as server:
        assert server.openai_url.startswith("http://127.0.0.1:")
        body = {"model": "diffgemma", "prompt": "red", "max_tokens": 1}
        assert httpx.post(f"{server.openai_url}/completions", json=body, trust_env=False, timeout=60).status_code == 200
        environment = Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")
        assert b"no_proxy=localhost,127.0.0.1,::1" in environment
        wait_until(server.gateway_answers, 10)
