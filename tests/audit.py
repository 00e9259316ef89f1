"""Known vulnerabilities of what is installed, by pip-audit; ``make audit``.

An index that offers no vulnerability data (a mirror, say) leaves packages out: they are counted, not passed over.
"""

from __future__ import annotations

import json
import subprocess
import sys

# Accepted, with the reason why it does not matter here: vulnerability id -> reason.
ACCEPTED: dict[str, str] = {}


def main() -> int:
    """Print what was found; 1 when a vulnerability is known that is not accepted."""
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


if __name__ == "__main__":
    sys.exit(main())
