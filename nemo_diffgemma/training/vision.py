"""The vision tower that a model which starts from nothing carries along: whether transformers can build it."""

from __future__ import annotations

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import vision_tensors
from nemo_diffgemma.errors import FieldError


def check_vision(arch: Architecture) -> None:
    """Refuse, before the first step, a ``model.vision_config`` that would be found wanting at the export.

    Raises:
        FieldError: with what transformers says.
    """
    try:
        vision_tensors(arch)
    except FieldError as error:
        raise FieldError(
            field="model.vision_config", value=error.value, allowed=error.allowed, fix="leave it out, or correct it"
        ) from None
