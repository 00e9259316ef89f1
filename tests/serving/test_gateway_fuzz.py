"""Requests made from the gateway's own OpenAPI description: documented answers only, and it lives on.

``GATEWAY_FUZZ_EXAMPLES`` is the number of requests to each endpoint; 10,000 take a long run.
"""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving.fuzzing import fuzzing
from tests.serving.gateway import Running, request

pytestmark = [pytest.mark.server, pytest.mark.slow]

CHECKS: list[Any] = [status_code_conformance, content_type_conformance, response_schema_conformance]
# By what each endpoint calls it.
LIMITS = {"max_tokens": 40, "max_completion_tokens": 40, "max_output_tokens": 40}
SETTINGS = fuzzing("GATEWAY_FUZZ_EXAMPLES", 40)


def tamed(body: Any, known: bool) -> Any:
    """The same request, most of them for a model that exists, and none that denoises for minutes."""
    if not isinstance(body, dict):
        return body
    changed = {**body, "model": "diffgemma"} if known else dict(body)
    for name, most in (*LIMITS.items(), ("max_denoising_steps", 3), ("n", 4)):
        value = changed.get(name)
        if isinstance(value, int) and value > most:
            changed[name] = most
    if known:
        # A random token is outside of the vocabulary, and infilling needs a length.
        changed |= {"prompt": small(body["prompt"])} if "prompt" in body else {}
        changed.setdefault("max_output_tokens" if "input" in changed else "max_tokens", 8)
    # Few random requests would say how long they may run.
    changed.setdefault("max_denoising_steps", 3)
    changed.setdefault("deadline", 5.0)
    return changed


def small(prompt: Any) -> Any:
    """Token ids of the test checkpoint, where there are token ids."""
    if isinstance(prompt, list):
        return [small(item) for item in prompt]
    # 5.0 is an integer to JSON Schema, and not to the gateway.
    return int(prompt) % 300 if type(prompt) in (int, float) else prompt


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/decisions", "/v1/systemone"]
)
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_random_requests_get_documented_answers(gateway: Running, path: str, mode: schemathesis.GenerationMode) -> None:
    operation = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")[path]["POST"]
    statuses: dict[int, int] = {}

    @SETTINGS
    @given(case=operation.as_strategy(generation_mode=mode), known=st.sampled_from([True, True, True, False]))
    def ask(case: Any, known: bool) -> None:
        case.body = tamed(case.body, known)
        response = case.call(timeout=60)
        statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
        assert response.status_code < 500 or response.status_code in (503, 504), response.text
        case.validate_response(response, checks=CHECKS)
        # how the library words what it checks; what else shows insides may be a random value of the request
        assert "Input should" not in response.text
        assert gateway.process.poll() is None

    ask()
    print(f"{path} {mode.value}: {sum(statuses.values())} requests, by status {dict(sorted(statuses.items()))}")
    assert request(f"{gateway.url}/health")[0] == 200


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/{model}", "/health"])
def test_random_reads_get_documented_answers(gateway: Running, path: str) -> None:
    operation = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")[path]["GET"]

    @SETTINGS
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        response = case.call(timeout=60)
        assert response.status_code < 500, response.text
        case.validate_response(response, checks=CHECKS)

    ask()


@SETTINGS
@given(body=st.binary(max_size=300), endpoint=st.sampled_from(["completions", "chat/completions", "responses"]))
def test_random_bytes_are_refused(gateway: Running, body: bytes, endpoint: str) -> None:
    status, _, answer = request(f"{gateway.url}/v1/{endpoint}", body)
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
