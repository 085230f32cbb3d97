import itertools
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils import clip_grad_norm_

from chan.config import Config, load_config
from chan.data.splits import open_split
from chan.runs import folder as runs
from chan.runs import train as runs_train
from chan.runs.provenance import check_provenance
from chan.training import checkpoints, loop
from chan.training import step as steps
from chan.training.checkpoints import TrainProgress
from data_tools.errors import InputError, UsageError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _threads() -> None:
    torch.set_num_threads(1)  # for tensors this small more threads only cost time


def train(folder: Path, dataset: Path, config: Config, resume: bool = False) -> TrainProgress:
    return runs_train.train(folder, config, dataset, None, CPU, resume)


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def comparable(folder: Path) -> list[dict[str, Any]]:
    metrics = [*lines(folder, "train"), *lines(folder, "dev")]
    return [{name: value for name, value in line.items() if name != "pairs_per_s"} for line in metrics]


def assert_same_weights(first: Path, second: Path, file: str) -> None:
    one, other = load_file(first / file), load_file(second / file)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, dataset: Path, tiny_config: Path) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(folder, dataset, load_config(str(tiny_config)))
    return folder


def test_it_learns(finished: Path) -> None:
    losses = [line["loss"] for line in lines(finished, "train")]
    assert losses[-1] < 0.7 * losses[0]


def test_the_run_folder_holds_what_repeats_it(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    expected = {"config.yaml", "vocab.json", "best.safetensors", "last.safetensors", "state.pt", "metrics.jsonl"}
    assert expected <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert runs.load_run_config(finished).model.image.dim == 24
    dev = lines(finished, "dev")
    assert [line["epoch"] for line in dev] == [1, 2, 3]
    assert [line["lr"] for line in lines(finished, "train")] == pytest.approx([5e-3, 5e-3, 5e-4])
    assert dev[0]["rsum"] == pytest.approx(
        sum(dev[0][side][at] for side in ("i2t", "t2i") for at in ("r1", "r5", "r10"))
    )


class KilledError(Exception):
    """Stands for a signal."""


def killed_at_call(count: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, until it is called for the `count`th time."""
    calls = itertools.count(1)

    def replacement(*arguments: Any) -> Any:
        if next(calls) == count:
            raise KilledError
        return function(*arguments)

    return replacement


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        (checkpoints, "save_epoch", 2),  # the second epoch is trained and validated, its state not yet saved
        (steps, "clip_grad_norm_", 5),  # in the middle of the second epoch
        (steps, "clip_grad_norm_", 2),  # before anything is saved
    ],
)
def test_a_killed_run_resumes_to_the_same_bits(
    module: ModuleType,
    name: str,
    call: int,
    finished: Path,
    dataset: Path,
    tiny_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed_at_call(call, getattr(module, name)))
        with pytest.raises(KilledError):
            train(folder, dataset, load_config(str(tiny_config)))
    torch.manual_seed(99)  # another program could have drawn random numbers in between
    done = train(folder, dataset, runs.load_run_config(folder), resume=True)
    for file in ("last.safetensors", "best.safetensors"):
        assert_same_weights(folder, finished, file)
    assert comparable(folder) == comparable(finished)
    assert done.epoch == 3


def test_the_best_score_survives_a_resume(
    finished: Path, dataset: Path, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch after a resume that is worse than the best before it leaves the best weights alone."""
    config = load_config(str(tiny_config), ["train.epochs=1"])
    before = train(tmp_path / "run", dataset, config)
    best = (tmp_path / "run" / "best.safetensors").read_bytes()
    config = load_config(str(tiny_config), ["train.epochs=2", "model.image.dim=24"])
    monkeypatch.setattr(loop, "train_epoch", ruin)
    after = train(tmp_path / "run", dataset, config, resume=True)
    assert (after.best_rsum, after.best_epoch) == (before.best_rsum, 0)
    assert after.epoch == 2
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == best


def ruin(trainer: loop.Trainer, progress: TrainProgress) -> None:
    for parameter in trainer.step.model.parameters():
        torch.nn.init.zeros_(parameter)
    progress.epoch += 1
    progress.step += 1


class KilledSoon:
    """Saves a state after every line of metrics, of which there is one per step, and dies at a step."""

    def __init__(self, patch: pytest.MonkeyPatch, call: int) -> None:
        patch.setattr(loop, "SAVE_SECONDS", 0.0)
        patch.setattr(loop, "LOG_STEPS", 1)
        self.patch = patch
        patch.setattr(steps, "clip_grad_norm_", killed_at_call(call, clip_grad_norm_))


@pytest.mark.parametrize(
    "changes",
    [
        ["train.schedule=cosine", "train.grad_cache_chunks=3", "data.cache=memory"],
        ["train.precision=bf16", "train.grad_cache_chunks=2"],
        ["train.precision=fp16"],
        ["model.coding=vsa", "model.image.encoder=basic"],
    ],
)
def test_a_run_killed_within_an_epoch_goes_on_where_it_was(
    changes: list[str], dataset: Path, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(str(tiny_config), [*changes, "train.epochs=2"])
    monkeypatch.setattr(loop, "LOG_STEPS", 1)
    train(tmp_path / "whole", dataset, config)
    with monkeypatch.context() as patch:
        KilledSoon(patch, call=6)
        with pytest.raises(KilledError):
            train(tmp_path / "cut", dataset, config)
    taken: list[int] = []
    original = steps.TrainingStep.__call__

    def counted(self: steps.TrainingStep, *arguments: Any) -> torch.Tensor:
        taken.append(1)
        return original(self, *arguments)

    monkeypatch.setattr(steps.TrainingStep, "__call__", counted)
    train(tmp_path / "cut", dataset, runs.load_run_config(tmp_path / "cut"), resume=True)
    assert len(taken) == 1  # of six, five were saved
    for file in ("last.safetensors", "best.safetensors"):
        assert_same_weights(tmp_path / "cut", tmp_path / "whole", file)
    assert comparable(tmp_path / "cut") == comparable(tmp_path / "whole")


@pytest.fixture
def tiny_bert(bert_folder: str, tmp_path: Path) -> str:
    """A BERT of one narrow layer, with a real tokenizer."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(bert_folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    for part in (tokenizer, BertModel(BertConfig(vocab_size=len(tokenizer), **sizes))):
        part.save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


def test_bert_with_dropout_resumes_within_an_epoch(
    tiny_bert: str, dataset: Path, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["model.text.encoder=bert", f"model.text.bert={tiny_bert}", "train.grad_cache_chunks=2"]
    changes += ["train.epochs=1", "train.batch_size=30"]
    config = load_config(str(tiny_config), changes)
    train(tmp_path / "whole", dataset, config)
    with monkeypatch.context() as patch:
        KilledSoon(patch, call=2)
        with pytest.raises(KilledError):
            train(tmp_path / "cut", dataset, config)
    train(tmp_path / "cut", dataset, runs.load_run_config(tmp_path / "cut"), resume=True)
    assert_same_weights(tmp_path / "cut", tmp_path / "whole", "last.safetensors")


def test_caches_and_workers_change_nothing(
    finished: Path, dataset: Path, tiny_config: Path, tmp_path: Path
) -> None:
    for cache in ("memory", "device"):
        config = load_config(str(tiny_config), [f"data.cache={cache}", "data.workers=1"])
        train(tmp_path / cache, dataset, config)
        assert_same_weights(tmp_path / cache, finished, "last.safetensors")


def test_training_stops_when_its_patience_ends(
    dataset: Path, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "train_epoch", ruin)
    config = load_config(str(tiny_config), ["train.epochs=9", "train.patience=2"])
    done = train(tmp_path / "run", dataset, config)
    assert (done.epoch, done.best_epoch) == (3, 0)
    again = train(tmp_path / "run", dataset, runs.load_run_config(tmp_path / "run"), resume=True)
    assert again.epoch == 3


def test_the_rate_follows_a_cosine_step_by_step(dataset: Path, tiny_config: Path, tmp_path: Path) -> None:
    changes = ["train.schedule=cosine", "train.batch_size=4", "train.epochs=2"]  # 15 steps per epoch
    train(tmp_path / "run", dataset, load_config(str(tiny_config), changes))
    rates = {line["step"]: line["lr"] for line in lines(tmp_path / "run", "train")}
    for step, rate in rates.items():
        assert rate == pytest.approx(5e-3 * math.cos(math.pi * (step - 1) / 60) ** 2)
    assert sorted(rates) == [10, 15, 25, 30]


VSE = ["model.coding=global", "model.pooling=gpo", "model.image.encoder=mlp"]


@pytest.mark.parametrize(
    "changes",
    [
        ["model.coding=tha"],
        ["model.coding=vsa"],
        ["model.coding=t2i", "model.pooling=mean"],
        ["model.coding=i2t", "model.pooling=scan_lse"],
        ["model.coding=global", "model.pooling=max"],
        VSE,
    ],
)
def test_other_codings_train(changes: list[str], dataset: Path, tiny_config: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", dataset, load_config(str(tiny_config), changes))
    losses = [line["loss"] for line in lines(tmp_path / "run", "train")]
    assert losses[-1] < losses[0]


def test_a_run_with_batch_normalisation_resumes_to_the_same_bits(
    dataset: Path, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(str(tiny_config), VSE)
    train(tmp_path / "whole", dataset, config)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "clip_grad_norm_", killed_at_call(5, clip_grad_norm_))
        with pytest.raises(KilledError):
            train(tmp_path / "run", dataset, config)
    train(tmp_path / "run", dataset, runs.load_run_config(tmp_path / "run"), resume=True)
    assert_same_weights(tmp_path / "run", tmp_path / "whole", "last.safetensors")
    assert load_file(tmp_path / "run" / "last.safetensors")["image_encoder.mlp.1.num_batches_tracked"] == 9


def test_a_validation_prints_what_it_records(
    dataset: Path, tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run", dataset, load_config(str(tiny_config), ["train.epochs=1"]))
    table = capsys.readouterr().err.split("dev after epoch 1")[1]
    measures = [line for line in table.splitlines() if "chance  " not in line]
    shown = re.findall(r"\d+\.\d", "\n".join(measures).replace("chance: 405.2", "chance"))  # of five images
    dev = lines(tmp_path / "run", "dev")[0]
    measured = [dev[side][name] for side in ("i2t", "t2i") for name in ("r1", "r5", "r10", "meanr")]
    assert shown == [f"{value:.1f}" for value in (*measured, dev["rsum"])]


def test_word_vectors_begin_a_run(
    dataset: Path, tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = " ".join(["0.5"] * 12)
    (tmp_path / "glove.txt").write_text(f"red {numbers}\nzebra {numbers}\n")
    changes = [f"model.text.word_vectors={tmp_path / 'glove.txt'}", "train.epochs=1"]
    train(tmp_path / "run", dataset, load_config(str(tiny_config), changes))
    tokenizer = runs.load_tokenizer(tmp_path / "run", load_config(str(tiny_config)))
    assert f"word vectors: 1 of {tokenizer.vocab_size} words found" in capsys.readouterr().err
    missing = load_config(str(tiny_config), ["model.text.word_vectors=gone.txt"])
    with pytest.raises(InputError, match=r"gone\.txt: no such file of word vectors"):
        train(tmp_path / "other", dataset, missing)
    assert not (tmp_path / "other").exists()


def with_provenance(dataset: Path, folder: Path, **attributes: str) -> Path:
    path = folder / "features.h5"
    folder.mkdir()
    shutil.copy(dataset / "precomp" / "features.h5", path)
    with h5py.File(path, "a") as store:
        store.attrs.update(attributes)
    return path


def test_features_made_otherwise_are_refused(dataset: Path, tiny_config: Path, tmp_path: Path) -> None:
    first = with_provenance(dataset, tmp_path / "a", weights_sha256="aaa", selection="caffe 36")
    config = load_config(str(tiny_config), ["train.epochs=1"])
    runs_train.train(tmp_path / "run", config, dataset, first, CPU, resume=False)
    check_provenance(tmp_path / "run", open_split(dataset, "test", first))
    check_provenance(tmp_path / "run", open_split(dataset, "test", None))  # does not state how it was made
    for name, attributes, message in (
        ("b", {"weights_sha256": "bbb", "selection": "caffe 36"}, r"with weights bbb, those of the run .* aaa"),
        ("c", {"weights_sha256": "aaa", "selection": "detectron2"}, r"selection detectron2, .* caffe 36"),
    ):
        other = with_provenance(dataset, tmp_path / name, **attributes)
        with pytest.raises(InputError, match=message):
            check_provenance(tmp_path / "run", open_split(dataset, "test", other))
        config = runs.load_run_config(tmp_path / "run")
        with pytest.raises(InputError, match=message):
            runs_train.train(tmp_path / "run", config, dataset, other, CPU, resume=True)


def test_a_run_is_never_overwritten(finished: Path, dataset: Path, tiny_config: Path) -> None:
    before = (finished / "state.pt").read_bytes()
    with pytest.raises(UsageError, match="--resume"):
        train(finished, dataset, load_config(str(tiny_config)))
    assert (finished / "state.pt").read_bytes() == before


def test_a_finished_run_resumes_to_nothing(finished: Path, dataset: Path) -> None:
    before = (finished / "last.safetensors").read_bytes()
    done = train(finished, dataset, runs.load_run_config(finished), resume=True)
    assert (done.epoch, done.step) == (3, 9)
    assert (finished / "last.safetensors").read_bytes() == before


def test_a_broken_state_ends_a_resumed_run(dataset: Path, tiny_config: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", dataset, load_config(str(tiny_config), ["train.epochs=1"]))
    (tmp_path / "run" / "state.pt").write_bytes(b"no state")
    with pytest.raises(InputError, match=r"state\.pt"):
        train(tmp_path / "run", dataset, runs.load_run_config(tmp_path / "run"), resume=True)


def test_a_loss_that_is_no_number_stops_the_run(dataset: Path, tiny_config: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="loss"):
        train(tmp_path / "run", dataset, load_config(str(tiny_config), ["train.lr=1e30"]))


@pytest.mark.parametrize(
    "changes",
    [
        ["model.image.encoder=transformer", "model.pooling=softmax", "loss.warmup_epochs=0"],
        ["model.image.encoder=basic", "model.pooling=max", "loss.name=infonce"],
    ],
)
def test_other_parts_train_too(changes: list[str], dataset: Path, tiny_config: Path, tmp_path: Path) -> None:
    config = load_config(str(tiny_config), [*changes, "train.epochs=2"])
    assert train(tmp_path / "run", dataset, config).epoch == 2
    losses = [line["loss"] for line in lines(tmp_path / "run", "train")]
    assert losses[1] < losses[0]


def test_bert_trains_and_its_run_stands_alone(
    bert_folder: str, dataset: Path, tiny_config: Path, tmp_path: Path
) -> None:
    changes = ["model.text.encoder=bert", f"model.text.bert={bert_folder}", "train.lr=1e-3", "train.epochs=2"]
    train(tmp_path / "run", dataset, load_config(str(tiny_config), changes))
    losses = [line["loss"] for line in lines(tmp_path / "run", "train")]
    assert losses[1] < losses[0]
    config = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(config.replace(bert_folder, "gone"))
    model, _, tokenizer = runs.load_best_model(tmp_path / "run", CPU)
    saved = load_file(tmp_path / "run" / "best.safetensors")
    assert torch.equal(model.state_dict()["text_encoder.linear.weight"], saved["text_encoder.linear.weight"])
    assert tokenizer.words(["red square"])[0][0][0] == "red"


def spoilt(dataset: Path, folder: Path, image: int, value: float) -> Path:
    """The data set with one number of an image's features replaced."""
    shutil.copytree(dataset, folder)
    with h5py.File(folder / "precomp" / "features.h5", "r+") as store:
        store["features"][store["offsets"][image], 3] = value
    return folder


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_no_numbers_are_named_by_their_image(
    dataset: Path, tiny_config: Path, tmp_path: Path, value: float
) -> None:
    config = load_config(str(tiny_config), ["data.region_keep_prob=1.0"])
    with pytest.raises(InputError, match=r"features\.h5: image 4, region 0: holds a number that is not finite"):
        train(tmp_path / "run", spoilt(dataset, tmp_path / "train", 4, value), config)
    with pytest.raises(InputError, match=r"image 13, region 0: holds a number that is not finite"):
        train(tmp_path / "other", spoilt(dataset, tmp_path / "dev", 13, value), config)
    for name in ("run", "other"):
        assert not (tmp_path / name / "best.safetensors").exists()


def test_weights_that_are_no_numbers_never_become_the_best(
    dataset: Path, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = steps.TrainingStep.__call__

    def spoil(self: steps.TrainingStep, *arguments: Any) -> torch.Tensor:
        loss = take(self, *arguments)
        with torch.no_grad():
            self.model.image_encoder.fc.weight[0, 0] = math.nan
        return loss

    config = load_config(str(tiny_config), ["train.batch_size=60"])  # one step per epoch
    monkeypatch.setattr(steps.TrainingStep, "__call__", spoil)
    with pytest.raises(InputError, match=r"epoch 1: image_encoder\.fc\.weight: .*train\.lr"):
        train(tmp_path / "run", dataset, config)
    assert not (tmp_path / "run" / "best.safetensors").exists()
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_one_image_has_no_negatives(dataset: Path, tiny_config: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "data")
    for kind, count in (("ids", 1), ("caps", 5)):
        path = tmp_path / "data" / "precomp" / f"train_{kind}.txt"
        path.write_text("".join(path.read_text().splitlines(True)[:count]))
    with pytest.raises(InputError, match="one image"):
        train(tmp_path / "run", tmp_path / "data", load_config(str(tiny_config)))


def test_a_run_starts_from_the_best_weights_of_another(
    finished: Path, dataset: Path, tiny_config: Path, tmp_path: Path
) -> None:
    config = load_config(str(tiny_config), ["train.epochs=1", "train.lr=1e-12", "train.weight_decay=0"])
    runs_train.train(tmp_path / "run", config, dataset, None, CPU, False, weights=finished)
    before, after = (load_file(folder / "best.safetensors") for folder in (finished, tmp_path / "run"))
    assert before.keys() == after.keys()
    for name in before:  # steps this small move no weight by more than a rounding
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-7)
    assert (tmp_path / "run" / "vocab.json").read_bytes() == (finished / "vocab.json").read_bytes()
    other = load_config(str(tiny_config), ["model.dim=24"])
    with pytest.raises(InputError, match=r"best\.safetensors: not the weights of this run's model"):
        runs_train.train(tmp_path / "other", other, dataset, None, CPU, False, weights=finished)
    assert not (tmp_path / "other" / "config.yaml").exists()


def test_the_best_epoch_is_chosen_on_the_first_dev_images(
    dataset: Path, tiny_config: Path, tmp_path: Path
) -> None:
    config = load_config(str(tiny_config), ["train.epochs=1", "data.dev_images=1"])
    done = train(tmp_path / "run", dataset, config)
    assert lines(tmp_path / "run", "dev")[0]["t2i"]["r1"] == 100  # one image to choose among
    assert done.best_rsum == lines(tmp_path / "run", "dev")[0]["rsum"]
