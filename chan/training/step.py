"""One training step: from a batch of pairs to updated weights, optionally with gradient caching.

Gradient caching (GradCache: Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited
setup") encodes the pairs in several chunks. A first pass, without a gradient, computes the embeddings of all
pairs; the loss of the whole batch gives the gradient of each embedding; a second pass, chunk by chunk, propagates
it into the weights. The step equals that of the whole batch, negatives included, with the memory of one chunk and
a second forward pass of the encoders.

Shapes: B pairs of all processes, b pairs of this one; R regions, W words, F feature dimension, D joint dimension.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from chan.data.batches import Batch
from chan.model.chan import Chan
from chan.packing import Packed, join
from chan.scoring.pairwise import product_type
from chan.training.distributed import Ranks, Shards
from chan.training.losses import Criterion, negative_pairs
from data_tools.arithmetic import float32_products


class BothEncoders(nn.Module):
    """A model's two encoders as one module, since DistributedDataParallel synchronises per call of a module."""

    def __init__(self, model: Chan) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder = model.image_encoder, model.text_encoder

    def forward(self, images: Packed, captions: Packed) -> tuple[Packed, Packed]:
        """Features (R, F) and ids (W,) to embeddings (R, D) and (W, D)."""
        return self.image_encoder(images), self.text_encoder(captions)


@dataclass
class TrainingStep:
    """Called with a batch, it updates the weights.

    Attributes:
        model: the model, on `device`.
        optimizer: of its weights.
        device: where the batches are.
        precision: fp32, bf16 or fp16: of the matrix products in the encoders and of regions with words.
        grad_cache_chunks: chunks in which the encoders process a batch.
        clip: maximum norm of the gradient.
        mask_duplicates: whether other captions of the same image are excluded from the negatives.
        ranks: this process among those that train together.
        encoders: both encoders; in several processes they exchange gradients in the backward pass.
        scaler: scales the loss in fp16, so that small gradients do not underflow; does nothing otherwise.
    """

    model: Chan
    optimizer: AdamW
    device: torch.device
    precision: str = "fp32"
    grad_cache_chunks: int = 1
    clip: float = 2.0
    mask_duplicates: bool = True
    ranks: Ranks = Ranks()  # noqa: RUF009 - frozen
    encoders: nn.Module = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self.encoders = BothEncoders(self.model)
        if self.ranks.count > 1:
            self.encoders = DistributedDataParallel(self.encoders, broadcast_buffers=False)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def __call__(self, batch: Batch, criterion: Criterion, seed: int) -> Tensor:
        """Update the weights once.

        Args:
            batch: the pairs of this process.
            criterion: the loss.
            seed: of BERT's dropout; the chunks take the consecutive seeds from this one on.

        Returns:
            () the detached loss of the pairs of all processes.
        """
        self.optimizer.zero_grad()
        loss = self.gradients(batch, criterion, seed)
        self.scaler.unscale_(self.optimizer)
        clip_grad_norm_(self.model.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    @float32_products("ieee")
    def gradients(self, batch: Batch, criterion: Criterion, seed: int) -> Tensor:
        """Add the (scaled) gradient of the loss to the weights' gradients; returns () the detached loss.

        Arguments as for a call.
        """
        count = min(self.grad_cache_chunks, len(batch.images))
        if count == 1:
            images, captions = self._embed(self.encoders, batch, seed)
            return self._backward(images, captions, batch.image_of_pair, criterion)
        chunks = batch.split(count)
        with torch.no_grad():
            embedded = [self._embed(self.model_encoders, chunk, seed + n) for n, chunk in enumerate(chunks)]
        images, captions = (join(side) for side in zip(*embedded, strict=True))
        for side in (images, captions):
            side.rows.requires_grad_()
        loss = self._backward(images, captions, batch.image_of_pair, criterion)
        sides = zip((images, captions), zip(*embedded, strict=True), strict=True)
        upstream = [_gradient(side.rows).split([len(c.rows) for c in parts]) for side, parts in sides]
        for n, chunk in enumerate(chunks):
            with self._synchronised(n == len(chunks) - 1):
                again = self._embed(self.encoders, chunk, seed + n)
                torch.autograd.backward([side.rows for side in again], [side[n] for side in upstream])
        return loss

    @property
    def model_encoders(self) -> nn.Module:
        """The encoders without the exchange of gradients between processes."""
        return self.encoders.module if isinstance(self.encoders, DistributedDataParallel) else self.encoders

    def _embed(self, encoders: nn.Module, batch: Batch, seed: int) -> tuple[Packed, Packed]:
        torch.manual_seed(seed * self.ranks.count + self.ranks.rank)
        kind = product_type(self.precision)
        with torch.autocast(self.device.type, dtype=kind, enabled=kind is not None):
            return encoders(batch.images, batch.captions)

    def _backward(self, images: Packed, captions: Packed, of_pair: Tensor, criterion: Criterion) -> Tensor:
        shards = Shards.exchange(captions, self.ranks)
        scores = self.model.score(images, shards.captions(captions), self.precision)
        negatives = negative_pairs(shards.values(of_pair), self.mask_duplicates)
        loss = criterion(shards.scores(scores), negatives)
        # DistributedDataParallel averages the gradients of the processes, whose sum is the gradient of the loss.
        self.scaler.scale(loss * self.ranks.count).backward()
        return loss.detach()

    def _synchronised(self, last: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients once per step, in the backward pass of the last chunk."""
        if isinstance(self.encoders, DistributedDataParallel) and not last:
            return self.encoders.no_sync()
        return nullcontext()


def _gradient(rows: Tensor) -> Tensor:
    assert rows.grad is not None
    return rows.grad
