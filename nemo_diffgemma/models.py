"""Model configurations that come with the project (``conf/model``)."""

from __future__ import annotations

from importlib.resources import files

from omegaconf import OmegaConf

import nemo_diffgemma
from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.errors import require

RELEASED = "diffusion_gemma_26b_a4b"


def configured(name: str) -> Architecture:
    """Shapes of one configuration.

    Raises:
        FieldError: when there is none of that name.
    """
    folder = files(nemo_diffgemma) / "conf" / "model"
    known = sorted(p.name.removesuffix(".yaml") for p in folder.iterdir())
    require(name in known, field="model", value=name, allowed=", ".join(known), fix=f"pass model={RELEASED}")
    values = OmegaConf.to_container(OmegaConf.create((folder / f"{name}.yaml").read_text()))
    assert isinstance(values, dict)
    return Architecture.from_dict({str(k): v for k, v in values.items()})
