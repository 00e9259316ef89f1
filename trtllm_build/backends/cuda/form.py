"""The positions of a canvas that a grammar binds, on a device: read again, after the captured step.

A captured step reads every position by itself; what a grammar makes of it depends on its classes, which no graph can
know. So the table passes twice under a grammar, by torch's own products and a chunk at a time, and once more where soft
embeddings of large classes are wanted. Without a grammar nothing here runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trtllm_build.backends.cuda.network import DeviceNetwork
from trtllm_build.contract import CanvasStep, Constraint, ReadOut
from trtllm_build.network import constrained

CHUNK = 8192  # tokens of the vocabulary whose logits are in memory


def read_bound(network: DeviceNetwork, hidden: Tensor, step: CanvasStep, constraint: Constraint) -> ReadOut:
    """Argmax, sample, entropy and scaled soft embeddings of the positions that a grammar binds.

    Args:
        network: whose embedding table is read.
        hidden: normed hidden states of the canvas ``[canvas, hidden]``, on the device.
        step: of the canvas.
        constraint: the step's own.

    Returns:
        ``constraint.rows`` of each; soft embeddings on the device, in the network's dtype, all else on the host.
    """
    arch = network.arch
    cap = arch.final_logit_softcapping

    def logits(states: Tensor, rows: Tensor) -> Tensor:
        # in float32, as the kernels accumulate; rows are of this canvas only: sums do not depend on its company
        return torch.tanh(states.float() @ rows.float().T / cap) * cap

    rows = constraint.rows
    found = constrained.read_out(
        hidden[:rows],
        constrained.Table(network.weights.embedding, CHUNK, logits),
        step.temperature,
        step.draws[:rows],
        step.soft,
        constraint,
        step.sampling,
    )
    if found.soft_embeddings is not None:
        found.soft_embeddings.mul_(arch.embed_scale)
    return found
