"""Training the detector, by Detectron2's own trainer, data loading, schedule and checkpoints."""

import itertools
import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.solver import build_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.logger import setup_logger
from torch import nn

from data_tools.console import Progress
from data_tools.errors import InputError, UsageError
from data_tools.files import read_text

# Imported for what they register with Detectron2.
from extract import network  # noqa: F401
from extract.config import with_values
from extract.detection_data import AttributeMapper, DetectionSplit, check_labels

FINAL_WEIGHTS = "model_final.pth"


class DetectorTrainer(DefaultTrainer):
    """Detectron2's trainer on a list of dataset dicts with attributes."""

    def __init__(self, cfg: CfgNode, records: list[dict[str, Any]]) -> None:
        self._records = records  # the base class asks for its loader while it is being built
        super().__init__(cfg)

    def build_train_loader(self, cfg: CfgNode) -> Any:
        """Endless batches of `SOLVER.IMS_PER_BATCH` images in an order that follows from `SEED`."""
        return build_detection_train_loader(
            self._records,
            mapper=AttributeMapper(cfg),
            sampler=TrainingSampler(len(self._records), seed=max(cfg.SEED, 0)),
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Detectron2's model; `ZERO_INIT_RESIDUAL` silences each residual branch at the start.

        Deep narrow networks with batch norm learn much faster so (Goyal et al. 2017, section 5.1).
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

    def build_writers(self) -> list[EventWriter]:
        """Metrics as JSON lines and for TensorBoard; the console has a progress bar."""
        folder = Path(self.cfg.OUTPUT_DIR)
        return [JSONWriter(str(folder / "metrics.json")), TensorboardXWriter(str(folder))]


class ProgressHook(HookBase):
    """Shows iterations, the loss and its parts' sum on the console."""

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


def train_detector(cfg: CfgNode, split: DetectionSplit, out: Path, resume: bool = False) -> Path:
    """Train a detector; returns the file of its final weights.

    Args:
        cfg: the whole recipe; `cfg.MODEL.DEVICE` is where it runs.
        split: the training images.
        out: the run folder: configuration, checkpoints, metrics, log.
        resume: go on from the last checkpoint there.

    Raises:
        UsageError: the folder holds a run and `resume` is not given, or the reverse.
        InputError: the configuration does not fit the data.
    """
    check_labels(cfg, split)
    begun = (out / "last_checkpoint").is_file()
    if begun and not resume:
        raise UsageError(f"{out}: holds a run; --resume goes on with it")
    if resume and not begun:
        raise UsageError(f"{out}: holds no checkpoint to resume from")
    cfg = with_values(cfg, output=str(out))
    if resume:
        _refuse_changes(out / "config.yaml", cfg)
    out.mkdir(parents=True, exist_ok=True)
    _log_to_file(out)
    (out / "config.yaml").write_text(cfg.dump())
    seed_all_rng(max(cfg.SEED, 0))
    trainer = DetectorTrainer(cfg, split.records)
    trainer.register_hooks([ProgressHook()])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return out / FINAL_WEIGHTS


def _refuse_changes(stored: Path, cfg: CfgNode) -> None:
    """Raise `InputError` where a run was begun with another configuration; its device and place may differ."""
    old, new = (
        [line for line in text.splitlines() if not line.startswith(("  DEVICE: ", "OUTPUT_DIR: "))]
        for text in (read_text(stored), cfg.dump())
    )
    for mine, other in itertools.zip_longest(old, new, fillvalue="(nothing)"):
        if mine != other:
            raise InputError(
                f"{stored}: a resumed run keeps its configuration; it has {mine.strip()}, not {other.strip()}"
            )


def _log_to_file(out: Path) -> None:
    """Send Detectron2's log to `OUT/log.txt` alone: the console belongs to the progress bar."""
    for name in ("detectron2", "fvcore"):
        logger = setup_logger(str(out), name=name)
        for handler in [h for h in logger.handlers if type(h) is logging.StreamHandler]:
            logger.removeHandler(handler)
