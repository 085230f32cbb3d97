"""Annotated images for the detector: Detectron2 dataset dicts with attributes, read from JSON."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data.transforms import Transform
from detectron2.structures import BoxMode

from data_tools.errors import InputError
from data_tools.files import read_json
from data_tools.layout import images_folder


@dataclass(frozen=True)
class DetectionSplit:
    """The annotated images of a split.

    Attributes:
        classes, attributes: their names; `category_id` and `attribute_ids` count from 0 in them.
        records: Detectron2's dataset dicts, each annotation with `attribute_ids`.
    """

    classes: list[str]
    attributes: list[str]
    records: list[dict[str, Any]]


def load_detection_split(data: Path, name: str) -> DetectionSplit:
    """Read `DATA/annotations/{name}.json`; image files are relative to the data set's images folder.

    Raises:
        InputError: the file is absent or malformed; the message names the image and the key.
    """
    path = data / "annotations" / f"{name}.json"
    document = read_json(path)
    folder = images_folder(data)
    try:
        classes, attributes = list(document["classes"]), list(document["attributes"])
        records = [_record(record, folder, len(classes), len(attributes)) for record in document["images"]]
    except (KeyError, TypeError, ValueError) as error:
        reason = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: {reason}") from None
    if not records:
        raise InputError(f"{path}: holds no image")
    return DetectionSplit(classes, attributes, records)


def _record(record: dict[str, Any], folder: Path, classes: int, attributes: int) -> dict[str, Any]:
    where = f"image {record['image_id']}"
    file = Path(record["file_name"])
    if file.is_absolute() or ".." in file.parts or not (folder / file).is_file():
        raise ValueError(f"{where}: file_name {file} is no file in {folder}")
    annotations = []
    for annotation in record["annotations"]:
        box = [float(value) for value in annotation["bbox"]]
        if len(box) != 4 or not (isfinite(sum(box)) and box[0] < box[2] and box[1] < box[3]):
            raise ValueError(f"{where}: bbox {box} is not x1 y1 x2 y2 with x1 < x2 and y1 < y2")
        if annotation["category_id"] not in range(classes):
            raise ValueError(f"{where}: category_id {annotation['category_id']} of {classes} classes")
        if not all(attribute in range(attributes) for attribute in annotation["attribute_ids"]):
            raise ValueError(f"{where}: attribute_ids {annotation['attribute_ids']} of {attributes} attributes")
        annotations.append({**annotation, "bbox": box, "bbox_mode": BoxMode.XYXY_ABS})
    return {**record, "file_name": str(folder / file), "annotations": annotations}


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
            raise InputError(f"{dataset_dict['file_name']}: {' '.join(str(error).split())}") from None

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
