"""The detector as the extractor uses it: resized images in, proposals with their predictions out.

Shapes: P proposals of one image, D channels of res5, C object classes, A attributes.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from detectron2.structures import Boxes, Instances

from data_tools.devices import to_device
from extract.choices import Precision
from extract.detector.boxes import MaskRCNNBoxTransform, clip, grid_boxes
from extract.detector.half_precision import in_half_precision
from extract.detector.network import BottomUpAttention
from extract.detector.precision import HALF_TYPES, precision_context
from extract.detector.proposals import Proposals
from extract.detector.resizing import Geometry, Resizing
from extract.detector.roi_heads import RegionOutputs
from extract.detector.rpn import ScaledImages, propose


class Detector:
    """A bottom-up-attention network ready for inference, with the settings that its images need.

    Args:
        model: the network.
        resizing: the resize that images pass before they are given to the detector.
        inclusive: which box arithmetic the network has, see extract/detector/boxes.py.
        precision: of the network's convolutions and matrix products. In half precision the detector has a copy of
            the network with weights of that type, made here: what happens to the network later does not change it.
    """

    def __init__(
        self,
        model: BottomUpAttention,
        resizing: Resizing,
        inclusive: bool,
        precision: Precision = Precision.FP32,
    ) -> None:
        half = HALF_TYPES.get(precision)
        self.model = model.eval() if half is None else in_half_precision(model.eval(), half)
        self.resizing, self.inclusive, self.precision = resizing, inclusive, precision
        self._uploads = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    @property
    def dim(self) -> int:
        """D."""
        return int(self.model.roi_heads.dim)

    @property
    def num_attributes(self) -> int:
        """A; 0 for a network of data without attributes."""
        return int(self.model.roi_heads.box_predictor.num_attributes)

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.model.device

    @torch.inference_mode()
    def __call__(self, images: Sequence[torch.Tensor], geometries: Sequence[Geometry]) -> list[Proposals]:
        """Propose regions in images and predict their features, classes and attributes.

        Args:
            images: (3, h, w) each, as `resizing` returns them, all of one shape: padding would change features.
            geometries: of each, as `resizing` returns them.

        Returns:
            One entry per image. Where the network proposes no region, the whole image is the only proposal. On a
            CPU the bytes of an entry do not depend on the other images; on a GPU an entry has rows that fill up,
            see `extract.detector.proposals.without_padding`.
        """
        batches = self._sub_batches(images)
        return [found for part in batches for found in self._predict_proposals(images[part], geometries[part])]

    @torch.inference_mode()
    def predict_boxes(
        self,
        images: Sequence[torch.Tensor],
        geometries: Sequence[Geometry],
        boxes: Sequence[torch.Tensor],
    ) -> list[Proposals]:
        """Predict for given boxes instead of proposals: (P, 4) for each image, in pixels of the original."""
        given = [to_device(b.float(), self.device) for b in boxes]
        return [
            found
            for part in self._sub_batches(images)
            for found in self._predict_given(images[part], geometries[part], given[part])
        ]

    @torch.inference_mode()
    def classify(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Class (K, C) and attribute (K, A) probabilities of features (K, D) float32 on the device, in float32.

        They are those that `Proposals` have: without background, and without "none".
        """
        with precision_context(self.precision, self.device.type):
            outputs = self.model.roi_heads.predict_features(features)
        return outputs.class_logits.softmax(dim=1)[:, :-1], outputs.attribute_probabilities

    @torch.inference_mode()
    def pool_grid(
        self, images: Sequence[torch.Tensor], geometries: Sequence[Geometry], cells: int
    ) -> list[Proposals]:
        """The cells of a grid over each image, row by row, with the means of res5 and without predictions.

        res5 runs once over the whole map (Jiang et al. 2020) instead of once per region.

        Args:
            images: see `__call__`.
            geometries: see `__call__`.
            cells: along each side of an image.

        Returns:
            One entry per image, with P = cells * cells and C = A = 0; the boxes tile the original.
        """
        return [
            found
            for part in self._sub_batches(images)
            for found in self._pool_grid(images[part], geometries[part], cells)
        ]

    @torch.inference_mode()
    def detect(self, image: torch.Tensor, geometry: Geometry) -> Instances:
        """The network's own detections in one image, as Detectron2 returns them, in pixels of the original."""
        height, width = geometry.original
        entry = {"image": image, "height": height, "width": width, "scale": min(geometry.scale)}
        with precision_context(self.precision, self.device.type):
            [output] = self.model([entry])
        return output["instances"]

    def _sub_batches(self, images: Sequence[torch.Tensor]) -> list[slice]:
        """Which images go through the network together: all on a GPU, each alone on a CPU.

        On a CPU a batch saves no time, and its size would decide how sums are split, which changes last bits.
        """
        if len({image.shape for image in images}) != 1:
            raise ValueError("images of one batch must have one shape")
        if self.device.type == "cpu":
            return [slice(place, place + 1) for place in range(len(images))]
        return [slice(None)]

    def _predict_proposals(
        self, images: Sequence[torch.Tensor], geometries: Sequence[Geometry]
    ) -> list[Proposals]:
        with precision_context(self.precision, self.device.type):
            batch, maps = self._feature_maps(images, geometries)
            boxes, counts = self._proposed_boxes(batch, maps)
            outputs = self.model.roi_heads.predict_regions(maps, [Boxes(b) for b in boxes])
        originals = [g.to_original(b) for g, b in zip(geometries, boxes, strict=True)]
        found = self._by_image(outputs, originals, geometries)
        if counts is None:
            return found
        return [replace(proposals, count=count) for proposals, count in zip(found, counts, strict=True)]

    def _proposed_boxes(
        self, batch: ScaledImages, maps: dict[str, torch.Tensor]
    ) -> tuple[Sequence[torch.Tensor], torch.Tensor | None]:
        """(P, 4) boxes of each image, in pixels of the resized one; on a GPU with (B,) the numbers that count."""
        generator = self.model.proposal_generator
        if self.device.type == "cuda":
            found = propose(generator, batch, maps)
            return list(found.boxes), found.counts.clamp(min=1)  # what fills up is the whole image
        proposed, _ = generator(batch, maps, None)
        return [p.proposal_boxes.tensor if len(p) else self._whole(*p.image_size) for p in proposed], None

    def _predict_given(
        self, images: Sequence[torch.Tensor], geometries: Sequence[Geometry], boxes: Sequence[torch.Tensor]
    ) -> list[Proposals]:
        with precision_context(self.precision, self.device.type):
            _, maps = self._feature_maps(images, geometries)
            resized = [Boxes(g.to_resized(b)) for g, b in zip(geometries, boxes, strict=True)]
            outputs = self.model.roi_heads.predict_regions(maps, resized)
        return self._by_image(outputs, boxes, geometries)

    def _pool_grid(
        self, images: Sequence[torch.Tensor], geometries: Sequence[Geometry], cells: int
    ) -> list[Proposals]:
        with precision_context(self.precision, self.device.type):
            _, maps = self._feature_maps(images, geometries)
            pooled = self.model.roi_heads.pool_grid(maps, cells)
        boxes = [to_device(grid_boxes(geometry.original, cells), self.device) for geometry in geometries]
        nothing = pooled.new_empty((cells * cells, 0))
        return [Proposals(box, box, own, nothing, nothing) for box, own in zip(boxes, pooled, strict=True)]

    def _feature_maps(self, images: Sequence[torch.Tensor], geometries: Sequence[Geometry]) -> tuple:
        on_device = self._on_device(images)
        inputs = [{"image": i, "scale": min(g.scale)} for i, g in zip(on_device, geometries, strict=True)]
        batch = self.model.preprocess_image(inputs)
        return batch, self.model.backbone(batch.tensor)

    def _on_device(self, images: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The images on the device; a GPU copies a batch on a separate stream while it computes the one before."""
        if self._uploads is None or images[0].is_cuda:
            return images
        pinned = torch.empty((len(images), *images[0].shape), dtype=images[0].dtype, pin_memory=True)
        torch.stack(list(images), out=pinned)
        network = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._uploads):
            uploaded = pinned.to(self.device, non_blocking=True)
        network.wait_stream(self._uploads)
        uploaded.record_stream(network)
        return list(uploaded)

    def _whole(self, height: int, width: int) -> torch.Tensor:
        """(1, 4) the box of a whole resized image."""
        everything = torch.tensor([[0.0, 0.0, width, height]], device=self.device)
        return clip(everything, (height, width), self.inclusive)

    def _by_image(
        self, outputs: RegionOutputs, boxes: Sequence[torch.Tensor], geometries: Sequence[Geometry]
    ) -> list[Proposals]:
        """The outputs of all images' regions, split by image; `boxes` are in pixels of the originals."""
        counts = [len(b) for b in boxes]
        class_probabilities = outputs.class_logits.softmax(dim=1)[:, :-1]
        deltas = _of_classes(outputs.box_deltas, class_probabilities.argmax(dim=1))
        regressed = self._regressed(deltas.split(counts), boxes, geometries)
        return [
            Proposals(*own)
            for own in zip(
                boxes,
                regressed,
                outputs.features.split(counts),
                class_probabilities.split(counts),
                outputs.attribute_probabilities.split(counts),
                strict=True,
            )
        ]

    def _regressed(
        self, deltas: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor], geometries: Sequence[Geometry]
    ) -> list[torch.Tensor]:
        """The (P, 4) boxes of each image moved by (P, 4) deltas and clipped, all in pixels of the originals.

        maskrcnn-benchmark moves them in pixels of the resized image, which differs where a pixel has a width.
        """
        transform = self.model.roi_heads.box_predictor.box2box_transform
        in_resized = isinstance(transform, MaskRCNNBoxTransform)
        frames = [g.to_resized(b) if in_resized else b for g, b in zip(geometries, boxes, strict=True)]
        moved = transform.apply_deltas(torch.cat(list(deltas)), torch.cat(frames)).split([len(b) for b in boxes])
        if in_resized:
            clipped = (clip(b, g.resized, self.inclusive) for g, b in zip(geometries, moved, strict=True))
            return [g.to_original(b) for g, b in zip(geometries, clipped, strict=True)]
        return [clip(b, g.original, self.inclusive) for g, b in zip(geometries, moved, strict=True)]


def _of_classes(deltas: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(P, 4) of (P, 4 C): each row's deltas for its class; (P, 4) of a class-agnostic box layer stays."""
    if deltas.shape[1] == 4:
        return deltas
    return deltas.view(len(deltas), -1, 4)[torch.arange(len(deltas), device=deltas.device), classes]
