"""The published bottom-up-attention detector once more, in plain PyTorch and NumPy, for the tests to compare with.

Written from the published descriptions and files alone, on tensors under the names that each publisher gives
them. Nothing of the package and nothing of Detectron2 is used, and everything is written the slow, plain way.

Shapes: C channels and (h, w) sides of a feature map, P proposals, K object classes, A anchors at a place.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

STRIDE = 16  # pixels of the resized image for a place of the feature map
WIDEST = np.log(1000 / 16)  # Detectron2 enlarges no side by more than exp of this
BOX_UNITS = np.array([10.0, 10.0, 5.0, 5.0])  # of the box layer, but in MILVLG's Caffe files
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """What a publisher does around the layers.

    Attributes:
        caffe: boxes are Caffe's (pixels that belong to the box), not Detectron2's (continuous coordinates).
        layout: whose names and conventions the tensors have: airsplay, milvlg_caffe, milvlg_d2 or grid_feats.
        resize: caffe, torch, or a function from (H, W, 3) uint8 and (height, width) to floats.
        anchors: (A, 4), in the order of the file's channels.
        none: of the attribute "none": dropped before the softmax, counted in it, absent from the layer.
        halving: the strides of the 1 x 1 and of the 3 x 3 convolution where a stage halves the map.
        dilated: res5 keeps the 14 x 14 places of a region, with dilation 2.
        pool: RoIPool or RoIAlign.
        samples: of RoIAlign, along a side of a bin; 0: as many as the bin has places.
        preactivated: blocks normalise their input, as MILVLG's R-152's.
    """

    caffe: bool
    layout: str
    resize: str | Callable[[np.ndarray, tuple[int, int]], np.ndarray]
    anchors: np.ndarray
    none: str
    min_side: int = 600
    max_side: int = 1000
    mean: tuple[float, float, float] = (102.9801, 115.9465, 122.7717)
    halving: tuple[int, int] = (2, 1)
    dilated: bool = True
    pool: str = "RoIPool"
    samples: int = 0
    before_nms: int = 6000
    after_nms: int = 300
    bins: int = 14
    preactivated: bool = False


@dataclass
class Described:
    """What comes out: of P proposals; boxes are in pixels of the original image."""

    boxes: np.ndarray
    regressed: np.ndarray
    objectness: np.ndarray
    features: np.ndarray
    classes: np.ndarray = field(repr=False)
    attributes: np.ndarray = field(repr=False)


# Resizing


def resized_sides(recipe: Recipe, height: int, width: int) -> tuple[int, int, float]:
    """Height, width, and the factor that was asked for."""
    factor = recipe.min_side / min(height, width)
    if recipe.resize == "caffe":
        if np.rint(factor * max(height, width)) > recipe.max_side:
            factor = recipe.max_side / max(height, width)
        return int(np.rint(height * factor)), int(np.rint(width * factor)), factor
    sides = np.array([height * factor, width * factor])
    sides[np.argmin([height, width])] = recipe.min_side
    if sides.max() > recipe.max_side:
        sides = sides * (recipe.max_side / sides.max())
    height, width = (int(side + 0.5) for side in sides)
    return height, width, factor


def _neighbours(small: int, large: int, factor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `large` places: two neighbours among `small`, and the share of the second."""
    place = (np.arange(large) + 0.5) / factor - 0.5
    place = place.clip(0, small - 1)
    left = np.floor(place).astype(int)
    return left, (left + 1).clip(max=small - 1), place - left


def opencv_bilinear(image: np.ndarray, height: int, width: int, factor: float) -> np.ndarray:
    """What OpenCV's bilinear resize by a factor samples from (H, W, C) floats; the sides are already rounded.

    Exactly, in float64: OpenCV's own builds differ by a hundredth of a grey level, for some of them keep the
    places in float32.
    """
    left, right, share = _neighbours(image.shape[1], width, factor)
    share = share[None, :, None]
    rows = image[:, left] * (1 - share) + image[:, right] * share
    top, bottom, share = _neighbours(image.shape[0], height, factor)
    share = share[:, None, None]
    return rows[top] * (1 - share) + rows[bottom] * share


def prepared(recipe: Recipe, image: np.ndarray) -> tuple[torch.Tensor, tuple[float, float]]:
    """(H, W, 3) uint8, BGR -> (1, 3, h, w) without the mean, and the (y, x) scales of boxes."""
    height, width, factor = resized_sides(recipe, *image.shape[:2])
    mean = np.array(recipe.mean)
    if recipe.resize == "caffe":
        resized = opencv_bilinear((image - mean).astype(np.float32), height, width, factor)
        return torch.from_numpy(resized.astype(np.float32)).permute(2, 0, 1)[None], (factor, factor)
    scales = (height / image.shape[0], width / image.shape[1])
    if recipe.resize == "torch":
        pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
        pixels = F.interpolate(pixels, size=(height, width), mode="bilinear", align_corners=False)
    else:
        pixels = torch.from_numpy(recipe.resize(image, (height, width)).astype(np.float32)).permute(2, 0, 1)[None]
    return pixels - torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), scales


# Layers


@dataclass
class Layers:
    """The convolutions and linear layers of a file. `calibrate` may change a layer's numbers when it is used."""

    state: State
    calibrate: Callable[[State, str, torch.Tensor], None] | None = None

    def _use(self, name: str, x: torch.Tensor) -> None:
        if self.calibrate is not None:
            self.calibrate(self.state, name, x)

    def convolve(self, name: str, x: torch.Tensor, stride: int = 1, dilation: int = 1) -> torch.Tensor:
        weight = self.state[f"{name}.weight"].float()
        padding = dilation * (weight.shape[-1] // 2)
        bias = self.state.get(f"{name}.bias")
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        if f"{name}.norm.weight" not in self.state:
            return x
        self._use(f"{name}.norm", x)
        weight, bias, mean, var = (
            self.state[f"{name}.norm.{part}"].float() for part in ("weight", "bias", "running_mean", "running_var")
        )
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=1e-5)

    def head(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """A 1 x 1 convolution or a linear layer that predicts something."""
        self._use(name, x)
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.conv2d(x, weight, bias) if weight.ndim == 4 else x @ weight.T + bias

    def stem(self, x: torch.Tensor, caffe_pool: bool) -> torch.Tensor:
        x = self.convolve("backbone.stem.conv1", x, stride=2).relu()
        if caffe_pool:
            return F.max_pool2d(x, 3, 2, padding=0, ceil_mode=True)
        return F.max_pool2d(x, 3, 2, padding=1)

    def normalize(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """A batch norm of MXNet's epsilon."""
        self._use(name, x)
        weight, bias, mean, var = (
            self.state[f"{name}.{part}"].view(1, -1, 1, 1)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (var + 2e-5).sqrt() * weight + bias

    def preactivated_stem(self, x: torch.Tensor) -> torch.Tensor:
        x = self.normalize("backbone.stem.norm", x)
        x = F.conv2d(x, self.state["backbone.stem.conv1.weight"], stride=2, padding=3)
        x = self.normalize("backbone.stem.conv1.norm", x).clamp(min=0)
        return F.max_pool2d(x, 3, 2, padding=0, ceil_mode=True)

    def preactivated_stage(self, name: str, x: torch.Tensor, stride: int, activated: bool = False) -> torch.Tensor:
        """Bottlenecks whose batch norms come before the convolutions; the first 3 x 3 one has the stride."""
        block = 0
        while f"{name}.{block}.conv1.weight" in self.state:
            here, step = f"{name}.{block}", stride if block == 0 else 1
            one, two, three = (self.state[f"{here}.{layer}.weight"] for layer in ("conv1", "conv2", "conv3"))
            active = x if activated and block == 0 else self.normalize(f"{here}.norm", x).clamp(min=0)
            y = F.conv2d(active, one)
            y = self.normalize(f"{here}.conv2.norm", y).clamp(min=0)
            y = F.conv2d(y, two, stride=step, padding=1)
            y = self.normalize(f"{here}.conv3.norm", y).clamp(min=0)
            y = F.conv2d(y, three)
            shortcut = self.state.get(f"{here}.shortcut.weight")
            x = y + (x if shortcut is None else F.conv2d(active, shortcut, stride=step))
            block += 1
        return x

    def stage(self, name: str, x: torch.Tensor, strides: tuple[int, int], dilation: int = 1) -> torch.Tensor:
        """Bottlenecks; the first has a stride in its 1 x 1 or in its 3 x 3 convolution."""
        block = 0
        while f"{name}.{block}.conv1.weight" in self.state:
            here = f"{name}.{block}"
            first, second = strides if block == 0 else (1, 1)
            y = self.convolve(f"{here}.conv1", x, stride=first).relu()
            y = self.convolve(f"{here}.conv2", y, stride=second, dilation=dilation).relu()
            y = self.convolve(f"{here}.conv3", y)
            if f"{here}.shortcut.weight" in self.state:
                x = self.convolve(f"{here}.shortcut", x, stride=first * second)
            x = (y + x).relu()
            block += 1
        return x


# Boxes


def caffe_anchors(by_ratio: bool) -> np.ndarray:
    """(12, 4) of generate_anchors(16, (0.5, 1, 2), (4, 8, 16, 32)), ratio by ratio or size by size."""
    table = []
    for ratio in (0.5, 1.0, 2.0):
        width = np.rint(np.sqrt(256 / ratio))
        height = np.rint(width * ratio)
        for scale in (4, 8, 16, 32):
            x, y = (width * scale - 1) / 2, (height * scale - 1) / 2
            table.append([7.5 - x, 7.5 - y, 7.5 + x, 7.5 + y])
    anchors = np.array(table).reshape(3, 4, 4)
    return (anchors if by_ratio else anchors.swapaxes(0, 1)).reshape(12, 4)


def detectron2_anchors(sizes: tuple[float, ...] = (64, 128, 256, 512), by_ratio: bool = False) -> np.ndarray:
    """(3 sizes, 4) of the same areas, around 0; a ratio is height / width."""
    table = [
        [-np.sqrt(size * size / ratio) / 2, -np.sqrt(size * size * ratio) / 2]
        for size in sizes
        for ratio in (0.5, 1, 2)
    ]
    anchors = np.concatenate([table, -np.array(table)], axis=1)
    if by_ratio:
        anchors = anchors.reshape(len(sizes), 3, 4).swapaxes(0, 1).reshape(-1, 4)
    return anchors


def decoded(boxes: np.ndarray, deltas: np.ndarray, caffe: bool) -> np.ndarray:
    """(P, 4) boxes moved by (P, 4) deltas of plain units."""
    one = 1.0 if caffe else 0.0
    sides = boxes[:, 2:] - boxes[:, :2] + one
    middle = boxes[:, :2] + sides / 2 + deltas[:, :2] * sides
    sides = sides * np.exp(np.minimum(deltas[:, 2:], WIDEST))
    return np.concatenate([middle - sides / 2, middle + sides / 2], axis=1)


def clipped(boxes: np.ndarray, height: float, width: float, caffe: bool) -> np.ndarray:
    one = 1.0 if caffe else 0.0
    return np.minimum(np.maximum(boxes, 0), np.array([width, height, width, height]) - one)


def overlap(box: np.ndarray, others: np.ndarray, caffe: bool) -> np.ndarray:
    """Intersection over union of one box with each of (P, 4)."""
    one = 1.0 if caffe else 0.0
    width = np.maximum(np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0]) + one, 0)
    height = np.maximum(np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1]) + one, 0)
    areas = (others[:, 2] - others[:, 0] + one) * (others[:, 3] - others[:, 1] + one)
    area = (box[2] - box[0] + one) * (box[3] - box[1] + one)
    return width * height / (area + areas - width * height)


def suppressed(boxes: np.ndarray, scores: np.ndarray, threshold: float, caffe: bool, most: int) -> list[int]:
    """Greedy non-maximum suppression: the first `most` survivors, best first."""
    standing = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(standing) and len(kept) < most:
        best, standing = standing[0], standing[1:]
        kept.append(int(best))
        shared = overlap(boxes[best], boxes[standing], caffe)
        standing = standing[shared < threshold if caffe else shared <= threshold]
    return kept


# Pooling of regions


def _half_up(x: np.ndarray) -> np.ndarray:
    """C's round, for numbers that are not negative."""
    return np.floor(x + 0.5).astype(int)


def _largest(x: torch.Tensor, dim: int) -> torch.Tensor:
    """The maximum along one side; 0 where there is nothing."""
    return x.amax(dim=dim) if x.shape[dim] else x.sum(dim=dim)


def roi_pool(features: torch.Tensor, boxes: np.ndarray, bins: int) -> torch.Tensor:
    """Caffe's ROIPooling: (C, h, w), (P, 4) in pixels -> (P, C, bins, bins)."""
    pooled = []
    _, height, width = features.shape
    cells = _half_up(boxes.astype(np.float32) / np.float32(STRIDE))
    steps = np.arange(bins, dtype=np.float32)
    for x1, y1, x2, y2 in cells:
        edges = []
        for start, end, limit in ((x1, x2, width), (y1, y2, height)):
            size = np.float32(max(end - start + 1, 1)) / np.float32(bins)
            first = np.floor(steps * size).astype(int) + start
            last = np.ceil((steps + 1) * size).astype(int) + start
            edges.append(list(zip(first.clip(0, limit), last.clip(0, limit), strict=True)))
        bands = torch.stack([_largest(features[:, top:bottom], 1) for top, bottom in edges[1]], dim=1)
        pooled.append(torch.stack([_largest(bands[:, :, left:right], 2) for left, right in edges[0]], dim=2))
    return torch.stack(pooled)


def _sampling(start: float, side: float, bins: int, samples: int, places: int) -> np.ndarray:
    """(bins, places) how much each place counts in each bin along one side."""
    step = side / bins
    samples = samples or max(int(np.ceil(step)), 1)
    share = np.zeros((bins, places))
    for b in range(bins):
        for s in range(samples):
            at = start + b * step + (s + 0.5) * step / samples
            if at < -1 or at > places:
                continue
            at = min(max(at, 0.0), places - 1.0)
            low = min(int(at), places - 1)
            high = min(low + 1, places - 1)
            share[b, low] += (1 - (at - low)) / samples
            share[b, high] += (at - low) / samples
    return share


def roi_align(features: torch.Tensor, boxes: np.ndarray, bins: int, samples: int) -> torch.Tensor:
    """RoIAlign with half-pixel correct corners: (C, h, w), (P, 4) in pixels -> (P, C, bins, bins)."""
    _, height, width = features.shape
    pooled = []
    for box in boxes / STRIDE - 0.5:
        across = _sampling(box[0], box[2] - box[0], bins, samples, width)
        down = _sampling(box[1], box[3] - box[1], bins, samples, height)
        rows, columns = (torch.from_numpy(weights).float() for weights in (down, across))
        pooled.append(torch.einsum("ih,chw,jw->cij", rows, features, columns))
    return torch.stack(pooled)


# The whole


def proposals(recipe: Recipe, layers: Layers, features: torch.Tensor, sides: tuple[int, int], scale: float):
    """(P, 4) boxes of the resized image and their (P,) scores, best first, from a (1, C, h, w) map."""
    height, width = features.shape[2:]
    anchors = len(recipe.anchors)
    hidden = layers.convolve("proposal_generator.rpn_head.conv", features).relu()
    logits = layers.head("proposal_generator.rpn_head.objectness_logits", hidden)[0].double()
    if recipe.layout == "milvlg_caffe":  # all of the background, then all of the foreground
        logits = logits.reshape(2, anchors, height, width).softmax(dim=0)[1]
    deltas = layers.head("proposal_generator.rpn_head.anchor_deltas", hidden)[0].double()
    places, moves, values = [], [], []
    for y in range(height):
        for x in range(width):
            places.append(recipe.anchors + STRIDE * np.array([x, y, x, y]))
            moves.append(deltas[:, y, x].reshape(anchors, 4).numpy())
            values.append(logits[:, y, x].numpy())
    scores = np.concatenate(values)
    boxes = decoded(np.concatenate(places), np.concatenate(moves), recipe.caffe)
    order = np.argsort(-scores, kind="stable")
    if not recipe.caffe:
        order = order[: recipe.before_nms]
    boxes, scores = clipped(boxes[order], *sides, recipe.caffe), scores[order]
    extent = boxes[:, 2:] - boxes[:, :2]
    large = (extent + 1 >= 16 * scale if recipe.caffe else extent > 0).all(axis=1)
    boxes, scores = boxes[large][: recipe.before_nms], scores[large][: recipe.before_nms]
    kept = suppressed(boxes, scores, 0.7, recipe.caffe, recipe.after_nms)
    return boxes[kept], scores[kept]


def _names(layout: str) -> dict[str, str]:
    head = "roi_heads.box_predictor"
    if layout == "airsplay":
        return {"embedding": f"{head}.cls_embedding", "hidden": f"{head}.fc_attr", "scores": f"{head}.attr_score"}
    if layout == "milvlg_caffe":
        return {
            "embedding": f"{head}.cls_embed",
            "hidden": f"{head}.attr_linear1",
            "scores": f"{head}.attr_linear2",
        }
    head = "roi_heads.attribute_predictor"
    return {"embedding": f"{head}.obj_embed", "hidden": f"{head}.fc.0", "scores": f"{head}.attr_score"}


def attribute_probabilities(recipe: Recipe, layers: Layers, features: torch.Tensor, best: torch.Tensor):
    """(P, 400) without "none"; `best` are the most probable of all classes, numbered as in the file."""
    names = _names(recipe.layout)
    joint = torch.cat([features, layers.state[f"{names['embedding']}.weight"][best]], dim=1)
    logits = layers.head(names["scores"], layers.head(names["hidden"], joint).relu()).double()
    none = 0 if recipe.layout == "milvlg_caffe" else logits.shape[1] - 1
    others = [column for column in range(logits.shape[1]) if column != none or recipe.none == "absent"]
    if recipe.none == "counted":
        return logits.softmax(dim=1)[:, others]
    return logits[:, others].softmax(dim=1)


def pooled_features(recipe: Recipe, layers: Layers, features: torch.Tensor, boxes: np.ndarray) -> torch.Tensor:
    """(P, D) the mean of res5 over each region of a (1, C, h, w) map; fifty regions at a time."""
    means = []
    for start in range(0, len(boxes), 50):
        some = boxes[start : start + 50]
        if recipe.pool == "RoIPool":
            regions = roi_pool(features[0], some, recipe.bins)
        else:
            regions = roi_align(features[0], some, recipe.bins, recipe.samples)
        strides, dilation = ((1, 1), 2) if recipe.dilated else (recipe.halving, 1)
        if recipe.preactivated:
            regions = layers.preactivated_stage("roi_heads.res5", regions, 2, activated=True)
            regions = layers.normalize("roi_heads.res5_bn", regions).clamp(min=0)
        else:
            regions = layers.stage("roi_heads.res5", regions, strides, dilation)
        means.append(regions.mean(dim=(2, 3)))
        if layers.calibrate is not None:
            break  # its numbers are wanted, not its result
    return torch.cat(means)


@torch.no_grad()
def res4(recipe: Recipe, layers: Layers, pixels: torch.Tensor) -> torch.Tensor:
    """(1, C, h, w) of (1, 3, H, W) pixels without the mean."""
    if recipe.preactivated:
        x = layers.preactivated_stem(pixels)
        for name, stride in (("res2", 1), ("res3", 2), ("res4", 2)):
            x = layers.preactivated_stage(f"backbone.{name}", x, stride)
        return layers.normalize("roi_heads.res5.0.norm", x).clamp(min=0)
    x = layers.stem(pixels, caffe_pool=recipe.dilated)
    for name, strides in (("res2", (1, 1)), ("res3", recipe.halving), ("res4", recipe.halving)):
        x = layers.stage(f"backbone.{name}", x, strides)
    return x


def grid(
    recipe: Recipe,
    state: State,
    image: np.ndarray,
    cells: int,
    pixels: torch.Tensor | None = None,
    calibrate=None,
) -> np.ndarray:
    """(cells * cells, D) the means of res5 over the cells of an image, row by row; see `describe`.

    A cell has every place of the map that any part of its share of the map lies in (adaptive average pooling).
    """
    layers = Layers(state, calibrate)
    pixels = prepared(recipe, image)[0] if pixels is None else pixels
    strides, dilation = ((1, 1), 2) if recipe.dilated else (recipe.halving, 1)
    res5 = "backbone.res5" if recipe.layout == "grid_feats" else "roi_heads.res5"
    x = layers.stage(res5, res4(recipe, layers, pixels), strides, dilation)[0].double().numpy()
    spans = [
        [(int(np.floor(i * side / cells)), int(np.ceil((i + 1) * side / cells))) for i in range(cells)]
        for side in x.shape[1:]
    ]
    means = [x[:, top:end, left:right].mean(axis=(1, 2)) for top, end in spans[0] for left, right in spans[1]]
    return np.array(means)


def describe(
    recipe: Recipe, state: State, image: np.ndarray, pixels: torch.Tensor | None = None, calibrate=None
) -> Described:
    """The proposals of an (H, W, 3) uint8 image, BGR, by a published file's tensors.

    `pixels` (1, 3, h, w), without the mean, may take the place of what `prepared` makes of the image.
    """
    layers = Layers(state, calibrate)
    own_pixels, scales = prepared(recipe, image)
    pixels = own_pixels if pixels is None else pixels
    x = res4(recipe, layers, pixels)
    boxes, objectness = proposals(recipe, layers, x, (pixels.shape[2], pixels.shape[3]), min(scales))
    features = pooled_features(recipe, layers, x, boxes)
    boxes, objectness = boxes[: len(features)], objectness[: len(features)]
    logits = layers.head("roi_heads.box_predictor.cls_score", features).double()
    deltas = layers.head("roi_heads.box_predictor.bbox_pred", features).double().numpy()
    probabilities = logits.softmax(dim=1).numpy()
    if recipe.layout == "milvlg_caffe":  # the background first; box rows of all classes, in plain units
        probabilities, deltas = probabilities[:, 1:], deltas[:, 4:]
    else:
        probabilities, deltas = probabilities[:, :-1], deltas / np.tile(BOX_UNITS, deltas.shape[1] // 4)
    rows = np.arange(len(features))
    best = deltas.reshape(len(features), -1, 4)[rows, probabilities.argmax(axis=1)]
    attributes = attribute_probabilities(recipe, layers, features, logits.argmax(dim=1))
    originals = boxes / np.array([scales[1], scales[0]] * 2)
    if recipe.caffe:
        regressed = clipped(decoded(originals, best, True), image.shape[0], image.shape[1], True)
    else:
        regressed = clipped(decoded(boxes, best, False), pixels.shape[2], pixels.shape[3], False)
        regressed = regressed / np.array([scales[1], scales[0]] * 2)
    return Described(originals, regressed, objectness, features.numpy(), probabilities, attributes.numpy())


# Selection


def caffe_choice(boxes: np.ndarray, probabilities: np.ndarray, least: int, most: int, threshold: float = 0.2):
    """generate_tsv.py's rule, class by class: the positions of the chosen proposals."""
    shared = np.array([overlap(box, boxes, caffe=True) for box in boxes])
    confidence = np.zeros(len(boxes))
    for column in probabilities.T:
        standing = np.ones(len(boxes), dtype=bool)
        for row in np.argsort(-column, kind="stable"):
            if standing[row]:
                confidence[row] = max(confidence[row], column[row])
                standing &= shared[row] < 0.3
    chosen = [row for row in range(len(boxes)) if confidence[row] >= threshold]
    best = np.argsort(-confidence, kind="stable").tolist()
    if len(chosen) < least:
        return best[:least]
    return best[:most] if len(chosen) > most else chosen


def sweep_choice(regressed: np.ndarray, probabilities: np.ndarray, count: int) -> list[int]:
    """airsplay's and Hugging Face's rule: one suppression for all classes, looser until `count` survive."""
    scores = probabilities.max(axis=1)
    for tenths in range(5, 10):
        kept = suppressed(regressed, scores, tenths / 10, False, len(scores))
        if len(kept) >= count:
            return kept[:count]
    return np.argsort(-scores, kind="stable").tolist()[:count]
