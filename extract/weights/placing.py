"""Placing the tensors of a weight file in the network."""

from pathlib import Path

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from data_tools.errors import InputError
from data_tools.weights.tensor_names import tensor_differences
from extract.detector.rpn import CaffeAnchorGenerator
from extract.weights.formats import convert, ratio_by_ratio

ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
COUNTERS = "num_batches_tracked"  # of batch norms, which inference does not use
IGNORED = (COUNTERS, "pixel_mean", "pixel_std")  # the latter two are given by the configuration


def place_weights(model: GeneralizedRCNN, state: dict[str, torch.Tensor], source: Path) -> None:
    """Copy every tensor of a file to its place in `model`, from any published format.

    Args:
        model: the network, changed in place.
        state: tensors as `read_weights` returns them.
        source: the file, for messages.

    Raises:
        InputError: tensors are missing, unexpected or of a wrong shape; the message lists them.
    """
    given = convert(state)
    anchors = _anchors(model.proposal_generator.anchor_generator, given.pop(ANCHORS, None), ratio_by_ratio(state))
    places = model.state_dict()
    given = {name: tensor for name, tensor in given.items() if name in places or not name.endswith(IGNORED)}
    buffer = model.get_buffer(ANCHORS)
    found = {**{name: tensor.shape for name, tensor in given.items()}, ANCHORS: anchors.shape}
    wanted = [name for name in places if name in given or not name.endswith(COUNTERS)]
    expected = {**{name: places[name].shape for name in wanted}, ANCHORS: buffer.shape}
    different = tensor_differences(found, expected)
    if different:
        raise InputError(f"{source}: does not fit the configuration's network; {different}")
    model.load_state_dict(given, strict=False)
    buffer.copy_(anchors)


def _anchors(generator: DefaultAnchorGenerator, stored: torch.Tensor | None, by_ratio: bool) -> torch.Tensor:
    """(A, 4) anchors in the order of the channels of a file's region proposal layers.

    With Detectron2's box arithmetic these are the file's, which today's Detectron2 would drop silently. With
    Caffe's they are the file's if they are Caffe's in some order. Otherwise the generator's anchors are put into
    the file's order.
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
