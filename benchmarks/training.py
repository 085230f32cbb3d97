"""What does one training step cost, beside a plain PyTorch version of the published formulas?

    python -m benchmarks.training                    # the paper's BiGRU recipe: 384 pairs, D 1024
    python -m benchmarks.training --model scan_t2i --pairs 128            # VSE-infinity, SCAN: their batch
    python -m benchmarks.training --pairs 32 --dim 64 --features 128     # a try

A step is encoders, scores of all pairs, hinge loss with hardest negatives, backward pass, clipping and AdamW. Both
versions start from the same weights and get the same batch; that they agree is checked first. Each is then timed
in a separate process, whose peak memory beyond weights, optimizer and batch is that of the step.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.published import padded, published_gpo, published_scores
from benchmarks.recording import record
from chan.data.batches import Batch
from chan.model.aggregation import Aggregation
from chan.model.chan import Chan
from chan.model.image_encoders import ImageEncoder
from chan.model.text_encoders import BiGRUEncoder
from chan.packing import Packed, pack
from chan.scoring.pairwise import Scorer
from chan.training.losses import contrastive
from chan.training.optimizer import make_optimizer
from chan.training.step import TrainingStep

VOCABULARY, WORD_DIM = 8000, 300
VERSIONS = ("packed", "published")


@dataclass(frozen=True)
class Recipe:
    """What a model is made of; `keep` is the share of regions that the augmentation leaves."""

    encoder: str
    coding: str
    pooling: str
    aggregation: str | None = None
    keep: float = 1.0


RECIPES = {  # SCAN has no augmentation; the public VSE-infinity's batch norm would count what is only padding
    "chan": Recipe("selfattention", "vha", "lse", keep=0.8),
    "vse_infty": Recipe("mlp", "global", "mean", "gpo"),
    "scan_t2i": Recipe("basic", "t2i", "mean"),
    "scan_i2t": Recipe("basic", "i2t", "mean"),
}


def hardest(scores: Tensor, negatives: Tensor) -> Tensor:
    """The recipe's loss after its warm-up."""
    return contrastive(scores, negatives, 0.05, hardest=True)


def make_batch(sizes: argparse.Namespace) -> Batch:
    """Pairs of an image, of which CHAN sees about four in five regions, and a caption of 8 to 20 words."""
    random = torch.Generator().manual_seed(0)
    kept = torch.rand(sizes.pairs, sizes.regions, generator=random) < RECIPES[sizes.model].keep
    regions = kept.sum(1).clamp(min=1).tolist()
    words = torch.randint(8, 21, (sizes.pairs,), generator=random).tolist()
    images = pack([torch.randn(n, sizes.features, generator=random) for n in regions])
    captions = pack([torch.randint(4, VOCABULARY, (n,), generator=random) for n in words])
    return Batch(images, captions, torch.arange(sizes.pairs))


def build_step(sizes: argparse.Namespace, device: torch.device) -> TrainingStep:
    """The recipe's model and optimizer."""
    torch.manual_seed(0)
    recipe = RECIPES[sizes.model]
    pools = [recipe.aggregation and Aggregation(recipe.aggregation) for _ in range(2)]
    image = ImageEncoder(sizes.features, sizes.dim, recipe.encoder, aggregation=pools[0] or None)
    text = BiGRUEncoder(VOCABULARY, WORD_DIM, sizes.dim, aggregation=pools[1] or None)
    model = Chan(image, text, Scorer.from_names(recipe.coding, recipe.pooling)).to(device).train()
    optimizer = make_optimizer(model, 5e-4, 0.1, 0.01)
    return TrainingStep(model, optimizer, device, sizes.precision)


class Published(TrainingStep):
    """The same step with padded tensors and the formulas as written in the paper."""

    def gradients(self, batch: Batch, criterion: Any, seed: int) -> Tensor:
        """As in `TrainingStep`, with a tensor of images x captions x regions x words."""
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        with torch.autocast(self.device.type, dtype=kind, enabled=kind is not None):
            images, regions = self._images(batch.images)
            captions, words = self._captions(batch.captions)
            if self.model.has_one_vector:
                scores = self._pooled(images, regions, self.model.image_encoder).float()
                scores = scores @ self._pooled(captions, words, self.model.text_encoder).float().T
            else:
                coding, pooling = self.names
                scores = published_scores((images, regions), (captions, words), coding, pooling).float()
        loss = criterion(scores, ~torch.eye(len(scores), dtype=torch.bool, device=scores.device))
        self.scaler.scale(loss).backward()
        return loss.detach()

    names = ("vha", "lse")
    """Coding and pooling."""

    def _pooled(self, rows: Tensor, valid: Tensor, encoder: Any) -> Tensor:
        return nn.functional.normalize(published_gpo(rows, valid, encoder.aggregation.gpo), dim=1)

    def _finished(self, rows: Tensor) -> Tensor:
        return rows if self.model.has_one_vector else nn.functional.normalize(rows, dim=2)

    def _images(self, packed: Packed) -> tuple[Tensor, Tensor]:
        encoder = self.model.image_encoder
        features, valid = padded(packed)
        rows = encoder.fc(features)
        if encoder.mlp is not None:
            rows = rows + encoder.mlp(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        if encoder.feedforward is not None:
            block: Any = encoder.feedforward
            x = block.ln(rows).transpose(0, 1)
            rows = rows + block.attn(x, x, x, need_weights=False, key_padding_mask=~valid)[0].transpose(0, 1)
        return self._finished(rows), valid

    def _captions(self, packed: Packed) -> tuple[Tensor, Tensor]:
        encoder: Any = self.model.text_encoder
        ids, valid = padded(packed)
        sequences = pack_padded_sequence(encoder.embed(ids), packed.lengths, True, enforce_sorted=False)
        out = pad_packed_sequence(encoder.rnn(sequences)[0], batch_first=True)[0]
        forwards, backwards = out.chunk(2, dim=2)
        return self._finished((forwards + backwards) / 2), valid


def make(version: str, sizes: argparse.Namespace, device: torch.device) -> TrainingStep:
    """The training step of one of `VERSIONS`."""
    step = build_step(sizes, device)
    if version == "published":
        step.__class__ = Published
        step.names = (RECIPES[sizes.model].coding, RECIPES[sizes.model].pooling)  # type: ignore[attr-defined]
    return step


def check(sizes: argparse.Namespace, device: torch.device) -> None:
    """Stop unless both versions have the same loss and gradient, on at most 16 pairs."""
    few = argparse.Namespace(**{**vars(sizes), "pairs": min(16, sizes.pairs), "precision": "fp32"})
    batch, found = make_batch(few).to(device), []
    for version in VERSIONS:
        step = make(version, few, device)
        loss = step.gradients(batch, hardest, seed=0)
        found.append((loss, torch.cat([p.grad.flatten() for p in step.model.parameters() if p.grad is not None])))
    (loss, gradient), (other, expected) = found
    difference = float((gradient - expected).norm() / expected.norm())
    if abs(float(loss - other)) > 1e-3 * float(other) or difference > 1e-2:
        sys.exit(f"error: losses {loss} and {other}, gradients differ by {difference:.2g}")
    print(f"both versions agree: loss to {abs(float(loss / other) - 1):.1e}, gradient to {difference:.1e}")


def timed(version: str, sizes: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Median seconds per step, and peak bytes of a step beyond those in use between steps, in this process."""
    batch, step = make_batch(sizes).to(device), make(version, sizes, device)
    tiny = Batch(batch.images.slice(0, 2), batch.captions.slice(0, 2), batch.image_of_pair[:2])
    step(tiny, hardest, seed=0)  # so that the optimizer has its state
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = _memory(device)
    seconds = []
    for number in range(sizes.steps + 1):
        start = time.perf_counter()
        step(batch, hardest, seed=number)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    middle = sorted(seconds[1:])[sizes.steps // 2]
    return {"seconds": middle, "pairs_per_second": sizes.pairs / middle, "bytes": _peak(device) - before}


def _memory(device: torch.device) -> int:
    return torch.cuda.memory_allocated() if device.type == "cuda" else _peak(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", choices=list(RECIPES), default="chan")
    parser.add_argument("--pairs", type=int, default=384)
    parser.add_argument("--regions", type=int, default=36)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="another results file than this machine's")
    parser.add_argument("--version", choices=VERSIONS, help=argparse.SUPPRESS)
    sizes = parser.parse_args()
    device = torch.device(sizes.device)
    if sizes.version:
        print(json.dumps(timed(sizes.version, sizes, device)))
        return
    check(sizes, device)
    found = {}
    for version in VERSIONS:
        line = [sys.executable, "-m", "benchmarks.training", *sys.argv[1:], "--version", version]
        done = subprocess.run(line, stdout=subprocess.PIPE, text=True)
        found[version] = json.loads(done.stdout) if done.returncode == 0 else None  # it ran out of memory
    print(f"{'one step':12}{'seconds':>10}{'pairs/s':>10}{'peak GB':>10}")
    for version, values in found.items():
        cells = ["-"] * 3
        if values is not None:
            cells = [
                f"{values['seconds']:.3f}",
                f"{values['pairs_per_second']:.1f}",
                f"{values['bytes'] / 1e9:.2f}",
            ]
        print(f"{version:12}" + "".join(f"{cell:>10}" for cell in cells))
    known = {name: value for name, value in vars(sizes).items() if name not in ("out", "version")}
    section = "training" if sizes.model == "chan" else f"training {sizes.model}"
    print(record(f"{section} {sizes.precision}", {"sizes": known, **found}, sizes.out))


if __name__ == "__main__":
    main()
