"""What listens beyond loopback, and which tritonserver may."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_diffgemma.errors import FieldError
from tests.audit import server
from triton_repo.launcher.bulletins import BULLETINS, known, summary
from triton_repo.launcher.exposure import addresses, check_version
from triton_repo.launcher.tritonserver import Installation
from triton_repo.loopback import is_loopback

NEAR, FAR = "127.0.0.1", "0.0.0.0"


def where(host: str = FAR, **given: bool) -> dict[str, str]:
    switches = {name: given.get(name, False) for name in ("openai", "keys", "client_ca", "insecure")}
    return addresses(host, **switches, say=lambda _line: None)


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        (FAR, False),
        ("::", False),
        ("10.0.0.1", False),
        ("gemma.example.org", False),
    ],
)
def test_loopback(host: str, near: bool) -> None:
    assert is_loopback(host) == near


def test_beyond_loopback_somebody_has_to_show_something() -> None:
    assert set(where(NEAR, openai=True).values()) == {NEAR}
    for given in ({}, {"openai": True}, {"keys": True}):  # type: dict[str, bool]
        with pytest.raises(FieldError, match=r"--host: '0.0.0.0' cannot be used.*pass --api-key-file"):
            where(**given)
    assert where(openai=True, keys=True) == {"http": NEAR, "grpc": NEAR, "metrics": FAR, "openai": FAR}
    everywhere = {"http": NEAR, "grpc": FAR, "metrics": FAR}
    assert where(client_ca=True) == where(insecure=True) == everywhere
    assert where(openai=True, keys=True, client_ca=True) == everywhere | {"openai": FAR}


def test_the_bulletins() -> None:
    cves = [cve for bulletin in BULLETINS for cve in bulletin.cves]
    assert len(cves) == len(set(cves))
    old = {cve for bulletin in known("2.51.0") for cve in bulletin.cves}
    assert {"CVE-2025-23310", "CVE-2025-23316", "CVE-2026-24207", "CVE-2026-47627"} <= old
    assert len(old) > 45
    assert [bulletin.number for bulletin in known("2.70.0")] == [5875]
    assert known("2.73.0") == []
    assert "fixed in 26.07" in summary("2.51.0")
    with pytest.raises(ValueError, match="no version"):
        known("newest")


def test_an_old_tritonserver_stays_on_loopback() -> None:
    found = Installation.find()
    assert found.version == "2.51.0"
    assert check_version(found, NEAR, allow_old=False).startswith(f"tritonserver 2.51.0 {found.binary}: ")
    with pytest.raises(FieldError, match=r"version 2.51.0' cannot be used.*--allow-old-triton"):
        check_version(found, FAR, allow_old=False)
    assert "published vulnerabilities" in check_version(found, FAR, allow_old=True)
    for version, good in (("2.73.0", True), (None, False)):
        other = Installation(Path("tritonserver"), Path("backends"), None, None, version)
        if good:
            assert "no published vulnerability known" in check_version(other, FAR, allow_old=False)
        else:
            with pytest.raises(FieldError, match="version unknown"):
                check_version(other, FAR, allow_old=False)


def test_the_audit_names_each_bulletin() -> None:
    lines = server()
    assert lines[0].startswith("tritonserver 2.51.0 ")
    assert len(lines) == 1 + len(BULLETINS)
    assert "bulletin 5865 of 2026-08, CVSS up to 9.8, fixed in 26.06: CVE-2026-47606" in " ".join(lines)
