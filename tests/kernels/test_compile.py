"""Every kernel becomes machine code for an H100 and for a DGX Spark, here, without either."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("sm", [90, 121])
def test_kernels_compile(sm):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "trtllm_build.kernels.machine_code", "--json", "--sm", str(sm)]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    compiled = json.loads(out)
    assert all(c["bytes"] > 1000 for c in compiled)
    assert [c["name"] for c in compiled if not c["fits"]] == []
