"""Wait until a bundle is there: what serving does while another machine or job builds it."""

from __future__ import annotations

import time
from collections.abc import Callable
from glob import escape
from pathlib import Path

from nemo_diffgemma.errors import require
from trtllm_build.bundle import describe
from trtllm_build.bundle_files import INPUTS
from trtllm_build.manifest import MANIFEST, read_manifest

_POLL_S = 2.0
_REPORT_S = 30.0


def wait_for_bundle(
    directory: Path,
    gpu: str,
    timeout_s: float,
    report: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return when ``directory`` has a manifest, which a build writes last, for ``gpu``.

    Only the manifest is read, not the weights: the server checks every file before it loads one.

    Args:
        directory: of the bundle.
        gpu: name of the target that will run it.
        timeout_s: seconds to wait; 0 looks once.
        report: called with a line of text at the start, every 30 seconds and at the end.
        clock: seconds that only grow.
        sleep: waits for so many seconds.

    Raises:
        FieldError: when the bundle is for another target, of another contract, or not whole; waiting would not help.
        TimeoutError: when it has not come.
    """
    good = timeout_s >= 0  # and no NaN, which would never pass
    require(
        good,
        field="--timeout",
        value=timeout_s,
        allowed="seconds, 0 or more",
        fix="pass --timeout 3600, or leave it out to look once",
    )
    path = directory / MANIFEST
    start = clock()
    said = None
    while not path.is_file():
        waited = clock() - start
        if waited >= timeout_s:
            raise TimeoutError(
                f"no engine in {directory} after {waited:.0f} s: {_seen(directory)}; look at what builds it, "
                f"or build it with `diffgemma-engine build gpu={gpu} checkpoint=DIR out={directory}`"
            )
        if said is None or waited - said >= _REPORT_S:
            report(f"waiting for {path}: {waited:.0f} of {timeout_s:.0f} s, {_seen(directory)}")
            said = waited
        sleep(min(_POLL_S, timeout_s - waited))
    _check(path, gpu)
    report(f"engine {directory} is there, after {clock() - start:.0f} s")


def _seen(directory: Path) -> str:
    """What there is instead of the bundle."""
    place = directory.resolve()
    if not place.parent.is_dir():
        return f"{directory.parent} does not exist"
    works = [path for path in place.parent.glob(f".{escape(place.name)}.*.partial") if (path / INPUTS).is_file()]
    if works:
        files = [p for work in works for p in work.rglob("*") if p.is_file()]
        return f"a build is under way, or was stopped ({len(files)} files so far)"
    return "no build has begun"


def _check(path: Path, gpu: str) -> None:
    rebuild = f"build it again with `diffgemma-engine build gpu={gpu} checkpoint=DIR out={path.parent}`"
    manifest = read_manifest(path.parent)
    built_for, hardware = manifest["gpu"], describe(manifest["hardware"])
    found = f"{built_for}, for {hardware}"
    require(
        built_for == gpu,
        field="engine:gpu",
        value=found,
        allowed=f"{gpu}, which this pod or machine is meant for",
        fix=rebuild,
    )
