"""Checkpoints in the form of the public code, with random weights, against a forward pass written here."""

import argparse
import itertools
import json
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner, Result

from chan.commands import making, measuring  # noqa: F401 - they register commands
from chan.data.splits import open_split
from chan.options import app
from chan.runs.folder import load_run_config
from chan.runs.importing import import_checkpoint
from data_tools.captions.tokenization import tokenize
from data_tools.captions.vocabulary import SPECIAL, Vocabulary
from data_tools.errors import InputError, UsageError

DIM, WORD_DIM, FEATURES, WORDS = 16, 12, 24, 9


def weights(shapes: dict[str, tuple[int, ...]], seed: int) -> OrderedDict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return OrderedDict((name, torch.randn(shape, generator=random) * 0.4) for name, shape in shapes.items())


def image_weights(encoder: str) -> OrderedDict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (DIM, FEATURES), "fc.bias": (DIM,)}
    if encoder == "selfattention":
        shapes |= {
            "feedforward.ln.weight": (DIM,),
            "feedforward.ln.bias": (DIM,),
            "feedforward.attn.in_proj_weight": (3 * DIM, DIM),
            "feedforward.attn.in_proj_bias": (3 * DIM,),
            "feedforward.attn.out_proj.weight": (DIM, DIM),
            "feedforward.attn.out_proj.bias": (DIM,),
        }
    return weights(shapes, 1)


def bigru_weights(words: int, layers: int = 1) -> OrderedDict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (words, WORD_DIM)}
    for layer, suffix in itertools.product(range(layers), ("", "_reverse")):
        shapes |= {
            f"rnn.weight_ih_l{layer}{suffix}": (3 * DIM, 2 * DIM if layer else WORD_DIM),
            f"rnn.weight_hh_l{layer}{suffix}": (3 * DIM, DIM),
            f"rnn.bias_ih_l{layer}{suffix}": (3 * DIM,),
            f"rnn.bias_hh_l{layer}{suffix}": (3 * DIM,),
        }
    return weights(shapes | {"fc.weight": (DIM, DIM), "fc.bias": (DIM,)}, 2)


def options(**changes: object) -> argparse.Namespace:
    values = {
        "embed_size": DIM, "img_dim": FEATURES, "word_dim": WORD_DIM, "num_layers": 1, "vocab_size": WORDS,
        "precomp_enc_type": "selfattention", "text_enc_type": "bigru", "coding_type": "VHACoding",
        "pooling_type": "LSEPooling", "alpha": 0.1, "belta": 0.1, "no_imgnorm": False, "no_txtnorm": False,
        "criterion": "ContrastiveLoss", "margin": 0.05, "temperature": 0.01, "max_violation": True,
        "vse_mean_warmup_epochs": 1, "num_epochs": 25, "batch_size": 384, "learning_rate": 5e-4, "lr_update": 15,
        "grad_clip": 2.0, "seed": 2022, "drop": True, "obj_drop_rate": 0.2, "optim": "adam", "wemb_type": "glove",
        "data_name": "f30k", "data_path": "/elsewhere", "word2idx": {"<pad>": 0}, "workers": 16,
    }  # fmt: skip
    return argparse.Namespace(**{**values, **changes})


def checkpoint(path: Path, image: object, text: object, opt: object) -> Path:
    content = {
        "epoch": 17,
        "model": [image, text, OrderedDict(), OrderedDict()],
        "best_rsum": 497.5,
        "opt": opt,
        "Eiters": 6543,
    }
    torch.save(content, path)
    return path


@pytest.fixture
def vocabulary(dataset: Path, tmp_path: Path) -> Path:
    vocabulary = Vocabulary([*SPECIAL, "red", "square", "a", "circle"])
    vocabulary.save(tmp_path / "f30k_precomp_vocab.json")
    return tmp_path / "f30k_precomp_vocab.json"


def unit(rows: Tensor, norm: bool) -> Tensor:
    return rows / (rows.norm(dim=-1, keepdim=True) + 1e-8) if norm else rows


def reference_image(features: Tensor, state: OrderedDict[str, Tensor], opt: argparse.Namespace) -> Tensor:
    """One image alone, through PyTorch's own layers with the published names."""
    layer = nn.Linear(FEATURES, DIM)
    layer.load_state_dict({"weight": state["fc.weight"], "bias": state["fc.bias"]})
    rows = layer(features)
    if opt.precomp_enc_type == "selfattention":
        norm, attention = nn.LayerNorm(DIM), nn.MultiheadAttention(DIM, 8, batch_first=True)
        inner = {k.removeprefix("feedforward."): v for k, v in state.items() if k.startswith("feedforward.")}
        norm.load_state_dict({k.removeprefix("ln."): v for k, v in inner.items() if k.startswith("ln.")})
        attention.load_state_dict({k.removeprefix("attn."): v for k, v in inner.items() if k.startswith("attn.")})
        x = norm(rows)[None]
        rows = rows + attention(x, x, x, need_weights=False)[0][0]
    return unit(rows, not opt.no_imgnorm)


def reference_caption(ids: list[int], state: OrderedDict[str, Tensor], opt: argparse.Namespace) -> Tensor:
    rnn = nn.GRU(WORD_DIM, DIM, opt.num_layers, batch_first=True, bidirectional=True)
    rnn.load_state_dict({k.removeprefix("rnn."): v for k, v in state.items() if k.startswith("rnn.")})
    out = rnn(state["embed.weight"][torch.tensor([ids])])[0][0]
    return unit((out[:, :DIM] + out[:, DIM:]) / 2, not opt.no_txtnorm)


def reference_score(image: Tensor, caption: Tensor, opt: argparse.Namespace) -> Tensor:
    similarity = image @ caption.T
    if opt.coding_type == "VHACoding":
        values = similarity.max(0).values
    elif opt.coding_type == "THACoding":
        values = similarity.max(1).values
    else:
        attended = (similarity / opt.alpha).softmax(1) @ caption
        values = (attended * image).sum(1) / (attended.norm(dim=1) + 1e-8)
    return {
        "MaxPooling": lambda v: v.max(),
        "MeanPooling": lambda v: v.mean(),
        "SumPooling": lambda v: v.sum(),
        "SoftmaxPooling": lambda v: ((v / opt.belta).softmax(0) * v).sum(),
        "LSEPooling": lambda v: torch.logsumexp(v / opt.belta, 0),
    }[opt.pooling_type](values)


def called(*arguments: object) -> Result:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0 or isinstance(done.exception, InputError | UsageError), done.output
    return done


def evaluated(run: Path, dataset: Path) -> np.ndarray:
    """The scores that the command writes."""

    scores = run.parent / f"{run.name}.npy"
    arguments = ["evaluate", run, "--data", dataset, "--split", "test", "--device", "cpu", "--scores", scores]
    assert called(*arguments).exit_code == 0
    return np.load(scores, allow_pickle=False)


CASES = [
    {},
    {"precomp_enc_type": "basic", "coding_type": "THACoding", "pooling_type": "MeanPooling", "num_layers": 2},
    {"coding_type": "VSACoding", "pooling_type": "SoftmaxPooling", "alpha": 0.3},
    {"coding_type": "VSACoding", "pooling_type": "MaxPooling", "no_imgnorm": True},
    {"precomp_enc_type": "basic", "pooling_type": "SumPooling", "no_imgnorm": True, "no_txtnorm": True},
]


@pytest.mark.parametrize("changes", CASES)
def test_bigru_gives_the_published_scores(
    changes: dict[str, object], vocabulary: Path, dataset: Path, tmp_path: Path
) -> None:
    opt = options(**changes)
    image, text = image_weights(opt.precomp_enc_type), bigru_weights(WORDS, opt.num_layers)
    path = checkpoint(tmp_path / "model_best.pth", image, text, opt)
    imported = import_checkpoint(path, vocabulary, None, tmp_path / "run")
    assert (imported.epoch, imported.best_rsum) == (17, 497.5)

    opened = open_split(dataset, "test", None)
    known = Vocabulary.load(vocabulary)
    captions = [
        reference_caption([1, *(known.index(w) for w in tokenize(caption)), 2], text, opt)
        for caption in opened.split.captions
    ]
    images = [reference_image(torch.from_numpy(opened.gather(np.array([i]))), image, opt) for i in range(6)]
    pairs = itertools.product(images, captions)
    expected = torch.stack([reference_score(*pair, opt) for pair in pairs]).view(6, 30)
    np.testing.assert_allclose(
        evaluated(tmp_path / "run", dataset), expected.detach().numpy(), rtol=1e-5, atol=1e-5
    )


def test_bert_gives_the_published_scores(bert_folder: str, dataset: Path, tmp_path: Path) -> None:
    opt = options(text_enc_type="bert", pooling_type="MeanPooling", precomp_enc_type="basic", obj_drop_rate=0.5)
    image = image_weights("basic")
    bert, linear = AutoModel.from_pretrained(bert_folder).eval(), nn.Linear(384, DIM)
    for parameter in bert.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    text = OrderedDict((f"bert.{name}", value) for name, value in bert.state_dict().items())
    text["bert.embeddings.position_ids"] = torch.arange(512)[None]
    text |= {f"linear.{name}": value for name, value in linear.state_dict().items()}
    path = checkpoint(tmp_path / "model_best.pth", image, text, opt)
    import_checkpoint(path, None, bert_folder, tmp_path / "run")

    opened, tokenizer = open_split(dataset, "test", None), AutoTokenizer.from_pretrained(bert_folder)
    captions = []
    for caption in opened.split.captions:
        ids = torch.tensor([tokenizer(caption)["input_ids"]])
        captions.append(unit(linear(bert(ids, (ids != 0).float())[0][0]), True))
    images = [reference_image(torch.from_numpy(opened.gather(np.array([i]))), image, opt) for i in range(6)]
    expected = torch.stack([reference_score(*pair, opt) for pair in itertools.product(images, captions)])
    assert load_run_config(tmp_path / "run").data.region_keep_prob == 0.8  # whatever its rate says
    found = evaluated(tmp_path / "run", dataset)
    np.testing.assert_allclose(found, expected.view(6, 30).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_the_command_imports_and_tells(vocabulary: Path, dataset: Path, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "m.pth", image_weights("selfattention"), bigru_weights(WORDS), options())
    done = called("import", path, "--vocab", vocabulary, "--out", tmp_path / "run", "--json")
    assert json.loads(done.stdout) == {
        "run": str(tmp_path / "run"),
        "code": "CHAN",
        "epoch": 17,
        "best_rsum": 497.5,
    }
    config = (tmp_path / "run" / "config.yaml").read_text()
    for line in (
        "coding: vha",
        "lr: 0.0005",
        "lr_decay_epoch: 15",
        "mask_duplicates: false",
        "region_keep_prob: 0.8",
    ):
        assert line in config
    again = called("import", path, "--vocab", vocabulary, "--out", tmp_path / "run")
    assert "holds a run already" in str(again.exception)
    resumed = called("train", "--data", dataset, "--out", tmp_path / "run", "--resume", "--device", "cpu")
    assert "state.pt: no such file" in str(resumed.exception)


class Malicious:
    """Unpickled freely, it would make a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("place", ["opt", "model", "inside opt"])
def test_a_malicious_checkpoint_runs_nothing(place: str, vocabulary: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    evil = Malicious(trace)
    opt = {"opt": evil, "inside opt": options(extra=evil)}.get(place, options())
    text = OrderedDict(evil=evil) if place == "model" else bigru_weights(WORDS)
    path = checkpoint(tmp_path / "evil.pth", image_weights("basic"), text, opt)
    with pytest.raises(InputError, match=r"evil\.pth: holds .*mkdir.*nothing of it was run") as error:
        import_checkpoint(path, vocabulary, None, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not trace.exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precomp_enc_type": "transformer"}, "mixes the images of a batch"),
        ({"num_layers": 2}, r"missing: text_encoder\.rnn\.weight_ih_l1"),
        ({"num_layers": 99}, r"model\.text\.layers"),
        ({"obj_drop_rate": "often"}, "obj_drop_rate: expected a number, found 'often'"),
        ({"coding_type": ["VHACoding"]}, "coding_type: expected a number or a word, found a list"),
        ({"coding_type": "XYZCoding"}, "coding_type: 'XYZCoding': expected one of VHACoding"),
        ({"embed_size": 12}, "model.dim"),
        ({"img_dim": 7}, r"wrong shape: image_encoder\.fc\.weight \(16, 24\), expected \(16, 7\)"),
        ({"precomp_enc_type": "basic"}, r"unexpected: image_encoder\.feedforward"),
    ],
)
def test_what_cannot_be_reproduced_is_refused(
    changes: dict[str, object], message: str, vocabulary: Path, tmp_path: Path
) -> None:
    path = checkpoint(tmp_path / "m.pth", image_weights("selfattention"), bigru_weights(WORDS), options(**changes))
    with pytest.raises(InputError, match=message):
        import_checkpoint(path, vocabulary, None, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_mistakes(vocabulary: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    good = checkpoint(tmp_path / "m.pth", image_weights("selfattention"), bigru_weights(WORDS), options())
    with pytest.raises(UsageError, match="--vocab FILE is needed"):
        import_checkpoint(good, None, None, run)
    with pytest.raises(UsageError, match="--bert is not"):
        import_checkpoint(good, vocabulary, "some", run)
    bert = checkpoint(tmp_path / "b.pth", image_weights("basic"), {}, options(text_enc_type="bert"))
    with pytest.raises(UsageError, match=r"--bert NAME\|FOLDER is needed"):
        import_checkpoint(bert, vocabulary, None, run)
    Vocabulary([*SPECIAL, "one"]).save(tmp_path / "other.json")
    with pytest.raises(InputError, match=r"embed\.weight \(9, 12\), expected \(6, 12\).*--vocab"):
        import_checkpoint(good, tmp_path / "other.json", None, run)
    with pytest.raises(InputError, match="no such checkpoint"):
        import_checkpoint(tmp_path / "none.pth", vocabulary, None, run)
    for content in (b"", b"no pickle", good.read_bytes()[:500]):
        (tmp_path / "bad.pth").write_bytes(content)
        with pytest.raises(InputError, match="not a readable checkpoint"):
            import_checkpoint(tmp_path / "bad.pth", vocabulary, None, run)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "state.pth")
    with pytest.raises(InputError, match="model and opt"):
        import_checkpoint(tmp_path / "state.pth", vocabulary, None, run)
