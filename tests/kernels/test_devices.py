"""Nothing is made on another device than the one it is computed on: a GPU is not there to say so.

Tensors that are made without naming a device land on "meta" here, and fail beside those of the CPU.
"""

from __future__ import annotations

import pytest
import torch

from tests.support import small_architecture
from trtllm_build.backends.cuda.cache import DeviceCache
from trtllm_build.backends.cuda.device_weights import DeviceWeights, random_weights
from trtllm_build.backends.cuda.network import DeviceNetwork
from trtllm_build.backends.cuda.ops import Choice, Ops, provided, reference, reference_ops, triton_ops
from trtllm_build.compilers.cuda.probes import Probe, probes
from trtllm_build.quantization.recipe import named_recipe

ARCH = small_architecture(max_position_embeddings=64)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights() -> DeviceWeights:
    with torch.device("meta"):
        return random_weights(ARCH, named_recipe("fp8"), CPU, 0)


@pytest.fixture(scope="module")
def found(weights: DeviceWeights) -> dict[str, Probe]:
    return {p.op: p for p in probes(DeviceNetwork(ARCH, weights, reference_ops()))}


@pytest.mark.parametrize("name", ["linear", "route", "experts", "attend", "read_out"])
@pytest.mark.parametrize("own", [True, False])
def test_heavy_operations_stay_on_their_device(found: dict[str, Probe], name: str, own: bool) -> None:
    op = provided(name, Choice("triton", {})) if own else reference(name)
    with torch.device("meta"):
        results = found[name].run(op, 2, found[name].judged)
    assert results
    assert all(r.device == CPU for r in results)


@pytest.mark.parametrize("ops", [reference_ops(), triton_ops()], ids=["reference", "triton"])
def test_the_network_stays_on_its_device(weights: DeviceWeights, ops: Ops) -> None:
    network = DeviceNetwork(ARCH, weights, ops)
    cache = DeviceCache(ARCH, network.dtype, CPU, 2, 8, 64, 16)
    cache.admit(0, 40, 0)
    slot, ids = torch.zeros(1, dtype=torch.int32), torch.arange(16)[None]
    counts = [torch.full((1,), count, dtype=torch.int32) for count in (16, 8)]
    soft = torch.zeros(1, 8, ARCH.hidden_size, dtype=network.dtype)
    with torch.device("meta"):
        network.encode(ids, slot, counts[0], cache)
        hidden = network.denoise(ids[:, :8], soft, slot, counts[1], cache)
    assert hidden.device == CPU
    assert hidden.isfinite().all()
