"""TLS and mutual TLS, what only an operator may do, and what a request cannot reach."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest
import tritonclient.grpc as triton
import trustme
from tritonclient.utils import InferenceServerException

from nemo_diffgemma.errors import FieldError
from triton_repo.client.blocking import BlockingClient
from triton_repo.client.client import GenerationError, Refused, Retry, Tls, Unreachable
from triton_repo.launcher.server import Server
from triton_repo.launcher.tls import ServerTls

ONCE = Retry(attempts=1)
NAME = "diffgemma.example"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A CA, a server's certificate for another name than its address, a client's; and a stranger's CA."""
    folder = tmp_path_factory.mktemp("tls")
    ca, stranger = trustme.CA(), trustme.CA()
    server, client = ca.issue_cert(NAME), ca.issue_cert("client@example.org")
    paths = {name: folder / f"{name}.pem" for name in ("ca", "cert", "key", "client_cert", "client_key", "stranger")}
    ca.cert_pem.write_to_path(str(paths["ca"]))
    stranger.cert_pem.write_to_path(str(paths["stranger"]))
    for issued, cert, key in ((server, "cert", "key"), (client, "client_cert", "client_key")):
        issued.private_key_pem.write_to_path(str(paths[key]))
        for blob in issued.cert_chain_pems:
            blob.write_to_path(str(paths[cert]), append=True)
    return paths


def answer(url: str, tls: Tls | None) -> str | None:
    with BlockingClient(url, tls=tls, retry=ONCE) as client:
        return list(client.generate("red", max_tokens=2, ignore_eos=True))[-1].finish_reason


@pytest.mark.server
@pytest.mark.slow
def test_mutual_tls_from_the_client_to_the_engine(demo_bundle: Path, files: dict[str, Path]) -> None:
    tls = ServerTls(files["cert"], files["key"], client_ca=files["ca"], ca=files["ca"])
    whole = Tls(files["ca"], files["client_cert"], files["client_key"], NAME)
    with Server(demo_bundle, http_port=0, grpc_port=0, metrics_port=0, openai_port=0, tls=tls) as server:
        assert answer(server.grpc_url, whole) == "length"
        for wrong in (
            None,  # plain text
            Tls(files["ca"], name=NAME),  # without a certificate
            Tls(files["stranger"], files["client_cert"], files["client_key"], NAME),  # who is this server?
            Tls(files["ca"], files["client_cert"], files["client_key"]),  # another name
        ):
            with pytest.raises(Unreachable):
                answer(server.grpc_url, wrong)
        # Triton's HTTP cannot speak TLS, so it stays where it is safe, whatever --host says.
        assert server.http_url.startswith("http://127.0.0.1:")
        # The gateway asks for a certificate too, and is itself a client of the gRPC endpoint.
        import httpx

        verify = httpx.create_ssl_context(verify=str(files["ca"]))
        verify.check_hostname = False
        with httpx.Client(verify=verify) as stranger, pytest.raises(httpx.HTTPError):
            stranger.get(f"{server.openai_url}/models")
        verify.load_cert_chain(files["client_cert"], files["client_key"])
        with httpx.Client(verify=verify) as known:
            body = {"model": "diffgemma", "prompt": "red", "max_tokens": 2, "ignore_eos": True}
            done = known.post(f"{server.openai_url}/completions", json=body, timeout=60)
        assert done.status_code == 200, done.text
        assert done.json()["usage"]["completion_tokens"] == 2


def test_files_that_are_not_there(files: dict[str, Path]) -> None:
    with pytest.raises(FieldError, match=r"--tls-key: '/nowhere' cannot be used; allowed: a file in PEM"):
        ServerTls(files["cert"], Path("/nowhere"))
    with pytest.raises(FieldError, match="--tls-ca: None cannot be used; allowed: with --openai-port and TLS"):
        Server("/bundle", openai_port=0, tls=ServerTls(files["cert"], files["key"]))


@pytest.mark.server
def test_what_only_an_operator_may_do(server: Server) -> None:
    with triton.InferenceServerClient(server.grpc_url) as client:
        for forbidden in (
            lambda: client.load_model("diffgemma"),
            lambda: client.unload_model("diffgemma"),
            lambda: client.get_model_repository_index(),
            lambda: client.register_system_shared_memory("x", "/x", 8),
            lambda: client.get_system_shared_memory_status(),
            lambda: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
            lambda: client.update_log_settings({"log_verbose_level": 9}),
        ):
            with pytest.raises(InferenceServerException, match="restricted"):
                forbidden()
        assert client.is_model_ready("diffgemma")
        assert client.get_model_config("diffgemma").config.name == "diffgemma"
    for path in ("repository/index", "repository/models/diffgemma/unload", "logging", "systemsharedmemory/status"):
        request = urllib.request.Request(f"{server.http_url}/v2/{path}", data=b"{}")
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request, timeout=30)
        assert error.value.code in (403, 405)


@pytest.mark.server
@pytest.mark.parametrize("text", ["{{ 7 * 7 }}", "{% include '/etc/hostname' %}", "../../../../etc/hostname", "$(id)"])
def test_text_is_text(client: BlockingClient, text: str) -> None:
    """No template and no path: what a user says is encoded as it stands."""
    said = [{"role": "user", "content": text}]
    plain = [{"role": "user", "content": "x"}]
    lengths = [
        list(client.generate(messages=messages, max_tokens=1, ignore_eos=True))[-1].num_input_tokens
        for messages in (said, plain)
    ]
    body = list(client.generate(text, max_tokens=1, ignore_eos=True))[-1].num_input_tokens
    single = list(client.generate("x", max_tokens=1, ignore_eos=True))[-1].num_input_tokens
    assert None not in (*lengths, body, single)
    assert lengths[0] - lengths[1] == body - single  # type: ignore[operator]


@pytest.mark.server
def test_names_are_names(server: Server, client: BlockingClient) -> None:
    """A model or a version is looked up, never opened."""
    with pytest.raises(Refused):
        list(client.generate("red", model="../diffgemma"))
    for path in ("..%2F..%2Fetc%2Fpasswd", "diffgemma/versions/..%2F1"):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{server.http_url}/v2/models/{path}/config", timeout=30)
        assert error.value.code in (400, 404)
        assert b"root:" not in error.value.read()


@pytest.mark.server
def test_what_is_too_large_is_refused_unread(client: BlockingClient) -> None:
    for inputs, text in (
        ({"prompt": "r" * (16 * 2**20 + 1)}, "text_input: '16777217 bytes' cannot be used; allowed: at most 16777216"),
        ({"prompt": "red", "stop_words": ["x"] * 65}, "stop_words: '65 elements' cannot be used; allowed: at most 64"),
        ({"prompt": "red", "client": "c" * 1025}, "client: '1025 bytes' cannot be used; allowed: at most 1024 bytes"),
    ):
        with pytest.raises(GenerationError) as error:
            list(client.generate(**inputs))
        assert str(error.value).startswith(text)
