"""Placing the tensors of a weight file in the network."""

from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from data_tools.errors import InputError
from extract.detector.rpn import CaffeAnchorGenerator
from extract.weights.formats import convert, ratio_by_ratio

ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
IGNORED = ("num_batches_tracked", "pixel_mean", "pixel_std")  # counters, and what the configuration says


@dataclass(frozen=True)
class _Misfit:
    missing: list[str]
    left_over: list[str]
    wrongly_shaped: list[str]

    def __str__(self) -> str:
        kinds = {"missing": self.missing, "left over": self.left_over, "wrongly shaped": self.wrongly_shaped}
        return "; ".join(f"{kind}: {first_names(names)}" for kind, names in kinds.items() if names)


def place_weights(model: GeneralizedRCNN, state: dict[str, torch.Tensor], source: Path) -> None:
    """Copy every tensor to its place in `model`, whichever published format its names are of.

    Args:
        model: the network, changed in place.
        state: tensors as `read_weights` gives them.
        source: the file, for messages.

    Raises:
        InputError: tensors are missing, left over or wrongly shaped; the message lists them.
    """
    given = convert(state)
    anchors = _anchors(model.proposal_generator.anchor_generator, given.pop(ANCHORS, None), ratio_by_ratio(state))
    places = model.state_dict()
    given = {name: tensor for name, tensor in given.items() if name in places or not name.endswith(IGNORED)}
    wanted = [name for name in places if not name.endswith("num_batches_tracked")]
    misfit = _Misfit(
        missing=[name for name in wanted if name not in given],
        left_over=[name for name in given if name not in places],
        wrongly_shaped=[
            f"{name} {tuple(given[name].shape)}, expected {tuple(places[name].shape)}"
            for name in places
            if name in given and given[name].shape != places[name].shape
        ],
    )
    buffer = model.get_buffer(ANCHORS)
    if anchors.shape != buffer.shape:
        misfit.wrongly_shaped.append(f"{ANCHORS} {tuple(anchors.shape)}, expected {tuple(buffer.shape)}")
    if str(misfit):
        raise InputError(f"{source}: does not fit the configuration's network; {misfit}")
    model.load_state_dict(given, strict=False)
    buffer.copy_(anchors)


def first_names(names: list[str], shown: int = 4) -> str:
    """The first few of some names, and how many more there are, for a message."""
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


def _anchors(generator: DefaultAnchorGenerator, stored: torch.Tensor | None, by_ratio: bool) -> torch.Tensor:
    """(A, 4) the anchors of the channels of a file's region proposal layers.

    Detectron2's arithmetic takes the file's own (today's Detectron2 would drop them silently); Caffe's takes
    them where they are Caffe's in some order. Otherwise the generator's own are put in the file's order.
    """
    own = next(generator.cell_anchors.buffers())
    if stored is not None:
        caffe = isinstance(generator, CaffeAnchorGenerator)
        if not caffe or _same_rows(stored, own):
            return stored
    if not by_ratio:
        return own
    sizes = 1 if len(own) % 3 else len(own) // 3
    return own.view(sizes, -1, 4).transpose(0, 1).reshape(-1, 4)


def _same_rows(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    ordered, expected = (torch.tensor(sorted(rows.tolist())) for rows in (one.float(), other.float()))
    return torch.allclose(ordered, expected, atol=1e-3)
