"""The detector as the extractor uses it: resized images in, described proposals out.

Shapes: P proposals of an image, D channels of res5, C object classes, A attributes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.structures import Boxes

# Imported for what they register with Detectron2.
from extract import backbone, roi_heads  # noqa: F401
from extract.config import with_values
from extract.resizing import Resizing
from extract.weights import place_weights, read_weights


@dataclass(frozen=True)
class Proposals:
    """The proposals of one image, described.

    Attributes:
        boxes: (P, 4) x1 y1 x2 y2 in pixels of the original image.
        features: (P, D).
        class_probabilities: (P, C) without background; rows add up to one minus the background's share.
        attribute_probabilities: (P, A) without "none".
    """

    boxes: torch.Tensor
    features: torch.Tensor
    class_probabilities: torch.Tensor
    attribute_probabilities: torch.Tensor


class Detector:
    """A bottom-up-attention network ready to describe images.

    Args:
        model: Detectron2's `GeneralizedRCNN` with `BUTDROIHeads`.
        resizing: how images are resized before they come here.
    """

    def __init__(self, model: GeneralizedRCNN, resizing: Resizing) -> None:
        self.model, self.resizing = model.eval(), resizing

    @property
    def dim(self) -> int:
        """D."""
        return int(self.model.roi_heads.box_predictor.cls_score.in_features)

    @torch.inference_mode()
    def __call__(
        self, images: Sequence[torch.Tensor], original_sizes: Sequence[tuple[int, int]]
    ) -> list[Proposals]:
        """Describe the proposals of images.

        Args:
            images: (3, h, w) each, BGR 0 to 255, all of one shape: padding would change features.
            original_sizes: height and width of each before it was resized.

        Returns:
            An entry per image. Where the network proposes nothing, the whole image is the one proposal.
        """
        if len({image.shape for image in images}) != 1:
            raise ValueError("images of one batch must have one shape")
        batch = self.model.preprocess_image([{"image": image} for image in images])
        maps = self.model.backbone(batch.tensor)
        proposed, _ = self.model.proposal_generator(batch, maps, None)
        height, width = images[0].shape[1:]
        whole = torch.tensor([[0.0, 0.0, width, height]], device=batch.tensor.device)
        boxes = [p.proposal_boxes if len(p) else Boxes(whole) for p in proposed]
        outputs = self.model.roi_heads.describe(maps, boxes)
        class_probabilities = outputs.class_logits.softmax(dim=1)[:, :-1]
        attribute_probabilities = outputs.attribute_logits.softmax(dim=1)
        counts = [len(b) for b in boxes]
        return [
            Proposals(_to_original(box.tensor, (height, width), size), *described)
            for box, size, *described in zip(
                boxes,
                original_sizes,
                outputs.features.split(counts),
                class_probabilities.split(counts),
                attribute_probabilities.split(counts),
                strict=True,
            )
        ]


def _to_original(boxes: torch.Tensor, resized: tuple[int, int], original: tuple[int, int]) -> torch.Tensor:
    x, y = original[1] / resized[1], original[0] / resized[0]
    return boxes * boxes.new_tensor([x, y, x, y])


def build_network(cfg: CfgNode, weights: Path | None, device: torch.device) -> GeneralizedRCNN:
    """Detectron2's model of the configuration with the weights of a file, for inference.

    Raises:
        InputError: the file cannot be read or does not fit.
    """
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32: TF32 changes features in the third digit
    model = build_model(with_values(cfg, device=str(device)))
    if weights is not None:
        place_weights(model, read_weights(weights), weights)
    return model.eval()


def build_detector(cfg: CfgNode, weights: Path | None, device: torch.device) -> Detector:
    """The detector of a configuration; without weights it is random, as `cfg.SEED` has it."""
    if weights is None:
        torch.manual_seed(max(cfg.SEED, 0))
    resizing = Resizing(cfg.INPUT.RESIZE, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    return Detector(build_network(cfg, weights, device), resizing)
