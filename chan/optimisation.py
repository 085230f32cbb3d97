"""AdamW with a step down, BERT's own weights slower than the rest."""

from torch.optim import AdamW

from chan.model import Chan
from chan.text_encoders import BertEncoder


def make_optimizer(model: Chan, lr: float, text_lr_factor: float, weight_decay: float) -> AdamW:
    """AdamW over all parameters, those of a pretrained BERT at `text_lr_factor` times the rate."""
    bert = list(model.text_encoder.bert.parameters()) if isinstance(model.text_encoder, BertEncoder) else []
    known = {id(parameter) for parameter in bert}
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = [{"params": others, "factor": 1.0}]
    if bert:
        groups.append({"params": bert, "factor": text_lr_factor})
    return AdamW(groups, lr=lr, weight_decay=weight_decay)


def set_learning_rate(optimizer: AdamW, lr: float, decay: float, decay_epoch: int, epoch: int) -> float:
    """Set every group's rate for an epoch, counted from 0, and return that of the new weights."""
    rate = lr * decay if epoch >= decay_epoch else lr
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    return rate
