"""API keys through the real gateway and tritonserver, with OpenAI's own client."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from tests.serving.gateway import request, running
from triton_repo.keys import new
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
