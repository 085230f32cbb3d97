"""A step in chunks, and in two processes, against the step of the whole batch in one process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import start_processes

from chan.data.batches import Batch
from chan.model.chan import Chan
from chan.model.image_encoders import ImageEncoder
from chan.model.text_encoders import BertEncoder, BiGRUEncoder
from chan.packing import Packed, pack
from chan.scoring.pairwise import Scorer
from chan.training.distributed import Ranks, process_group
from chan.training.losses import Criterion, contrastive, infonce
from chan.training.optimizer import make_optimizer
from chan.training.step import TrainingStep

CPU = torch.device("cpu")
PAIRS, FEATURES, WORDS, DIM = 7, 10, 20, 16


def make_batch() -> Batch:
    random = torch.Generator().manual_seed(0)
    regions = torch.randint(1, 6, (PAIRS,), generator=random).tolist()
    words = torch.randint(1, 8, (PAIRS,), generator=random).tolist()
    images = pack([torch.randn(n, FEATURES, generator=random) for n in regions])
    captions = pack([torch.randint(1, WORDS, (n,), generator=random) for n in words])
    return Batch(images, captions, torch.tensor([0, 1, 2, 1, 3, 4, 0]))


def build_step(coding: str, bert: bool = False, **options: Any) -> TrainingStep:
    torch.manual_seed(0)
    text: BiGRUEncoder | BertEncoder = BiGRUEncoder(WORDS, 6, DIM)
    if bert:
        from transformers import BertConfig, BertModel  # takes seconds, which the processes below can save

        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        text = BertEncoder(BertModel(BertConfig(vocab_size=WORDS, **sizes)), DIM)
    model = Chan(ImageEncoder(FEATURES, DIM, "selfattention"), text, Scorer.from_names(coding)).train()
    return TrainingStep(model, make_optimizer(model, 1e-2, 0.1, 0.01), CPU, **options)


def hardest(scores: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    return contrastive(scores, negatives, 0.2, hardest=True)


def information(scores: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    return infonce(scores, negatives, 0.1, 0.5)


def gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def gradients(step: TrainingStep) -> dict[str, torch.Tensor]:
    return {name: gradient_of(p).clone() for name, p in step.model.named_parameters()}


@pytest.mark.parametrize("criterion", [hardest, information])
@pytest.mark.parametrize("chunks", [2, 3, 100])
@pytest.mark.parametrize("coding", ["vha", "t2i"])
def test_chunks_give_the_gradient_of_the_whole(coding: str, chunks: int, criterion: Criterion) -> None:
    whole, chunked = build_step(coding), build_step(coding, grad_cache_chunks=chunks)
    batch = make_batch()
    losses = [step.gradients(batch, criterion, seed=5) for step in (whole, chunked)]
    torch.testing.assert_close(losses[0], losses[1])
    assert losses[0] > 0
    expected = gradients(whole)
    for name, found in gradients(chunked).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_step_rounds_no_product_to_tf32(chunks: int) -> None:
    """Forward and backward; cuDNN's GRU would, by default."""
    step, batch = build_step("vsa", grad_cache_chunks=chunks), make_batch()
    rnn, found = step.encoders.text_encoder.rnn, []

    def note(*_: Any) -> None:
        found.append(torch.backends.cuda.matmul.fp32_precision)

    before = torch.backends.cuda.matmul.fp32_precision
    with rnn.register_forward_hook(note):
        rnn.weight_hh_l0.register_hook(note)
        step(batch, hardest, seed=0)
    assert found == ["ieee"] * (2 if chunks == 1 else 6)  # in chunks all is encoded twice
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_both_passes_of_a_chunk_drop_the_same() -> None:
    """BERT's dropout is drawn twice; were the draws different, the loss's gradient would not be this one's."""
    step, batch = build_step("vha", bert=True, grad_cache_chunks=2), make_batch()
    drawn: list[list[torch.Tensor]] = []
    embed = step._embed

    def remembered(encoders: torch.nn.Module, batch: Batch, seed: int) -> tuple[Packed, Packed]:
        found = embed(encoders, batch, seed)
        drawn.append([side.rows.detach() for side in found])
        return found

    step._embed = remembered  # type: ignore[method-assign]
    step.gradients(batch, hardest, seed=5)
    for first, second in zip(drawn[:2], drawn[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    step.model.eval()
    assert not torch.equal(embed(step.encoders, batch.split(2)[0], 5)[1].rows, drawn[0][1])


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.1), ("fp16", 0.02)])
def test_mixed_precision_comes_close(precision: str, bound: float) -> None:
    exact, mixed = build_step("vha"), build_step("vha", precision=precision)
    mixed.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=precision == "fp16")
    batch = make_batch()
    losses = [step.gradients(batch, information, seed=5) for step in (exact, mixed)]
    torch.testing.assert_close(losses[0], losses[1], rtol=bound, atol=0)
    assert losses[0] != losses[1]
    assert all(p.dtype == torch.float32 for p in mixed.model.parameters())
    scale = mixed.scaler.get_scale()
    assert scale == (256.0 if precision == "fp16" else 1.0)
    expected, found = (torch.cat([g.flatten() for g in gradients(s).values()]) for s in (exact, mixed))
    assert (found / scale - expected).norm() < 4 * bound * expected.norm()


def test_an_overflow_in_fp16_skips_the_step_and_halves_the_scale() -> None:
    step, batch = build_step("vha", precision="fp16"), make_batch()
    before = {name: value.clone() for name, value in step.model.state_dict().items()}
    step(batch, lambda scores, negatives: information(scores, negatives) * 1e38, seed=5)
    assert step.scaler.get_scale() == 2.0**15
    assert all(torch.equal(value, before[name]) for name, value in step.model.state_dict().items())


def test_the_gradient_is_clipped() -> None:
    step = build_step("vha", clip=1e-3)
    step(make_batch(), hardest, seed=5)
    total = torch.stack([gradient_of(p).norm() for p in step.model.parameters()]).norm()
    assert total.item() == pytest.approx(1e-3, rel=1e-3)


def test_shards_are_consecutive_and_even() -> None:
    shards = [Ranks(rank, 3).shard(list(range(8))) for rank in range(3)]
    assert shards == [[0, 1, 2], [3, 4, 5], [6, 7]]


def shard_of(batch: Batch, ranks: Ranks) -> Batch:
    own = ranks.shard(list(range(PAIRS)))
    first, last = own[0], own[-1] + 1
    return Batch(
        batch.images.slice(first, last), batch.captions.slice(first, last), batch.image_of_pair[first:last]
    )


def one_process(rank: int, port: int, folder: str) -> None:
    """What each of two processes does: the gradient of its shard, and two steps."""
    import os

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    found: dict[str, Any] = {}
    with process_group(CPU) as (ranks, _):
        batch = shard_of(make_batch(), ranks)
        for coding in ("vha", "vsa"):
            for chunks in (1, 2):
                for name, criterion in (("hardest", hardest), ("information", information)):
                    step = build_step(coding, grad_cache_chunks=chunks, ranks=ranks)
                    loss = step.gradients(batch, criterion, seed=5)
                    found[f"{coding} {chunks} {name}"] = (loss, gradients(step))
        step = build_step("vha", ranks=ranks)
        for seed in range(2):
            step(batch, hardest, seed)
        found["weights"] = (loss, dict(step.model.state_dict()))
        found["exchanges"] = exchanges_of(lambda: step(batch, hardest, 2))
        assert ranks.broadcast(rank) == 0
    torch.save(found, Path(folder) / f"{rank}.pt")


def exchanges_of(work: Callable[[], object]) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of what this process gives to each gathering within `work`."""
    exchanges = []
    gather = torch.distributed.all_gather

    def noted(parts: list[torch.Tensor], own: torch.Tensor) -> None:
        exchanges.append((own.dtype, tuple(own.shape)))
        gather(parts, own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "all_gather", noted)
        work()
    return exchanges


def test_two_processes_take_the_step_of_one(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(one_process, (port, str(tmp_path)), nprocs=2, start_method="fork")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for coding in ("vha", "vsa"):
        for name, criterion in (("hardest", hardest), ("information", information)):
            alone = build_step(coding)
            loss = alone.gradients(make_batch(), criterion, seed=5)
            expected = gradients(alone)
            for chunks in (1, 2):
                for rank in range(2):
                    theirs, gradient = found[rank][f"{coding} {chunks} {name}"]
                    torch.testing.assert_close(theirs, loss)
                    for parameter, value in gradient.items():
                        torch.testing.assert_close(value, expected[parameter], rtol=1e-4, atol=1e-5)
    for name, value in found[0]["weights"][1].items():
        assert torch.equal(value, found[1]["weights"][1][name])
    words = max(int(shard_of(make_batch(), Ranks(rank, 2)).captions.offsets[-1]) for rank in range(2))
    most = -(-PAIRS // 2)
    hosts = [(torch.int64, (1,)), (torch.int64, (most,))]  # how many captions, and how long: once per step
    devices = [(torch.float32, (words, DIM)), (torch.int64, (most,)), (torch.float32, (most, PAIRS))]
    assert found[0]["exchanges"] == found[1]["exchanges"] == hosts + devices
