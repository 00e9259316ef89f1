"""Known vulnerabilities of what is installed, by pip-audit, and of the tritonserver that is found; ``make audit``.

Those of tritonserver do not make it fail: the launcher refuses to let one with any listen beyond loopback.

An index that offers no vulnerability data (a mirror, say) leaves packages out: they are counted, not passed over.
"""

from __future__ import annotations

import json
import subprocess
import sys

from nemo_diffgemma.errors import FieldError
from triton_repo.launcher.bulletins import known
from triton_repo.launcher.exposure import check_version
from triton_repo.launcher.tritonserver import LOOPBACK, Installation

# Accepted, with the reason why it does not matter here: vulnerability id -> reason.
ACCEPTED: dict[str, str] = {}


def main() -> int:
    """Print what was found; 1 when a vulnerability of a package is known that is not accepted."""
    for line in server():
        print(f"audit: {line}")
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--local",
        "--skip-editable",
        "--format=json",
        "--progress-spinner=off",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"audit: could not run, so nothing was looked up: {reason}")
        return 0
    found = [(p["name"], p["version"], v["id"]) for p in packages for v in p.get("vulns", ())]
    bad = [entry for entry in found if entry[2] not in ACCEPTED]
    for name, version, vulnerability in bad:
        print(f"audit: {name} {version}: {vulnerability}; fix: raise its version in pyproject.toml")
    skipped = sum("skip_reason" in p for p in packages)
    looked = len(packages) - skipped
    print(f"audit: {looked} packages looked up, {len(found)} known vulnerabilities ({len(bad)} not accepted);")
    print(f"       {skipped} packages unknown to the index here and so not looked up")
    return 1 if bad else 0


def server() -> list[str]:
    """What is known of the tritonserver that would be started, a line a bulletin."""
    try:
        found = Installation.find()
    except FieldError as error:
        return [f"no tritonserver to look at: {error}"]
    lines = [check_version(found, LOOPBACK, allow_old=False)]
    for bulletin in known(found.version) if found.version else ():
        worst = "unknown" if bulletin.worst is None else bulletin.worst
        about = f"CVSS up to {worst}, fixed in {bulletin.fixed}: {' '.join(bulletin.cves)}"
        lines.append(f"  NVIDIA's bulletin {bulletin.number} of {bulletin.published}, {about}".rstrip(": "))
    return lines


if __name__ == "__main__":
    sys.exit(main())
