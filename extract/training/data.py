"""Annotated images for the detector: annotation files as Detectron2 dataset dicts with attributes."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data.transforms import Transform
from detectron2.structures import BoxMode

from data_tools.detection.annotations import AnnotatedImage, read_annotations
from data_tools.detection.labels import Labels
from data_tools.errors import InputError, one_line
from data_tools.layout import images_folder
from extract.config import labels_of

VALIDATION = ("val", "dev")  # names of the split that training measures


@dataclass(frozen=True)
class DetectionSplit:
    """The annotated images of a split.

    Attributes:
        classes, attributes: their names; `category_id` and `attribute_ids` count from 0 in them.
        records: Detectron2's dataset dicts, each annotation with `attribute_ids`.
        notes: what of a file in COCO's form was left out.
    """

    classes: list[str]
    attributes: list[str]
    records: list[dict[str, Any]]
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> Labels:
        """The names of the classes and attributes."""
        return Labels(self.classes, self.attributes)


def load_detection_split(data: Path, name: str) -> DetectionSplit:
    """Read `DATA/annotations/{name}.json` and find the files of its images in the dataset's images folder.

    A `file_name` counts from the images folder, or from its subfolder NAME where the file is there.

    Raises:
        InputError: the annotation file is missing or malformed (see `read_annotations`), or the file of an image
            does not exist.
    """
    path = data / "annotations" / f"{name}.json"
    annotations, folder = read_annotations(path), images_folder(data)
    records = []
    for image in annotations.images:
        places = [place / image.file_name for place in (folder, folder / name)]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise InputError(
                f"{path}: image {image.image_id}: file_name {image.file_name}: no such file in {folder}"
            )
        records.append(_dataset_dict(image, found))
    return DetectionSplit(annotations.classes, annotations.attributes, records, annotations.notes)


def load_validation_split(data: Path) -> DetectionSplit | None:
    """The first of the splits `VALIDATION` that a data folder has; None if it has none. Errors as above."""
    found = (name for name in VALIDATION if (data / "annotations" / f"{name}.json").is_file())
    name = next(found, None)
    return None if name is None else load_detection_split(data, name)


def _dataset_dict(image: AnnotatedImage, file: Path) -> dict[str, Any]:
    """An image in Detectron2's form, with `attribute_ids` beside `category_id`."""
    return {
        "file_name": str(file),
        "image_id": image.image_id,
        "height": image.height,
        "width": image.width,
        "annotations": [
            {
                "bbox": list(item.bbox),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": item.category_id,
                "attribute_ids": list(item.attribute_ids),
            }
            for item in image.annotations
        ],
    }


def check_names(cfg: CfgNode, split: DetectionSplit) -> None:
    """Raise `InputError` where the configuration names other classes or attributes than the data has."""
    check_labels(cfg, split)
    known = labels_of(cfg)
    for key in ("classes", "attributes") if known.classes else ():
        for number, (name, found) in enumerate(zip(getattr(known, key), getattr(split, key), strict=True)):
            if name != found:
                raise InputError(
                    f"the data set's {key} are not the configuration's: number {number} is {found!r}, and "
                    f"{name!r} in {cfg.MODEL.LABELS}"
                )


def check_labels(cfg: CfgNode, split: DetectionSplit) -> None:
    """Raise `InputError` where the configuration's numbers of classes and attributes are not the data's."""
    for key, configured, names in (
        ("MODEL.ROI_HEADS.NUM_CLASSES", cfg.MODEL.ROI_HEADS.NUM_CLASSES, split.classes),
        (
            "MODEL.ROI_ATTRIBUTE_HEAD.NUM_ATTRIBUTES",
            cfg.MODEL.ROI_ATTRIBUTE_HEAD.NUM_ATTRIBUTES,
            split.attributes,
        ),
    ):
        if configured != len(names):
            raise InputError(f"{key} is {configured} and the data set has {len(names)}: {', '.join(names[:8])}")


class AttributeMapper(DatasetMapper):
    """Detectron2's mapper, which also gives each instance its attributes: `gt_attributes`, (n, A) of 0 and 1."""

    def __init__(self, cfg: CfgNode, is_train: bool = True) -> None:
        super().__init__(cfg, is_train=is_train)
        self.num_attributes = cfg.MODEL.ROI_ATTRIBUTE_HEAD.NUM_ATTRIBUTES

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """See Detectron2's `DatasetMapper`; `InputError` names an image that cannot be read."""
        try:
            return super().__call__(dataset_dict)
        except (OSError, SyntaxError, utils.SizeMismatchError) as error:
            raise InputError(f"{dataset_dict['file_name']}: {one_line(error)}") from None

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: Transform, image_shape: Sequence[int]
    ) -> None:
        annotations = [
            utils.transform_instance_annotations(copy.deepcopy(annotation), transforms, image_shape)
            for annotation in dataset_dict.pop("annotations")
        ]
        instances = utils.annotations_to_instances(annotations, image_shape)
        instances.gt_attributes = torch.zeros(len(annotations), self.num_attributes)
        for row, annotation in zip(instances.gt_attributes, annotations, strict=True):
            row[annotation["attribute_ids"]] = 1.0
        dataset_dict["instances"] = utils.filter_empty_instances(instances)
