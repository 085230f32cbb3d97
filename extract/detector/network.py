"""The whole network as Detectron2 builds it, with another preparation of its input."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN

# Imported for what they register with Detectron2.
from extract.detector import backbone, preactivation, roi_heads  # noqa: F401
from extract.detector.rpn import ScaledImages


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
