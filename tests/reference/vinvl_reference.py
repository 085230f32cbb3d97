"""VinVL's detector once more, in plain PyTorch and NumPy, on tensors under maskrcnn-benchmark's names.

Written from the published configuration and from what the published modelling code computes; nothing of the
package and nothing of Detectron2 is used. Boxes are inclusive: a side is x2 - x1 + 1, and decoded corners have the
- 1. Suppression is torchvision's, with continuous boxes.

Shapes: (h, w) sides of a feature map, P proposals, A anchors at a place.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from butd_reference import STRIDE, WIDEST, State, _sampling, overlap
from PIL import Image

MEAN = (103.530, 116.280, 123.675)
BLOCKS = (3, 8, 36, 3)
CLASSES, ATTRIBUTES = 1595, 525  # with the background and "no attribute", which come first
BODY, RES5 = "backbone.body", "roi_heads.box.feature_extractor.head"
SPREADS = {  # how far each prediction shall vary from region to region (standard deviation)
    "rpn.head.cls_logits": 3.0,
    "rpn.head.bbox_pred": 0.3,
    "roi_heads.box.predictor.cls_score": 4.0,
    "roi_heads.box.predictor.bbox_pred": 1.0,
    "attribute.predictor.fc_attr": 1.0,
    "attribute.predictor.attr_score": 2.5,
}


@dataclass(frozen=True)
class Sizes:
    """What the tests shrink: sides of the image, proposals, groups of the 3 x 3 convolutions."""

    min_side: int = 600
    max_side: int = 1000
    after_nms: int = 300
    groups: int = 32


@dataclass
class Described:
    """What comes out, stage by stage; boxes are in pixels of the original, probabilities without the first."""

    pixels: torch.Tensor
    res4: torch.Tensor
    objectness_map: torch.Tensor
    delta_map: torch.Tensor
    boxes: np.ndarray
    resized_boxes: np.ndarray
    regressed: np.ndarray
    objectness: np.ndarray
    features: np.ndarray
    classes: np.ndarray
    attributes: np.ndarray


# Weights


def random_state(
    stem: int = 64, width: int = 8, out: int = 256, groups: int = 32, gain: float = 0.2, seed: int = 0
) -> State:
    """Tensors of the published structure, which the arguments may make narrow, with random numbers.

    Args:
        stem, out: channels of the stem and of res2.
        width: channels per group of res2's bottlenecks.
        groups: of the 3 x 3 convolutions.
        gain: of the last batch norm of a bottleneck; rounding errors grow with it.
        seed: of the random numbers.
    """
    rng = torch.Generator().manual_seed(seed)
    state: State = {}

    def draw(name: str, *shape: int, bias: bool = True) -> None:
        state[f"{name}.weight"] = torch.randn(shape, generator=rng) * math.sqrt(2 / math.prod(shape[1:]))
        if bias:
            state[f"{name}.bias"] = torch.randn(shape[0], generator=rng) * 0.3

    def draw_layer(convolution: str, norm: str, *shape: int, factor: float = 1.0) -> None:
        draw(convolution, *shape, bias=False)
        state[f"{norm}.weight"] = factor * (0.8 + 0.4 * torch.rand(shape[0], generator=rng))
        state[f"{norm}.bias"] = 0.2 * torch.randn(shape[0], generator=rng)
        state[f"{norm}.running_mean"] = torch.zeros(shape[0])
        state[f"{norm}.running_var"] = torch.ones(shape[0])

    draw_layer(f"{BODY}.stem.conv1", f"{BODY}.stem.bn1", stem, 3, 7, 7)
    channels = stem
    for number, blocks in enumerate(BLOCKS):
        inside, outside = width * groups << number, out << number
        for block in range(blocks):
            here = f"{BODY if number < 3 else RES5}.layer{number + 1}.{block}"
            if channels != outside:
                draw_layer(f"{here}.downsample.0", f"{here}.downsample.1", outside, channels, 1, 1)
            draw_layer(f"{here}.conv1", f"{here}.bn1", inside, channels, 1, 1)
            draw_layer(f"{here}.conv2", f"{here}.bn2", inside, inside // groups, 3, 3)
            draw_layer(f"{here}.conv3", f"{here}.bn3", outside, inside, 1, 1, factor=gain)
            channels = outside
    draw("rpn.head.conv", channels // 2, channels // 2, 3, 3)
    draw("rpn.head.cls_logits", 15, channels // 2, 1, 1)
    draw("rpn.head.bbox_pred", 60, channels // 2, 1, 1)
    draw("roi_heads.box.predictor.cls_score", CLASSES, channels)
    draw("roi_heads.box.predictor.bbox_pred", 4 * CLASSES, channels)
    state["attribute.predictor.cls_embedding.weight"] = torch.randn(CLASSES, channels // 8, generator=rng)
    draw("attribute.predictor.fc_attr", channels // 4, channels + channels // 8)
    draw("attribute.predictor.attr_score", ATTRIBUTES, channels // 4)
    return state


def as_published(state: State) -> State:
    """The tensors as a checkpoint has them: with the anchors, and with the res5 that two branches share twice."""
    shared = {
        name.replace("roi_heads.box.", "attribute.", 1): tensor
        for name, tensor in state.items()
        if name.startswith(RES5)
    }
    return {**state, **shared, "rpn.anchor_generator.cell_anchors.0": torch.from_numpy(anchors()).float()}


# Layers


class Layers:
    """The layers of a file; while `fits`, a layer's numbers are set so that what leaves it suits the image."""

    def __init__(self, state: State, fits: bool = False) -> None:
        self.state, self.fits = state, fits

    def convolve(self, x: torch.Tensor, convolution: str, norm: str, stride: int = 1) -> torch.Tensor:
        weight = self.state[f"{convolution}.weight"]
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)
        if self.fits:
            self.state[f"{norm}.running_mean"] = x.mean(dim=(0, 2, 3))
            self.state[f"{norm}.running_var"] = x.var(dim=(0, 2, 3)) + 1e-3
        mean, var, scale, shift = (
            self.state[f"{norm}.{part}"].view(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / var.sqrt() * scale + shift  # nothing is added to the variance

    def stage(self, name: str, x: torch.Tensor, stride: int) -> torch.Tensor:
        """Bottlenecks; the first has the stride in its 3 x 3 convolution and in its shortcut."""
        block = 0
        while f"{name}.{block}.conv1.weight" in self.state:
            here = f"{name}.{block}"
            y = self.convolve(x, f"{here}.conv1", f"{here}.bn1").relu()
            y = self.convolve(y, f"{here}.conv2", f"{here}.bn2", stride).relu()
            y = self.convolve(y, f"{here}.conv3", f"{here}.bn3")
            if f"{here}.downsample.0.weight" in self.state:
                x = self.convolve(x, f"{here}.downsample.0", f"{here}.downsample.1", stride)
            x, block, stride = (x + y).relu(), block + 1, 1
        return x

    def head(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """A 1 x 1 convolution or a linear layer that predicts something."""
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        if self.fits:
            rows = x.movedim(1, -1).flatten(0, -2)
            weight *= SPREADS[name] / (rows @ weight.flatten(1).T).std(dim=0).mean()
            bias -= (rows @ weight.flatten(1).T).mean(dim=0)
        return F.conv2d(x, weight, bias) if weight.ndim == 4 else x @ weight.T + bias


# Boxes


def resized_sides(height: int, width: int, sizes: Sizes) -> tuple[int, int]:
    """Height and width in the network."""
    short, long, side = min(height, width), max(height, width), sizes.min_side
    if long / short * side > sizes.max_side:
        side = int(np.rint(sizes.max_side * short / long))
    if short == side:
        return height, width
    other = math.floor(side * long / short)
    return (other, side) if height > width else (side, other)


def anchors() -> np.ndarray:
    """(15, 4) around 7.5, ratio by ratio, of sides 32 to 512; a ratio is height / width."""
    table = []
    for ratio in (0.5, 1.0, 2.0):
        width = np.rint(np.sqrt(256 / ratio))
        height = np.rint(width * ratio)
        for scale in (2, 4, 8, 16, 32):
            half = np.array([width * scale - 1, height * scale - 1]) / 2
            table.append([*(7.5 - half), *(7.5 + half)])
    return np.array(table)


def decoded(boxes: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """(P, 4) boxes moved by (P, 4) deltas of plain units."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    middle = boxes[:, :2] + sides / 2 + deltas[:, :2] * sides
    sides = sides * np.exp(np.minimum(deltas[:, 2:], WIDEST))
    return np.concatenate([middle - sides / 2, middle + sides / 2 - 1], axis=1)


def clipped(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.minimum(np.maximum(boxes, 0), np.array([width, height, width, height]) - 1)


def proposals(
    logits: torch.Tensor, deltas: torch.Tensor, sides: tuple[int, int], sizes: Sizes
) -> tuple[np.ndarray, np.ndarray]:
    """(P, 4) boxes of the resized image and their (P,) scores, best first, of (15, h, w) and (60, h, w) maps."""
    height, width = logits.shape[1:]
    y, x = np.mgrid[:height, :width] * STRIDE
    places = (np.stack([x, y, x, y], axis=-1)[:, :, None] + anchors()).reshape(-1, 4)
    moves = deltas.view(15, 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4).double().numpy()
    scores = logits.permute(1, 2, 0).reshape(-1).double().numpy()
    order = np.argsort(-scores, kind="stable")[:6000]
    boxes = clipped(decoded(places[order], moves[order]), *sides)
    kept = suppressed(boxes, scores[order], 0.7, sizes.after_nms)
    return boxes[kept], scores[order][kept]


def suppressed(boxes: np.ndarray, scores: np.ndarray, threshold: float, most: int) -> list[int]:
    """Greedy suppression: the first `most` survivors, best first. A box without area suppresses none."""
    standing = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(standing) and len(kept) < most:
        best, standing = standing[0], standing[1:]
        kept.append(int(best))
        with np.errstate(invalid="ignore"):
            standing = standing[~(overlap(boxes[best], boxes[standing], caffe=False) > threshold)]
    return kept


def roi_align(features: torch.Tensor, boxes: np.ndarray, bins: int = 14) -> torch.Tensor:
    """RoIAlign as it was at first, without the half pixel: (C, h, w), (P, 4) in pixels -> (P, C, bins, bins)."""
    _, height, width = features.shape
    pooled = []
    for x1, y1, x2, y2 in boxes / STRIDE:
        across = _sampling(x1, max(x2 - x1, 1.0), bins, 0, width)
        down = _sampling(y1, max(y2 - y1, 1.0), bins, 0, height)
        rows, columns = (torch.from_numpy(weights).float() for weights in (down, across))
        pooled.append(torch.einsum("ih,chw,jw->cij", rows, features, columns))
    return torch.stack(pooled)


# The whole


@torch.no_grad()
def describe(state: State, image: np.ndarray, sizes: Sizes, fits: bool = False) -> Described:
    """The proposals of an (H, W, 3) uint8 image, BGR; `fits` changes the weights, see `Layers`."""
    layers = Layers(state, fits)
    height, width = sides = resized_sides(image.shape[0], image.shape[1], sizes)
    resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(resized.astype(np.float32) - np.array(MEAN, np.float32)).permute(2, 0, 1)[None]
    x = layers.convolve(pixels, f"{BODY}.stem.conv1", f"{BODY}.stem.bn1", stride=2).relu()
    x = F.max_pool2d(x, 3, 2, padding=1)
    for number, stride in ((1, 1), (2, 2), (3, 2)):
        x = layers.stage(f"{BODY}.layer{number}", x, stride)
    hidden = F.conv2d(x, state["rpn.head.conv.weight"], state["rpn.head.conv.bias"], padding=1).relu()
    logits, moves = layers.head("rpn.head.cls_logits", hidden), layers.head("rpn.head.bbox_pred", hidden)
    boxes, objectness = proposals(logits[0], moves[0], sides, sizes)
    regions = layers.stage(f"{RES5}.layer4", roi_align(x[0], boxes), stride=2)
    features = regions.mean(dim=(2, 3))
    classes = layers.head("roi_heads.box.predictor.cls_score", features).double().softmax(dim=1)
    deltas = layers.head("roi_heads.box.predictor.bbox_pred", features).double().view(len(boxes), CLASSES, 4)
    labels = classes[:, 1:].argmax(dim=1) + 1
    embedded = state["attribute.predictor.cls_embedding.weight"][labels]
    joint = layers.head("attribute.predictor.fc_attr", torch.cat([features, embedded], dim=1)).relu()
    attributes = layers.head("attribute.predictor.attr_score", joint).double().softmax(dim=1)
    own = deltas[torch.arange(len(boxes)), labels].numpy() / np.array([10.0, 10.0, 5.0, 5.0])
    ratios = np.array([image.shape[1] / width, image.shape[0] / height] * 2)
    return Described(
        pixels,
        x,
        logits,
        moves,
        boxes * ratios,
        boxes,
        clipped(decoded(boxes, own), *sides) * ratios,
        objectness,
        features.numpy(),
        classes[:, 1:].numpy(),
        attributes[:, 1:].numpy(),
    )


def choice(
    boxes: np.ndarray, probabilities: np.ndarray, least: int, most: int, threshold: float = 0.2
) -> list[int]:
    """The proposals that NMS_FILTER 1 chooses, best first; boxes are those of the resized image."""
    confidence = np.zeros(len(boxes))
    for column in probabilities.T:
        kept = suppressed(boxes, column, 0.3, len(boxes))
        confidence[kept] = np.maximum(confidence[kept], column[kept])
    count = int((confidence >= 0.2).sum())
    return np.argsort(-confidence, kind="stable")[: min(max(count, least), most)].tolist()
