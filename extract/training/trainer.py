"""Training the detector, by Detectron2's own trainer, data loading, schedule and checkpoints."""

import itertools
import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import detectron2.utils.comm as comm
import torch
import torch.multiprocessing as mp
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import DefaultTrainer, HookBase, launch
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.solver import build_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException
from torch.nn.parallel import DistributedDataParallel

# Imported for what they register with Detectron2.
import extract.detector.network  # noqa: F401
from data_tools.configs import RUN_CONFIG
from data_tools.console import Progress
from data_tools.errors import InputError, UsageError, one_line
from data_tools.files import claimed, is_full, read_text, replace_file
from data_tools.workers import fitting_workers
from extract.build import as_detector
from extract.config import LABELS_FILE, as_yaml, check_detects, has_inclusive_boxes, with_values
from extract.detector.detector import Detector
from extract.training.checkpoints import LAST, last_checkpoint, resume_from
from extract.training.curves import draw_curves
from extract.training.data import (
    VALIDATION,
    AttributeMapper,
    DetectionSplit,
    check_labels,
    load_detection_split,
    load_validation_split,
)
from extract.training.evaluation import evaluate_detector
from extract.training.page import PAGE, write_page
from extract.weights.initial import place_initial_weights
from extract.weights.locating import RUN_WEIGHTS

INITIAL_WEIGHTS = "initial_weights.json"
MEASURED = ("ap50", "weighted_ap50", "attribute_ap")  # of validation images, in the metrics
_RESUME = "fix: free space and continue with --resume"


class DetectorTrainer(DefaultTrainer):
    """Detectron2's trainer on a list of dataset dicts with attributes."""

    def __init__(
        self, cfg: CfgNode, records: list[dict[str, Any]], validation: DetectionSplit | None = None
    ) -> None:
        self._records = records  # the constructor of the base class builds the loader
        self._validation = validation
        super().__init__(cfg)
        self._records = []  # the loader has a packed copy

    def build_train_loader(self, cfg: CfgNode) -> Any:
        """Endless batches of `SOLVER.IMS_PER_BATCH` images; `SEED` determines their order."""
        largest = 3 * max(cfg.INPUT.MIN_SIZE_TRAIN) * cfg.INPUT.MAX_SIZE_TRAIN * cfg.SOLVER.IMS_PER_BATCH
        return build_detection_train_loader(
            self._records,
            mapper=AttributeMapper(cfg),
            sampler=TrainingSampler(len(self._records), seed=max(cfg.SEED, 0)),
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            num_workers=fitting_workers(cfg.DATALOADER.NUM_WORKERS, largest),
        )

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Detectron2's model; with `ZERO_INIT_RESIDUAL` each residual branch starts at zero.

        Deep narrow networks with batch norm learn much faster then (Goyal et al. 2017, section 5.1).
        """
        model = super().build_model(cfg)
        if cfg.MODEL.RESNETS.ZERO_INIT_RESIDUAL:
            for block in model.modules():
                if isinstance(block, BottleneckBlock):
                    nn.init.zeros_(block.conv3.norm.weight)
        return model.to(memory_format=torch.channels_last)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """SGD as Detectron2 builds it, or AdamW with the same parameter groups."""
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return build_optimizer(cfg, model)
        groups = get_default_optimizer_params(model, base_lr=cfg.SOLVER.BASE_LR, weight_decay_norm=0.0)
        adam = torch.optim.AdamW(groups, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
        return maybe_add_gradient_clipping(cfg, adam)

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's, and `EvaluationHook` before the last one, which writes the metrics of an iteration."""
        *earlier, last = super().build_hooks()
        return [*earlier, EvaluationHook(self.cfg, self._validation), last]

    def build_writers(self) -> list[EventWriter]:
        """Metrics as JSON lines and for TensorBoard; the console has a progress bar."""
        folder = Path(self.cfg.OUTPUT_DIR)
        return [JSONWriter(str(folder / "metrics.json")), TensorboardXWriter(str(folder))]


class EvaluationHook(HookBase):
    """Measures the network on validation images every `TEST.EVAL_PERIOD` iterations; draws curves and page.

    The network's state is as before afterwards, so that a run that is measured trains like one that is not.
    """

    def __init__(self, cfg: CfgNode, validation: DetectionSplit | None) -> None:
        self._cfg, self._validation = cfg, validation

    def after_step(self) -> None:
        """Measure, where it is time, and put the scores into the metrics of this iteration."""
        period, done = self._cfg.TEST.EVAL_PERIOD, self.trainer.iter + 1
        if self._validation is not None and period > 0 and (done % period == 0 or done == self.trainer.max_iter):
            if comm.is_main_process():
                scores = evaluate_detector(self._detector(), self._validation)
                self.trainer.model.train()
                measured = {name: getattr(scores, name) for name in MEASURED}
                known = {name: value for name, value in measured.items() if value is not None}
                self.trainer.storage.put_scalars(smoothing_hint=False, **known)
            comm.synchronize()

    def after_train(self) -> None:
        """Draw the curves, and the detections in a few validation images, unless training was interrupted."""
        if self.trainer.iter + 1 < self.trainer.max_iter or not comm.is_main_process():
            return
        out = Path(self._cfg.OUTPUT_DIR)
        draw_curves(out)
        if self._validation is not None:
            write_page(out / PAGE, self._detector(), self._validation)

    def _detector(self) -> Detector:
        model = self.trainer.model
        return as_detector(self._cfg, model.module if isinstance(model, DistributedDataParallel) else model)


class ProgressHook(HookBase):
    """Shows iterations and the loss on the console."""

    def before_train(self) -> None:
        """Open the bar."""
        trainer = self.trainer
        self._bar = Progress("train detector", trainer.max_iter, "iterations", trainer.start_iter)
        self._bar.__enter__()

    def after_step(self) -> None:
        """Advance the bar."""
        loss = self.trainer.storage.history("total_loss").latest()
        self._bar.advance(note=f"loss {loss:.3f}")

    def after_train(self) -> None:
        """Close the bar."""
        self._bar.__exit__(None, None, None)


def train_detector(
    cfg: CfgNode,
    split: DetectionSplit,
    out: Path,
    resume: bool = False,
    weights: Path | None = None,
    validation: DetectionSplit | None = None,
) -> Path:
    """Train a detector; returns the file of its final weights.

    Args:
        cfg: the whole recipe; `cfg.MODEL.DEVICE` is where it runs.
        split: the training images.
        out: the run folder: configuration, checkpoints, metrics, log.
        resume: continue from the last checkpoint in the run folder.
        weights: the file that a new run starts from; see `extract/weights/initial.py`.
        validation: the images that are measured every `TEST.EVAL_PERIOD` iterations, and of which some are shown
            with their detections in `OUT/detections.html`.

    Raises:
        UsageError: the folder holds a run and `resume` is not given, or the reverse; or the configuration has
            inclusive boxes or is for grids only, both of which are for inference.
        InputError: the configuration does not fit the data or the weights, or an image cannot be read.
    """
    check_detects(cfg)
    if has_inclusive_boxes(cfg):
        raise UsageError(
            "a network with Caffe's or maskrcnn-benchmark's box arithmetic cannot be trained; fix: use one with "
            "Detectron2's (vg_r101)"
        )
    check_labels(cfg, split)
    if validation is None and cfg.TEST.EVAL_PERIOD > 0:
        raise UsageError(
            f"TEST.EVAL_PERIOD is {cfg.TEST.EVAL_PERIOD} and there are no validation images; fix: add "
            f"annotations/{VALIDATION[0]}.json to the data set"
        )
    if validation is not None and (validation.classes, validation.attributes) != (split.classes, split.attributes):
        raise InputError(
            "the classes and attributes of the validation images are not those of the training images"
        )
    started = (out / LAST).is_file()
    if started and not resume:
        raise UsageError(f"{out}: holds a run; fix: continue it with --resume, or give another --out")
    if resume and not started:
        raise UsageError(f"{out}: holds no checkpoint to resume from")
    cfg = with_values(cfg, output=str(out))
    checkpoint = last_checkpoint(out) if resume else None
    if resume:
        _check_same_config(out / RUN_CONFIG, cfg)
    comm.synchronize()  # no process writes before all have checked the folder
    with claimed(out, out / ".lock") if comm.is_main_process() else nullcontext():
        return _train(cfg, split, out, checkpoint, weights, validation)


def _train(
    cfg: CfgNode,
    split: DetectionSplit,
    out: Path,
    checkpoint: Path | None,
    weights: Path | None,
    validation: DetectionSplit | None,
) -> Path:
    """Train in a folder that this process has claimed; see `train_detector`."""
    out.mkdir(parents=True, exist_ok=True)
    _log_to_file(out)
    if comm.is_main_process():
        replace_file(out / RUN_CONFIG, as_yaml(cfg).encode())
        if cfg.MODEL.LABELS == LABELS_FILE:
            names = {"classes": split.classes, "attributes": split.attributes}
            replace_file(out / LABELS_FILE, f"{json.dumps(names)}\n".encode())
    seed_all_rng(max(cfg.SEED, 0) + comm.get_rank())
    trainer = DetectorTrainer(cfg, split.records, validation)
    if weights is not None and checkpoint is None:
        _start_from(weights, trainer.model, out)
    if comm.is_main_process():
        trainer.register_hooks([ProgressHook()])
    if checkpoint is not None:
        resume_from(checkpoint, trainer)
    try:
        trainer.train()
    except InputError as error:
        raise _as_one_line(error) from None
    except (OSError, RuntimeError) as error:
        if not is_full(out):
            raise
        raise InputError(f"{out}: no space left on the disk ({one_line(error, 80)}); {_RESUME}") from None
    except FloatingPointError:
        raise InputError(
            f"{out}: iteration {trainer.iter}: the loss is no longer a finite number; earlier checkpoints stay; "
            "fix: start a new run with a lower SOLVER.BASE_LR"
        ) from None
    return out / RUN_WEIGHTS


def train_on_gpus(gpus: int, cfg: CfgNode, data: Path, out: Path, resume: bool, weights: Path | None) -> Path:
    """Train on `DATA/annotations/train.json` with one process per GPU, by Detectron2's `launch`.

    Args:
        gpus: number of GPUs; the `SOLVER.IMS_PER_BATCH` images of a step are divided among them.
        cfg: as for `train_detector`, as are `out`, `resume` and `weights`.
        data: the data folder.
        out: the run folder.
        resume: continue a run.
        weights: the file that a new run starts from.

    Returns and raises what `train_detector` does.
    """
    if cfg.SOLVER.IMS_PER_BATCH % gpus:
        raise UsageError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which --gpus {gpus} does not divide"
        )
    errors = mp.get_context("spawn").SimpleQueue()
    arguments = (errors, cfg, data, out, resume, weights)
    try:
        launch(_train_in_process, gpus, dist_url="auto", args=arguments)
    except ProcessExitedException:
        if errors.empty():
            raise
        kind, message = errors.get()
        raise kind(message) from None
    return out / RUN_WEIGHTS


def _train_in_process(
    errors: Any, cfg: CfgNode, data: Path, out: Path, resume: bool, weights: Path | None
) -> None:
    """Train in one of several processes; an error for the user is sent to the command as its type and message."""
    try:
        split, validation = load_detection_split(data, "train"), load_validation_split(data)
        train_detector(cfg, split, out, resume, weights, validation)
    except (InputError, UsageError) as error:
        errors.put((type(error), str(error)))
        raise SystemExit(1) from None


def _start_from(weights: Path, model: nn.Module, out: Path) -> None:
    network = model.module if isinstance(model, DistributedDataParallel) else model
    placed = place_initial_weights(network, weights)
    if comm.is_main_process():
        replace_file(out / INITIAL_WEIGHTS, f"{json.dumps(placed.as_json(), indent=2)}\n".encode())


def _as_one_line(error: InputError) -> InputError:
    """The message of an error alone, without the traceback that a loader's worker puts around it."""
    return InputError(str(error).strip().splitlines()[-1].split(f"{InputError.__name__}: ", 1)[-1])


def _check_same_config(stored: Path, cfg: CfgNode) -> None:
    """Raise `InputError` where a run was started with another configuration; device and folder may differ."""
    old, new = (
        [line for line in text.splitlines() if not line.startswith(("  DEVICE: ", "OUTPUT_DIR: "))]
        for text in (read_text(stored), as_yaml(cfg))
    )
    for before, now in itertools.zip_longest(old, new, fillvalue="(nothing)"):
        if before != now:
            raise InputError(
                f"{stored}: a resumed run keeps its configuration; it has {before.strip()}, not {now.strip()}"
            )


def _log_to_file(out: Path) -> None:
    """Send Detectron2's log to `OUT/log.txt` only, since the console shows the progress bar."""
    handler: logging.Handler = logging.NullHandler()
    if comm.is_main_process():
        handler = logging.FileHandler(out / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    for name in ("detectron2", "fvcore"):
        logger = logging.getLogger(name)
        for earlier in list(logger.handlers):  # of another run in this process
            logger.removeHandler(earlier)
            earlier.close()
        logger.setLevel(logging.INFO)  # or Detectron2 sets up a log of its own
        logger.propagate = False
        logger.addHandler(handler)
