"""API keys: their file, and who is admitted, without a server."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_diffgemma.errors import FieldError
from triton_repo.client.wire import Response
from triton_repo.gateway.access import Access
from triton_repo.gateway.errors import ApiError
from triton_repo.gateway.usage import Counter
from triton_repo.keys import digest, new, read

ADA, HASH = "dg-key-of-ada", digest("dg-key-of-ada").hex()


def scope(key: str | None, path: str = "/v1/models") -> dict[str, Any]:
    headers = [] if key is None else [(b"authorization", key.encode())]
    return {"type": "http", "path": path, "headers": headers, "state": {"record": {}, "key": None}}


def refusal(access: Access, key: str | None) -> ApiError:
    with pytest.raises(ApiError) as error, access.admitted(scope(key)):
        pass
    return error.value


def name(access: Access, key: str) -> str:
    asked = scope(f"Bearer {key}")
    with access.admitted(asked):
        return str(asked["state"]["key"])


def test_a_new_key_is_random_and_its_line_does_not_hold_it(tmp_path: Path) -> None:
    (key, line), (other, _) = new("ada"), new("ada")
    assert key != other
    assert key not in line
    (tmp_path / "keys").write_text(f"# ours\n\n{line}:requests=2,tokens_per_minute=600\n")
    (found,) = read(tmp_path / "keys")
    assert (found.name, found.digest, found.requests, found.tokens_per_minute) == ("ada", digest(key), 2, 600)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("", "--api-key-file: "),
        ("# nobody\n", "--api-key-file: "),
        (f"{ADA}\n", "{file}:1: 'a line without a hash'"),
        (f"\nada:{ADA}\n", "{file}:2: 'a line without a hash'"),
        (f"ada:{HASH.upper()}\n", "{file}:1: 'a line without a hash'"),
        (f"a da:{HASH}\n", "{file}:1: 'a da' cannot be used; allowed: a name of 1 to 64"),
        (f"ada:{HASH}:requests=0\n", "{file}:1: 'requests=0' cannot be used; allowed: requests=NUMBER or"),
        (f"ada:{HASH}:requests=1,requests=2\n", "{file}:1: 'requests=2' cannot"),
        (f"ada:{HASH}:speed=1\n", "{file}:1: 'speed=1' cannot"),
        (f"ada:{HASH}\nbob:{HASH}\n", "--api-key-file: '{file}: bob' cannot be used; allowed: a hash of its own"),
        (f"ada:{HASH}\nada:{'0' * 64}:requests=1\n", "--api-key-file: '{file}: ada' cannot be used; allowed: the same"),
    ],
)
def test_what_cannot_be_used_is_named_and_never_shows_a_key(tmp_path: Path, text: str, start: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(FieldError) as error:
        read(file)
    assert str(error.value).startswith(start.format(file=file))
    assert ADA not in str(error.value)


def test_a_key_file_that_is_no_regular_one_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"ada:{HASH}\n")
    access = Access(file)
    file.unlink()
    os.mkfifo(file)
    assert name(access, ADA) == "ada"  # the keys before stay
    for path in (file, tmp_path, Path("/dev/null")):
        with pytest.raises(FieldError, match="^--api-key-file: .*not a regular file"):
            read(path)


def test_without_a_valid_key_nobody_is_admitted(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"ada:{HASH}\n")
    access = Access(tmp_path / "keys")
    for key in (None, "", "Bearer", "Bearer ", f"Basic {ADA}", f"Bearer {ADA}x", f"Bearer {HASH}", ADA):
        error = refusal(access, key)
        assert (error.status, error.code) == (401, "invalid_api_key")
        assert error.headers["www-authenticate"].startswith("Bearer")
        assert ADA not in error.message
    assert name(access, ADA) == "ada"
    with access.admitted(scope(None, "/health")):
        pass  # a probe has no key
    with Access(None).admitted(scope(None)):
        pass


def test_a_change_of_the_file_holds_at_once_also_by_a_link(tmp_path: Path) -> None:
    """As Kubernetes changes a Secret: the name leads by a link to a folder, and the link is exchanged."""
    for version, key in (("1", ADA), ("2", "dg-another")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys").write_text(f"ada:{digest(key).hex()}\n")
    (tmp_path / "data").symlink_to("1")
    (tmp_path / "keys").symlink_to("data/keys")
    access = Access(tmp_path / "keys")
    assert name(access, ADA) == "ada"
    (tmp_path / "next").symlink_to("2")
    os.replace(tmp_path / "next", tmp_path / "data")
    assert refusal(access, f"Bearer {ADA}").status == 401
    assert name(access, "dg-another") == "ada"
    # a mistake, or no file at all, locks nobody out
    (tmp_path / "2" / "keys").write_text("typing error\n")
    assert name(access, "dg-another") == "ada"
    (tmp_path / "2" / "keys").unlink()
    assert name(access, "dg-another") == "ada"


def test_a_limit_of_requests_counts_those_under_way(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"ada:{HASH}:requests=2\nbob:{digest('b').hex()}\n")
    access = Access(tmp_path / "keys")
    with ExitStack() as running:
        for _ in range(2):
            running.enter_context(access.admitted(scope(f"Bearer {ADA}")))
        error = refusal(access, f"Bearer {ADA}")
        assert (error.status, error.code, error.body()["error"]["type"]) == (429, "rate_limit_exceeded", "requests")
        assert error.headers["retry-after"] == "1"
        assert name(access, "b") == "bob"
    assert name(access, ADA) == "ada"


def test_a_limit_of_requests_counts_each_answer(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"ada:{HASH}:requests=4\n")
    access = Access(tmp_path / "keys")
    one, other = scope(f"Bearer {ADA}"), scope(f"Bearer {ADA}")
    with access.admitted(one), access.admitted(other):
        with pytest.raises(ApiError, match="n: 5 answers") as never:
            one["state"]["share"].take(4)
        with pytest.raises(ApiError) as later:
            one["state"]["share"].take(3)
        assert (never.value.status, never.value.param, later.value.status) == (400, "n", 429)
        one["state"]["share"].take(2)
        assert refusal(access, f"Bearer {ADA}").status == 429
    with access.admitted(one):
        one["state"]["share"].take(3)  # all has been given back


def test_what_a_stream_has_shown_is_owed_when_it_is_left() -> None:
    counter = Counter(1)
    draft = Response("red", (1, 2, 3), True, 0, 1, 0.5, None, 10, 0)
    counter.add(0, draft)
    assert (counter.owed(), counter.tokens()["completion_tokens"]) == (13, 0)
    counter.add(0, replace(draft, provisional=False, num_output_tokens=2, token_ids=(1, 2)))
    assert counter.owed() == 12  # what the draft became
    counter.add(0, replace(draft, canvas_index=1, num_output_tokens=2))
    assert counter.owed() == 15


def test_a_limit_of_tokens_is_a_bucket_that_fills_steadily(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"ada:{HASH}:tokens_per_minute=60\n")
    now = 0.0
    access = Access(tmp_path / "keys", lambda: now)
    asked = scope(f"Bearer {ADA}")
    with access.admitted(asked):
        asked["state"]["share"].owed = lambda: 70  # known when it has ended
    error = refusal(access, f"Bearer {ADA}")
    assert (error.status, error.body()["error"]["type"], error.headers["retry-after"]) == (429, "tokens", "11")
    now = 10.0
    assert refusal(access, f"Bearer {ADA}").status == 429
    now = 11.0
    assert name(access, ADA) == "ada"


def test_a_limit_that_is_new_does_not_count_what_was_free(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"ada:{HASH}\n")
    now = 0.0
    access = Access(tmp_path / "keys", lambda: now)
    asked = scope(f"Bearer {ADA}")
    with access.admitted(asked):
        asked["state"]["share"].owed = lambda: 10**6
    (tmp_path / "keys").write_text(f"ada:{HASH}:tokens_per_minute=60\n")
    now = 1.0
    assert name(access, ADA) == "ada"
