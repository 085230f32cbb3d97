"""The detector as the extractor uses it: resized images in, described proposals out.

Shapes: P proposals of an image, D channels of res5, C object classes, A attributes.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances

from extract.detector.boxes import clip
from extract.detector.network import BottomUpAttention
from extract.detector.precision import Precision
from extract.detector.proposals import Proposals
from extract.detector.resizing import Geometry, Resizing
from extract.detector.roi_heads import RegionOutputs


class Detector:
    """A bottom-up-attention network ready to describe images.

    Args:
        model: the network.
        resizing: how images are resized before they come here.
        inclusive: whose box arithmetic the network has, see extract/detector/boxes.py.
        precision: of the network's convolutions and matrix products.
    """

    def __init__(
        self,
        model: BottomUpAttention,
        resizing: Resizing,
        inclusive: bool,
        precision: Precision = Precision.FP32,
    ) -> None:
        self.model, self.resizing, self.inclusive, self.precision = model.eval(), resizing, inclusive, precision
        self._uploads = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    @property
    def dim(self) -> int:
        """D."""
        return int(self.model.roi_heads.box_predictor.cls_score.in_features)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.device

    @torch.inference_mode()
    def __call__(self, images: Sequence[torch.Tensor], geometries: Sequence[Geometry]) -> list[Proposals]:
        """Describe the proposals of images.

        Args:
            images: (3, h, w) each, as `resizing` gives them, all of one shape: padding would change features.
            geometries: of each, as `resizing` gives them.

        Returns:
            An entry per image. Where the network proposes nothing, the whole image is the one proposal. On a CPU
            the bytes of an entry do not depend on the other images.
        """
        turns = self._turns(images)
        return [found for turn in turns for found in self._predict_proposals(images[turn], geometries[turn])]

    @torch.inference_mode()
    def predict_boxes(
        self,
        images: Sequence[torch.Tensor],
        geometries: Sequence[Geometry],
        boxes: Sequence[torch.Tensor],
    ) -> list[Proposals]:
        """Describe given boxes in the place of proposals: (P, 4) for each image, in pixels of the original."""
        given = [b.to(self.device, torch.float32) for b in boxes]
        turns = self._turns(images)
        return [
            found for turn in turns for found in self._predict_given(images[turn], geometries[turn], given[turn])
        ]

    @torch.inference_mode()
    def detect(self, image: torch.Tensor, geometry: Geometry) -> Instances:
        """The network's own detections in one image, as Detectron2 gives them, in pixels of the original."""
        height, width = geometry.original
        entry = {"image": image, "height": height, "width": width, "scale": min(geometry.scale)}
        with self.precision.context(self.device.type):
            [output] = self.model([entry])
        return output["instances"]

    def _turns(self, images: Sequence[torch.Tensor]) -> list[slice]:
        """Which images go through the network together: all, but on a CPU each by itself.

        There a batch gains nothing, and its size would decide how sums are cut, which moves last bits.
        """
        if len({image.shape for image in images}) != 1:
            raise ValueError("images of one batch must have one shape")
        if self.device.type == "cpu":
            return [slice(place, place + 1) for place in range(len(images))]
        return [slice(None)]

    def _predict_proposals(
        self, images: Sequence[torch.Tensor], geometries: Sequence[Geometry]
    ) -> list[Proposals]:
        with self.precision.context(self.device.type):
            batch, maps = self._feature_maps(images, geometries)
            proposed, _ = self.model.proposal_generator(batch, maps, None)
            boxes = [p.proposal_boxes.tensor if len(p) else self._whole(*p.image_size) for p in proposed]
            outputs = self.model.roi_heads.describe(maps, [Boxes(b) for b in boxes])
        originals = [g.to_original(b) for g, b in zip(geometries, boxes, strict=True)]
        return self._describe(outputs, originals, geometries)

    def _predict_given(
        self, images: Sequence[torch.Tensor], geometries: Sequence[Geometry], boxes: Sequence[torch.Tensor]
    ) -> list[Proposals]:
        with self.precision.context(self.device.type):
            _, maps = self._feature_maps(images, geometries)
            resized = [Boxes(g.to_resized(b)) for g, b in zip(geometries, boxes, strict=True)]
            outputs = self.model.roi_heads.describe(maps, resized)
        return self._describe(outputs, boxes, geometries)

    def _feature_maps(self, images: Sequence[torch.Tensor], geometries: Sequence[Geometry]) -> tuple:
        there = self._on_device(images)
        inputs = [{"image": i, "scale": min(g.scale)} for i, g in zip(there, geometries, strict=True)]
        batch = self.model.preprocess_image(inputs)
        return batch, self.model.backbone(batch.tensor)

    def _on_device(self, images: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The images on the device; a GPU fetches a batch on a stream of its own, while it still has the last."""
        if self._uploads is None or images[0].is_cuda:
            return images
        pinned = torch.empty((len(images), *images[0].shape), dtype=images[0].dtype, pin_memory=True)
        torch.stack(list(images), out=pinned)
        network = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._uploads):
            there = pinned.to(self.device, non_blocking=True)
        network.wait_stream(self._uploads)
        there.record_stream(network)
        return list(there)

    def _whole(self, height: int, width: int) -> torch.Tensor:
        everything = torch.tensor([[0.0, 0.0, width, height]], device=self.device)
        return clip(everything, (height, width), self.inclusive)

    def _describe(
        self, outputs: RegionOutputs, boxes: Sequence[torch.Tensor], geometries: Sequence[Geometry]
    ) -> list[Proposals]:
        """The outputs of all images' regions, cut into images; `boxes` are in pixels of the originals."""
        counts = [len(b) for b in boxes]
        class_probabilities = outputs.class_logits.softmax(dim=1)[:, :-1]
        deltas = _of_classes(outputs.box_deltas, class_probabilities.argmax(dim=1))
        transform = self.model.roi_heads.box_predictor.box2box_transform
        regressed = transform.apply_deltas(deltas, torch.cat(list(boxes))).split(counts)
        return [
            Proposals(box, clip(corrected, geometry.original, self.inclusive), *described)
            for box, corrected, geometry, *described in zip(
                boxes,
                regressed,
                geometries,
                outputs.features.split(counts),
                class_probabilities.split(counts),
                outputs.attribute_probabilities.split(counts),
                strict=True,
            )
        ]


def _of_classes(deltas: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(P, 4) of (P, 4 C): each row's four of its class; (P, 4) stays, where the box layer knows no classes."""
    if deltas.shape[1] == 4:
        return deltas
    return deltas.view(len(deltas), -1, 4)[torch.arange(len(deltas), device=deltas.device), classes]
