"""Matrix products, on a CPU by the faster of two libraries."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of a weight from which oneDNN's float32 kernel repays its 20 microseconds of set-up a call.
LARGE = 2**18
_HAS_ONEDNN = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def is_large(weight: Tensor) -> bool:
    """Whether products with ``weight [out, in]`` go to oneDNN.

    torch gives float32 products to MKL, which on AMD processors reaches less than half of what oneDNN does; it gives
    bfloat16 to oneDNN by itself.
    """
    return _HAS_ONEDNN and weight.dtype == torch.float32 and weight.numel() >= LARGE


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T``: ``[..., in] -> [..., out]`` for a ``weight [out, in]`` of any strides."""
    if weight.is_cpu and is_large(weight):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        return product
    return F.linear(x, weight)
