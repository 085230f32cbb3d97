"""AdamW with a step down or half a cosine, BERT's own weights slower than the rest."""

import math

from torch.optim import AdamW

from chan.model.chan import Chan
from chan.model.text_encoders import BertEncoder


def make_optimizer(model: Chan, lr: float, text_lr_factor: float, weight_decay: float) -> AdamW:
    """AdamW over all parameters, those of a pretrained BERT at `text_lr_factor` times the rate.

    Fused: one pass over a weight, its gradient and its moments, on the CPU as on a GPU.
    """
    bert = list(model.text_encoder.bert.parameters()) if isinstance(model.text_encoder, BertEncoder) else []
    known = {id(parameter) for parameter in bert}
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = [{"params": others, "factor": 1.0}]
    if bert:
        groups.append({"params": bert, "factor": text_lr_factor})
    return AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)


def step_down(lr: float, decay: float, decay_epoch: int, epoch: int) -> float:
    """The rate of an epoch, counted from 0: `lr`, and from `decay_epoch` on `decay` times that."""
    return lr * decay if epoch >= decay_epoch else lr


def half_cosine(lr: float, done: float) -> float:
    """The rate after the share `done`, 0 to 1, of all steps: from `lr` down to 0 (Loshchilov and Hutter 2017)."""
    return lr * 0.5 * (1 + math.cos(math.pi * done))


def set_learning_rate(optimizer: AdamW, rate: float) -> None:
    """Set every group's rate; `rate` is that of the new weights."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
