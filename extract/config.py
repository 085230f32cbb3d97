"""Detectron2's configuration with the keys that bottom-up attention adds to it."""

from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from data_tools.configs import check_yaml, find_config
from data_tools.detection.labels import Labels, load_labels
from data_tools.errors import InputError, UsageError, reading
from data_tools.files import read_text
from extract.detector.boxes import INCLUSIVE_TRANSFORMS
from extract.detector.resizing import METHODS

GRID_HEADS = "GridROIHeads"  # of networks from which only a grid is taken
LABELS_FILE = "labels.json"  # in the folder of a run whose data set has classes that no shipped list has


def butd_config() -> CfgNode:
    """Detectron2's defaults, with this project's keys added."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "BottomUpAttention"
    cfg.MODEL.MASK_ON = False
    cfg.MODEL.ROI_HEADS.NAME = "BUTDROIHeads"
    cfg.MODEL.ROI_ATTRIBUTE_HEAD = CfgNode()
    cfg.MODEL.ROI_ATTRIBUTE_HEAD.NUM_ATTRIBUTES = 400  # without "none"
    cfg.MODEL.ROI_ATTRIBUTE_HEAD.NONE = "dropped"  # dropped, counted or absent: see extract/detector/roi_heads.py
    cfg.MODEL.ROI_ATTRIBUTE_HEAD.OF_BACKGROUND = True  # whether attributes may be those of the class background
    cfg.MODEL.ROI_ATTRIBUTE_HEAD.LOSS_WEIGHT = 1.0
    cfg.MODEL.LABELS = ""  # names of classes and attributes: a shipped list, a JSON file, or none
    cfg.INPUT.RESIZE = "pillow"  # see extract/detector/resizing.py
    cfg.MODEL.RESNETS.ZERO_INIT_RESIDUAL = False  # start training with residual branches that add nothing
    cfg.TEST.REGIONS = [36, 36]  # min and max regions per image, unless the command gives them
    cfg.SOLVER.OPTIMIZER = "SGD"  # or AdamW
    return cfg


def load_config(spec: str) -> CfgNode:
    """The configuration of a shipped name or a file, frozen.

    Raises:
        InputError: there is no such file, or it holds an unknown key or a value of a wrong type.
    """
    path = find_config("extract", spec)
    cfg = butd_config()
    _check_files(path)
    with reading(path, "not a configuration"):
        cfg.merge_from_file(str(path), allow_unsafe=False)  # else YAML tags could run code
        beside = path.resolve().parent / cfg.MODEL.LABELS
        if beside.is_file():  # as in a run's folder, which may be read from anywhere
            cfg.MODEL.LABELS = str(beside)
    cfg.freeze()
    _check_choices(cfg, path)
    return cfg


def _check_files(path: Path, levels: int = 4) -> None:
    """Check a YAML file and those that its `_BASE_` names; Detectron2 itself would also fetch addresses."""
    check_yaml(path)
    with reading(path, "not YAML"):
        document = yaml.safe_load(read_text(path))
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected keys and values")
    base = document.get("_BASE_")
    if base is None:
        return
    if not isinstance(base, str) or ":" in base or base.startswith("~") or not (path.parent / base).is_file():
        raise InputError(f"{path}: _BASE_: expected a file on this machine, found {base!r}")
    if levels == 0:
        raise InputError(f"{path}: _BASE_: more than 4 files that build on one another")
    _check_files(path.parent / base, levels - 1)


def _check_choices(cfg: CfgNode, path: Path) -> None:
    """Raise `InputError` for values that Detectron2 accepts and this project's components do not support."""
    for key, value, choices in (
        ("INPUT.RESIZE", cfg.INPUT.RESIZE, METHODS),
        ("SOLVER.OPTIMIZER", cfg.SOLVER.OPTIMIZER, ("SGD", "AdamW")),
        ("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, ("BottomUpAttention",)),
        ("MODEL.ROI_HEADS.NAME", cfg.MODEL.ROI_HEADS.NAME, ("BUTDROIHeads", GRID_HEADS)),
        ("MODEL.ROI_ATTRIBUTE_HEAD.NONE", cfg.MODEL.ROI_ATTRIBUTE_HEAD.NONE, ("dropped", "counted", "absent")),
        ("MODEL.PROPOSAL_GENERATOR.NAME", cfg.MODEL.PROPOSAL_GENERATOR.NAME, ("RPN", *INCLUSIVE_TRANSFORMS)),
        (
            "MODEL.ANCHOR_GENERATOR.NAME",
            cfg.MODEL.ANCHOR_GENERATOR.NAME,
            ("CaffeAnchorGenerator",) if has_inclusive_boxes(cfg) else ("DefaultAnchorGenerator",),
        ),
    ):
        if value not in choices:
            raise InputError(f"{path}: {key} is {value!r}, expected {' or '.join(choices)}")
    if cfg.MODEL.LABELS:
        labels = load_labels(cfg.MODEL.LABELS)
        for key, number, names in (
            ("ROI_HEADS.NUM_CLASSES", cfg.MODEL.ROI_HEADS.NUM_CLASSES, labels.classes),
            ("ROI_ATTRIBUTE_HEAD.NUM_ATTRIBUTES", cfg.MODEL.ROI_ATTRIBUTE_HEAD.NUM_ATTRIBUTES, labels.attributes),
        ):
            if number != len(names):
                raise InputError(
                    f"{path}: MODEL.{key} is {number} and MODEL.LABELS {cfg.MODEL.LABELS!r} has {len(names)} names"
                )
    regions = cfg.TEST.REGIONS
    if len(regions) != 2 or not all(isinstance(n, int) for n in regions) or not 1 <= regions[0] <= regions[1]:
        raise InputError(
            f"{path}: TEST.REGIONS is {regions}, expected the minimum and maximum number of regions per image"
        )
    if cfg.MODEL.WEIGHTS:
        raise InputError(f"{path}: MODEL.WEIGHTS is not read here, for Detectron2 unpickles such files freely")


def has_inclusive_boxes(cfg: CfgNode) -> bool:
    """Whether boxes are `inclusive` as in extract/detector/boxes.py; such networks are for inference only."""
    return cfg.MODEL.PROPOSAL_GENERATOR.NAME in INCLUSIVE_TRANSFORMS


def suppresses_inclusively(cfg: CfgNode) -> bool:
    """Whether non-maximum suppression is `inclusive` as in extract/detector/boxes.py."""
    return bool(cfg.MODEL.PROPOSAL_GENERATOR.NAME == "CaffeRPN")


def check_detects(cfg: CfgNode) -> None:
    """Raise `UsageError` where a network is for grids only."""
    if cfg.MODEL.ROI_HEADS.NAME == GRID_HEADS:
        raise UsageError("this configuration's network is for extract-features --grid N (in Python: grid=N) only")


def labels_of(cfg: CfgNode) -> Labels:
    """The names of the configuration's classes and attributes; no names where it has none."""
    return load_labels(cfg.MODEL.LABELS) if cfg.MODEL.LABELS else Labels([], [])


def with_labels(cfg: CfgNode, labels: Labels) -> CfgNode:
    """A frozen copy of the configuration with the classes and attributes of a data set.

    `MODEL.LABELS` becomes `LABELS_FILE`, which training writes beside the configuration, unless it is the name of
    a shipped list of these labels.
    """
    known = labels_of(cfg)
    shipped = cfg.MODEL.LABELS and not cfg.MODEL.LABELS.endswith(".json")
    if shipped and (known.classes, known.attributes) == (labels.classes, labels.attributes):
        return cfg
    copy = cfg.clone()
    copy.defrost()
    copy.MODEL.ROI_HEADS.NUM_CLASSES = len(labels.classes)
    copy.MODEL.ROI_ATTRIBUTE_HEAD.NUM_ATTRIBUTES = len(labels.attributes)
    copy.MODEL.LABELS = LABELS_FILE
    copy.freeze()
    return copy


def with_values(
    cfg: CfgNode, device: str | None = None, seed: int | None = None, output: str | None = None
) -> CfgNode:
    """A frozen copy of the configuration with the given values."""
    copy = cfg.clone()
    copy.defrost()
    if device is not None:
        copy.MODEL.DEVICE = device
    if seed is not None:
        copy.SEED = seed
    if output is not None:
        copy.OUTPUT_DIR = output
    copy.freeze()
    return copy


def as_yaml(cfg: CfgNode) -> str:
    """A configuration as YAML that `load_config` reads: a list that two keys share is written twice."""
    return yaml.dump(yaml.safe_load(cfg.dump()), Dumper=_WithoutAliases)


class _WithoutAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def provenance_text(cfg: CfgNode) -> str:
    """The part of the configuration that determines features, as YAML: the same on every machine."""
    kept = CfgNode({"MODEL": cfg.MODEL.clone(), "INPUT": cfg.INPUT.clone()})
    kept.MODEL.defrost()
    del kept.MODEL["DEVICE"], kept.MODEL["WEIGHTS"]
    kept.MODEL.LABELS = Path(kept.MODEL.LABELS).name  # the names themselves are in the store
    return kept.dump()
