"""The whole network as Detectron2 builds it, with another preparation of its input, and anchors that it keeps."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes

# Imported for what they register with Detectron2.
from extract.detector import backbone, roi_heads  # noqa: F401
from extract.detector.rpn import ScaledImages

SHAPES_OF_ANCHORS = 64  # kept: some 30 MB of the published networks'; COCO's images have about as many


@META_ARCH_REGISTRY.register()
class BottomUpAttention(GeneralizedRCNN):
    """Detectron2's R-CNN for images that come with their scale; Caffe's resize has subtracted the mean already."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Translate the config into the arguments of `GeneralizedRCNN`."""
        arguments = super().from_config(cfg)
        if cfg.INPUT.RESIZE == "caffe":  # the resize subtracts the mean, as Caffe's does
            arguments["pixel_mean"] = [0.0] * len(cfg.MODEL.PIXEL_MEAN)
        return arguments

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ScaledImages:
        """Detectron2's batch; each input's `scale` is the factor by which its image was enlarged (1 if absent)."""
        batch = super().preprocess_image(batched_inputs)
        images = ScaledImages(batch.tensor, batch.image_sizes)
        images.scales = [float(entry.get("scale", 1.0)) for entry in batched_inputs]
        return images


class KeptAnchors(torch.nn.Module):
    """The anchors of a generator, which makes them once per shape of the maps and device; for inference.

    Detectron2's generator computes both axes of the grid on the CPU: a GPU is waited for at each copy.
    """

    def __init__(self, generator: DefaultAnchorGenerator) -> None:
        super().__init__()
        self.cell_anchors = generator.cell_anchors  # under the same name, and moved with this module
        self.box_dim, self.num_anchors = generator.box_dim, generator.num_anchors
        self._make = generator.forward
        self._kept: OrderedDict[tuple, list[Boxes]] = OrderedDict()

    def forward(self, maps: Sequence[torch.Tensor]) -> list[Boxes]:
        """Of each (B, C, h, w) map its (h w A, 4) anchors, which must not be changed."""
        shapes = (next(self.cell_anchors.buffers()).device, *(one.shape[-2:] for one in maps))
        if shapes not in self._kept:
            with torch.inference_mode(False), torch.no_grad():
                self._kept[shapes] = self._make(maps)
            if len(self._kept) > SHAPES_OF_ANCHORS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(shapes)
        return [*self._kept[shapes]]
