"""The released 26B configuration, without its weights: our tensors are those that transformers saves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

import nemo_diffgemma
from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import VISION_PREFIXES, text_tensors, vision_tensors
from nemo_diffgemma.hf_config import write_config
from nemo_diffgemma.models import configured
from trtllm_build.network.weights import weight_files

# Parameters of the text model, in billions, cut to one digit (build.nvidia.com/google/diffusiongemma-26b-a4b-it).
BILLIONS = 25.2
MODELS = Path(nemo_diffgemma.__file__).parent / "conf" / "model"
Shapes = dict[str, tuple[int, ...]]


def released() -> Architecture:
    """Our configuration of it, with a vision tower of transformers' default size: transformers builds none without."""
    return configured("diffusion_gemma_26b_a4b").with_changes(vision_config={"model_type": "gemma4_vision"})


def saved_shapes(model: DiffusionGemmaForBlockDiffusion) -> Shapes:
    """What ``save_pretrained`` would write: the state without the second names of tied weights."""
    state = remove_tied_weights_from_state_dict(model.state_dict(), model)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.fixture(scope="module")
def transformers_shapes() -> Shapes:
    with torch.device("meta"):
        return saved_shapes(DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig(**write_config(released()))))


def test_text_tensors_are_those_that_transformers_saves(transformers_shapes: Shapes) -> None:
    theirs = {n: shape for n, shape in transformers_shapes.items() if not n.startswith(VISION_PREFIXES)}
    ours = text_tensors(released())
    assert sorted(ours.keys() - theirs.keys()) == []
    assert sorted(theirs.keys() - ours.keys()) == []
    assert {n: (ours[n], theirs[n]) for n in ours if ours[n] != theirs[n]} == {}


def test_vision_tensors_are_those_that_transformers_saves(transformers_shapes: Shapes) -> None:
    theirs = {n: shape for n, shape in transformers_shapes.items() if n.startswith(VISION_PREFIXES)}
    assert theirs
    assert vision_tensors(released()) == theirs


def test_the_engine_reads_each_text_tensor_once() -> None:
    arch = released()
    read = Counter(theirs for names in weight_files(arch).values() for theirs in names.values())
    assert read == Counter(text_tensors(arch).keys())


def test_the_size_is_that_of_the_model_card() -> None:
    parameters = sum(torch.Size(shape).numel() for shape in text_tensors(released()).values())
    assert parameters // 10**8 / 10 == BILLIONS


def test_saved_shapes_are_what_save_pretrained_writes(tmp_path: Path) -> None:
    """Of the demo model, which is small enough to be written."""
    model = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig(**write_config(configured("demo"))))
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        written = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert saved_shapes(model) == written
    assert written.keys() < model.state_dict().keys()
