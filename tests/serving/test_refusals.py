"""Whatever cannot be honoured is refused, by name, with what to do instead."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_diffgemma.errors import FieldError
from triton_repo.client.blocking import BlockingClient
from triton_repo.client.client import GenerationError
from triton_repo.launcher.server import Server
from triton_repo.python_backend.parse import parse
from triton_repo.tensors import MOST_STEPS, UNSUPPORTED, Unsupported
from trtllm_build import Engine


def example(unsupported: Unsupported) -> Any:
    """A value that asks for something."""
    if unsupported.tensor.dtype == "BOOL":
        return not unsupported.neutral[0]
    return {"STRING": "stop", "INT32": 5, "FP32": 0.75}[unsupported.tensor.dtype]


def refusal(client: BlockingClient, **inputs: Any) -> str:
    with pytest.raises(GenerationError) as error:
        list(client.generate(**inputs))
    return str(error.value)


@pytest.mark.server
@pytest.mark.parametrize("unsupported", UNSUPPORTED, ids=lambda unsupported: unsupported.tensor.name)
def test_each_unsupported_input_is_refused_by_name(client: BlockingClient, unsupported: Unsupported) -> None:
    name, value = unsupported.tensor.name, example(unsupported)
    text = refusal(client, prompt="red", max_tokens=1, **{name: value})
    assert text.startswith(f"{name}: {value!r} cannot be used; allowed: ")
    assert text.endswith(f"fix: {unsupported.instead}")


@pytest.mark.server
def test_neutral_values_are_accepted(client: BlockingClient) -> None:
    neutral = {u.tensor.name: u.neutral[0] for u in UNSUPPORTED if u.neutral}
    assert {"beam_width", "repetition_penalty", "bad_words", "top_k"} < set(neutral)
    (served,) = client.generate("red", max_tokens=1, ignore_eos=True, stream=False, **neutral)
    assert served.finish_reason == "length"


MESSAGES = 'a JSON list like [{"role": "user", "content": "..."}]'


@pytest.mark.server
@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (
            {},
            "prompt: 'none of them' cannot be used; allowed: exactly one of text_input, messages, input_ids; "
            "fix: send one of them",
        ),
        (
            {"prompt": "red", "messages": [{"role": "user", "content": "red"}]},
            "prompt: 'text_input and messages' cannot be used; allowed: exactly one of text_input, messages, "
            "input_ids; fix: send one of them",
        ),
        (
            {"prompt": ""},
            "prompt: 'no tokens' cannot be used; allowed: at least one token; fix: send a prompt that is not empty",
        ),
        (
            {"prompt": "red", "max_tokens": 0},
            "max_tokens: 0 cannot be used; allowed: an integer >= 1; fix: pass max_tokens=1",
        ),
        (
            {"prompt": "red", "max_tokens": -7},
            "max_tokens: -7 cannot be used; allowed: an integer >= 1; fix: pass max_tokens=1",
        ),
        (
            {"input_ids": [3, 4, 5], "max_tokens": 254},
            "max_tokens: 254 cannot be used; allowed: at most 253 after a prompt of 3 tokens (context 256); "
            "fix: lower max_tokens, shorten the prompt, or build with a larger gpu.limits.context",
        ),
        (
            {"input_ids": [3, 300]},
            "input_ids: 300 cannot be used; allowed: token ids from 0 to 299; "
            "fix: tokenize with this checkpoint's tokenizer",
        ),
        (
            {"prompt": "red", "max_denoising_steps": 0},
            "max_denoising_steps: 0 cannot be used; allowed: an integer >= 1; fix: pass max_denoising_steps=1",
        ),
        (
            {"prompt": "red", "t_max": 0.3},
            "t_max: 0.3 cannot be used; allowed: at least t_min (0.4); fix: pass t_max=0.4",
        ),
        (
            {"prompt": "red", "entropy_bound": -0.5},
            "entropy_bound: -0.5 cannot be used; allowed: a finite number >= 0; fix: pass entropy_bound=0.1",
        ),
        (
            {"prompt": "red", "drafts": True, "stream": False},
            "drafts: True cannot be used; allowed: false without stream; fix: pass stream=true",
        ),
        (
            {"prompt": "red", "seed": 1, "random_seed": 2},
            "random_seed: 2 cannot be used; allowed: the same as seed (1); fix: send one of the two",
        ),
        (
            {"messages": []},
            f"messages: '[]' cannot be used; allowed: {MESSAGES}; fix: send at least one message",
        ),
        (
            {"messages": [{"role": "user"}]},
            "messages[0]: {'role': 'user'} cannot be used; allowed: an object with role and content, an assistant's "
            "perhaps with tool_calls, a tool's with tool_call_id and name, no more; "
            f"fix: send {MESSAGES}",
        ),
        (
            {"messages": [{"role": "wizard", "content": "red"}]},
            "messages[0].role: 'wizard' cannot be used; allowed: system or user or assistant or tool; "
            "fix: use one of these roles",
        ),
        (
            {"messages": [{"role": "user", "content": ["red"]}]},
            "messages[0].content: ['red'] cannot be used; allowed: a string without lone surrogates; fix: send text",
        ),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(client: BlockingClient, inputs: dict[str, Any], text: str) -> None:
    assert refusal(client, **inputs) == text


@pytest.mark.server
def test_a_prompt_that_alone_exceeds_the_context(client: BlockingClient) -> None:
    assert "prompt: '300 tokens' cannot be used; allowed: at most 255 tokens (context 256)" in refusal(
        client, input_ids=[3] * 300
    )


def test_what_no_client_of_ours_sends(engine: Engine) -> None:
    """Inputs as raw tensors: undecodable text, JSON that is none, a parameter instead of an input."""

    def refused(arrays: dict[str, Any], parameters: dict[str, object]) -> str:
        with pytest.raises(FieldError) as error:
            parse({name: np.array([[value]], dtype=object) for name, value in arrays.items()}, parameters, engine)
        return str(error.value)

    assert refused({"text_input": b"red \xff"}, {}) == (
        "text_input: b'red \\xff' cannot be used; allowed: UTF-8 text; fix: encode it as UTF-8 (invalid start byte)"
    )
    assert refused({"messages": b'[{"role": '}, {}) == (
        f"messages: '[{{\"role\": ' cannot be used; allowed: {MESSAGES}; "
        "fix: correct the JSON: Expecting value: line 1 column 11 (char 10)"
    )
    assert refused({"messages": b'{"role": "user"}'}, {}).startswith('messages: \'{"role": "user"}\' cannot be used')
    assert "correct the JSON: maximum recursion depth" in refused({"messages": b"[" * 60_000}, {})
    assert refused({"text_input": b"r", "client": b"x" * 1025}, {}) == (
        "client: '1025 bytes' cannot be used; allowed: at most 1024 bytes; fix: shorten it"
    )
    assert refused({"text_input": b"r" * (16 * 2**20 + 1)}, {}).startswith("text_input: '16777217 bytes' cannot be")
    text = refused({"text_input": b"red"}, {"max_new_tokens": 5})
    assert text.startswith("max_new_tokens: 5 cannot be used; allowed: only these inputs: text_input, messages, ")
    assert text.endswith("; fix: leave it out")


def test_lists_are_bounded(engine: Engine) -> None:
    ids = np.array([[3]], dtype=np.int32)
    for name, many in (("stop_words", np.array([[b"a"] * 65])), ("stop_token_ids", np.zeros((1, 1025), np.int32))):
        with pytest.raises(FieldError, match=f"{name}: '{many.size} elements' cannot be used; allowed: at most "):
            parse({"input_ids": ids, name: many}, {}, engine)


@pytest.mark.parametrize("name", ["max_denoising_steps", "stability_threshold"])
def test_steps_are_bounded(engine: Engine, name: str) -> None:
    """One request must not keep its place for as long as its client stays."""
    prompt = {"input_ids": np.array([[3]], np.int32)}
    most = parse({**prompt, name: np.array([[MOST_STEPS]], np.int32)}, {}, engine)
    assert getattr(most.request.sampler, name) == MOST_STEPS
    for steps in (MOST_STEPS + 1, 2**31 - 1):
        with pytest.raises(FieldError, match=f"^{name}: {steps} cannot be used; allowed: at most {MOST_STEPS}; fix: "):
            parse({**prompt, name: np.array([[steps]], np.int32)}, {}, engine)


def test_values_that_fit_no_tensor_are_refused_before_they_are_sent() -> None:
    with BlockingClient("127.0.0.1:1") as client:
        for inputs, text in (
            ({"seed": -1}, "seed: -1 cannot be used; allowed: integers from 0 to 18446744073709551615; "),
            ({"max_tokens": 1.5}, "max_tokens: 1.5 cannot be used; allowed: integers from -2147483648 to 2147483647; "),
            ({"t_min": float("nan")}, "t_min: nan cannot be used; allowed: finite numbers; fix: pass t_min as such"),
            ({"drafts": 1}, "drafts: 1 cannot be used; allowed: True or False; fix: pass drafts as such"),
            ({"nonsense": 1}, "nonsense: 1 cannot be used; allowed: one of text_input, messages, "),
        ):
            with pytest.raises(FieldError) as error:
                client.generate("red", **inputs)
            assert str(error.value).startswith(text)


def test_a_server_that_is_not_there() -> None:
    expected = (
        "url: '127.0.0.1:1' cannot be used; allowed: the host:port of a running server; "
        "fix: start one: make serve (or diffgemma-serve --engine DIR)"
    )
    with BlockingClient("127.0.0.1:1") as client:
        with pytest.raises(FieldError) as error:
            list(client.generate("red"))
        assert str(error.value) == expected
        with pytest.raises(FieldError) as error:
            client.server_metadata()
        assert str(error.value) == expected


def test_a_port_in_use_and_a_missing_bundle_stop_the_launcher_before_it_starts(demo_bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(FieldError) as error, Server(demo_bundle, http_port=0, grpc_port=port, metrics_port=0):
            pass
        assert str(error.value) == (
            f"--grpc-port: {port} cannot be used; allowed: a free port on 127.0.0.1 (Address already in use)"
            "; fix: stop what listens there, or pass --grpc-port 0 to take any free port"
        )
    with pytest.raises(FieldError, match=r"engine: .* a bundle directory with a manifest.json"), Server("/nowhere"):
        pass


def test_a_log_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    for log in (tmp_path, tmp_path / "missing" / "log"):
        with pytest.raises(FieldError, match=f"^--log-file: '{log}' cannot be used; allowed: a file in a folder"):
            Server(tmp_path, log_file=log)
