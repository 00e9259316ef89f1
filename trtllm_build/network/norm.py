"""Root-mean-square norm."""

from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension, computed in float32, returned in x's dtype.

    Args:
        x: ``[..., width]``.
        weight: ``[width]``, or None for a norm without one.
        eps: added to the mean square.
    """
    wide = x.float()
    normed = wide * (wide.pow(2).mean(-1, keepdim=True) + eps).pow(-0.5)
    if weight is not None:
        normed = normed * weight.float()
    return normed.to(x.dtype)
