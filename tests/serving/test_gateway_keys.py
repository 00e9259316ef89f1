"""API keys through the real gateway and tritonserver, with OpenAI's own client."""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.cases.serving.hostile import sent
from tests.cases.spellings import SPELLINGS
from tests.serving.gateway import Running, request, running
from tests.serving.test_launcher import wait_until
from triton_repo.keys import new
from triton_repo.launcher.scrape import running_requests
from triton_repo.launcher.server import Server

pytestmark = pytest.mark.server


def test_keys_from_openai_s_client_to_the_log(server: Server, tmp_path: Path) -> None:
    (ada, line), (bob, other) = new("ada"), new("bob")
    file = tmp_path / "keys"
    file.write_text(f"{line}\n{other}:tokens_per_minute=1\n")
    asked = {"model": "diffgemma", "prompt": "red", "max_tokens": 2, "extra_body": {"ignore_eos": True}}
    with running(server.grpc_url, tmp_path / "log", f"--api-key-file={file}") as gateway:

        def client(key: str) -> openai.OpenAI:
            return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)

        with client(ada) as known, client(bob) as limited, client("dg-nobody") as stranger:
            assert known.completions.create(**asked).usage.completion_tokens == 2
            assert [model.id for model in known.models.list()] == ["diffgemma"]
            with pytest.raises(openai.AuthenticationError) as wrong:
                stranger.completions.create(**asked)
            assert wrong.value.code == "invalid_api_key"
            limited.completions.create(**asked)
            with pytest.raises(openai.RateLimitError) as late:
                limited.completions.create(**asked)
            assert int(late.value.response.headers["retry-after"]) > 60
            known.completions.create(**asked)
            # taken away while it runs
            file.write_text(f"{other}\n")
            with pytest.raises(openai.AuthenticationError):
                known.models.list()
        status, headers, body = request(f"{gateway.url}/v1/models", headers={"x-request-id": "none"})
        assert (status, headers["www-authenticate"], body["error"]["param"]) == (401, "Bearer", None)
        # a body that nobody will read is no reason to cut the connection before the answer
        assert request(f"{gateway.url}/v1/completions", b"x" * 2**24)[0] == 401
        assert request(f"{gateway.url}/health")[0] == 200
        assert gateway.record("none")["error"] == "invalid_api_key"
        assert {record.get("key") for record in gateway.records()} == {"ada", "bob", None}
        log = gateway.log.read_text()
        assert all(key not in log for key in (ada, bob, "dg-nobody"))


QUESTION = {"type": "predicate", "instructions": "red?"}


def tokens(metrics_url: str) -> float:
    """That the engine has made."""
    with urllib.request.urlopen(metrics_url, timeout=60) as answer:
        text = answer.read().decode()
    return sum(map(float, re.findall(r"^diffgemma_output_tokens_total(?:\{.*\})? (\S+)$", text, re.MULTILINE)))


@pytest.mark.parametrize(
    ("path", "more", "begun"),
    [
        ("completions", {"prompt": "red", "max_tokens": 200, "ignore_eos": True, "max_denoising_steps": 512}, tokens),
        (
            "decisions",
            {"input": "red", "questions": [QUESTION] * 400},
            running_requests,
        ),
    ],
)
def test_who_hangs_up_pays_for_what_was_made(
    server: Server, tmp_path: Path, path: str, more: dict[str, Any], begun: Callable[[str], Any]
) -> None:
    key, line = new("ada")
    (tmp_path / "keys").write_text(f"{line}:tokens_per_minute=1\n")
    with running(server.grpc_url, tmp_path / "log", f"--api-key-file={tmp_path / 'keys'}") as gateway:
        before, url = begun(server.metrics_url), httpx.URL(gateway.url)
        assert url.port is not None
        body = json.dumps({"model": "diffgemma", **more})
        head = f"POST /v1/{path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nx-request-id: gone\r\n"
        head += f"authorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.create_connection((url.host, url.port), timeout=60) as one:
            one.sendall((head + body).encode())
            wait_until(lambda: begun(server.metrics_url) != before)
        record = gateway.record("gone")
        assert record["completion_tokens"] > 0
        assert record["prompt_tokens"] > 0
        status, _, answer = request(f"{gateway.url}/v1/models", headers={"authorization": f"Bearer {key}"})
        assert (status, answer["error"]["type"]) == (429, "tokens")


OPEN = (
    "/v1/models",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/decisions",
    "/v1/systemone",
    "/openapi.json",
)
ASKED = b'{"model": "diffgemma", "prompt": "red", "max_tokens": 1}'


@pytest.fixture(scope="module")
def locked(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, str]]:
    folder = tmp_path_factory.mktemp("locked")
    key, line = new("ada")
    (folder / "keys").write_text(f"{line}\n")
    with running(server.grpc_url, folder / "log", f"--api-key-file={folder / 'keys'}") as gateway:
        yield gateway, key


def status(gateway: Running, method: str, target: str, *headers: str) -> int:
    """Of an answer to a request that is written as it stands."""
    url = httpx.URL(gateway.url)
    assert url.port is not None
    lines = (f"{method} {target} HTTP/1.1", "Host: x", f"Content-Length: {len(ASKED)}", "Connection: close", *headers)
    head = "\r\n".join((*lines, "Content-Type: application/json", "", ""))
    return int(sent((url.host, url.port), head.encode() + ASKED).split()[1])


@pytest.mark.parametrize("name", SPELLINGS)
def test_no_spelling_of_an_address_goes_without_a_key(name: str, locked: tuple[Running, str]) -> None:
    gateway, _ = locked
    for path in OPEN:
        for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "post"):
            assert status(gateway, method, SPELLINGS[name](path)) in (400, 401)
    # what probes ask may be found under another spelling, and says no more there
    assert status(gateway, "POST", SPELLINGS[name]("/health")) in (400, 401, 405)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("AUTHORIZATION: Bearer {key}", 200),
        ("aUtHoRiZaTiOn: bearer {key}", 200),
        ("authorization:Bearer {key}", 200),
        ("authorization : Bearer {key}", 400),
        ("authorization: Bearer {key}x", 401),
        ("authorization: Basic {key}", 401),
        ("authorization: Bearer", 401),
        ("authorization: {key}", 401),
        ("x-authorization: Bearer {key}", 401),
        ("proxy-authorization: Bearer {key}", 401),
        ("x-original-url: /health", 401),
        ("x-forwarded-for: 127.0.0.1", 401),
        ("x-http-method-override: HEAD", 401),
        ("authorization: Bearer no\r\nauthorization: Bearer {key}", 401),
    ],
)
def test_the_header_of_a_key(header: str, expected: int, locked: tuple[Running, str]) -> None:
    gateway, key = locked
    assert status(gateway, "GET", "/v1/models", header.format(key=key)) == expected


@pytest.mark.parametrize("name", SPELLINGS)
def test_what_tritonserver_keeps_for_operators_is_not_here(name: str, locked: tuple[Running, str]) -> None:
    gateway, key = locked
    for path in ("/v2/repository/index", "/v2/logging", "/v2/models/diffgemma/generate"):
        for method in ("GET", "POST"):
            found = status(gateway, method, SPELLINGS[name](path), f"Authorization: Bearer {key}")
            assert found in (400, 404, 405)
