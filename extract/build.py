"""From a configuration to the network and the detector, whose other modules take plain arguments."""

from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from data_tools.errors import reading
from extract.choices import Precision
from extract.config import has_inclusive_boxes, with_values
from extract.detector.detector import Detector
from extract.detector.network import BottomUpAttention, KeptAnchors
from extract.detector.resizing import Resizing
from extract.weights.placing import place_weights
from extract.weights.reading import read_weights


def build_network(cfg: CfgNode, weights: Path | None, device: torch.device) -> BottomUpAttention:
    """The network of a configuration with the weights of a file, for inference; random weights without a file.

    Raises:
        InputError: the file cannot be read or does not fit, or there is no such network.
    """
    with reading("the configuration", "does not make a network"):  # its values are a stranger's
        model = build_model(with_values(cfg, device=str(device)))
    if weights is not None:
        place_weights(model, read_weights(weights), weights)
    proposals = model.proposal_generator
    proposals.anchor_generator = KeptAnchors(proposals.anchor_generator)
    return model.eval()


def build_detector(
    cfg: CfgNode, weights: Path | None, device: torch.device, precision: Precision = Precision.FP32
) -> Detector:
    """The detector of a configuration; without weights it is random, from the seed `cfg.SEED`.

    Raises:
        InputError: the file cannot be read or does not fit.
    """
    if weights is None:
        torch.manual_seed(max(cfg.SEED, 0))
    network = build_network(cfg, weights, device)
    if device.type == "cuda":  # on a CPU it gains little and sums grouped convolutions in a worse order
        network.to(memory_format=torch.channels_last)
    return as_detector(cfg, network, precision)


def as_detector(cfg: CfgNode, network: BottomUpAttention, precision: Precision = Precision.FP32) -> Detector:
    """The detector of a network that was built from `cfg`; the network is then in evaluation mode."""
    resizing = Resizing(
        cfg.INPUT.RESIZE, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, tuple(cfg.MODEL.PIXEL_MEAN)
    )
    return Detector(network, resizing, has_inclusive_boxes(cfg), precision)
