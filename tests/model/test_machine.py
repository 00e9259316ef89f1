"""What the machine refuses is told by file and cause, whichever library met it; faults of ours are not hidden."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nemo_diffgemma.machine import named, refusal, writing

CODE = """
import resource, signal, sys, torch
from pathlib import Path
from safetensors.torch import save_file
import torch.distributed.checkpoint as distributed
from nemo_diffgemma.files import new_file
from nemo_diffgemma.machine import named, writing
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
place, state = Path(sys.argv[1]) / "file", {"x": torch.zeros(2**16)}
def plain():
    with new_file(place) as file: file.write(bytes(2**18))
def archive():
    with new_file(place) as file: torch.save(state, file)
def weights():
    with writing(place): save_file(state, place.with_name(".file.partial"))
def shards():
    with writing(place): distributed.save(state, checkpoint_id=place.with_name(".shards.partial"), no_dist=True)
try: {"plain": plain, "archive": archive, "weights": weights, "shards": shards}[sys.argv[2]]()
except OSError as error: print(named(error))
"""


@pytest.mark.parametrize("writer", ["plain", "archive", "weights", "shards"])
def test_a_file_that_the_kernel_refuses(writer: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CODE, str(tmp_path), writer]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == f"{tmp_path}/file: File too large\n", done.stderr


def test_a_file_of_its_own_name_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as error, writing(tmp_path / "model"):
        (tmp_path / "base").read_bytes()
    assert named(error.value) == f"{tmp_path}/base: No such file or directory"


def test_what_safetensors_says(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as error, writing(tmp_path / "model"):
        save_file({"x": torch.zeros(1)}, tmp_path / "nowhere" / "x")
    assert error.value.errno == errno.ENOENT
    assert error.value.filename == str(tmp_path / "model")


@pytest.mark.parametrize("error", [ValueError("x"), OSError("no number"), KeyError(1), OSError(errno.EPIPE, "pipe")])
def test_a_fault_of_ours_is_none(error: Exception) -> None:
    assert refusal(error) is None
    with pytest.raises(type(error)) as raised, writing(Path("place")):
        raise error
    assert raised.value is error
