"""Checkpoints of VSE-infinity and SCAN, with random weights, against forward passes written here."""

import argparse
import http.server
import math
import pickle
import threading
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from transformers import AutoModel, AutoTokenizer

from chan.data.splits import open_split
from chan.retrieval.retriever import Retriever
from chan.runs.folder import load_run_config
from chan.runs.importing import import_checkpoint
from data_tools.captions.tokenization import tokenize
from data_tools.captions.vocabulary import SPECIAL, Vocabulary
from data_tools.errors import InputError, UsageError

DIM, WORD_DIM, FEATURES = 16, 12, 24
WORDS = [*SPECIAL, "red", "square", "a", "circle"]


def random_state(module: nn.Module, seed: int) -> OrderedDict[str, Tensor]:
    """A module's state with every number drawn anew; the variances of batch normalisation positive."""
    random = torch.Generator().manual_seed(seed)
    state = OrderedDict()
    for name, value in module.state_dict().items():
        drawn = torch.randn(value.shape, generator=random) * 0.4
        drawn = drawn.abs() + 0.5 if "running_var" in name else drawn
        state[name] = drawn if value.is_floating_point() else value + 7
    module.load_state_dict(state)
    return state


class Gpo(nn.Module):
    """The published pooling operator, one sequence at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(32, 32, 1, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(32, 1, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        encoding = torch.tensor(
            [
                [
                    (math.sin, math.cos)[number % 2](place / 10000 ** ((number - number % 2) / 32))
                    for number in range(32)
                ]
                for place in range(len(rows))
            ]
        )
        out = self.gru(encoding[None])[0][0]
        weights = (self.linear((out[:, :32] + out[:, 32:]) / 2)[:, 0] / 0.1).softmax(0)
        return sum(weights[k] * rows.sort(0, descending=True)[0][k] for k in range(len(rows)))


class VseImage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(FEATURES, DIM)
        self.mlp = nn.Module()
        self.mlp.layers = nn.ModuleList([nn.Linear(FEATURES, DIM // 2), nn.Linear(DIM // 2, DIM)])
        self.mlp.bns = nn.ModuleList([nn.BatchNorm1d(DIM // 2), nn.BatchNorm1d(DIM)])
        self.gpool = Gpo()

    def forward(self, features: Tensor) -> Tensor:
        first, second = self.mlp.layers  # type: ignore[misc]
        hidden = torch.relu(self.mlp.bns[0](first(features)))
        return unit(self.gpool(self.fc(features) + second(hidden)))


class GruText(nn.Module):
    """The BiGRU of both codes; pooled by VSE-infinity."""

    def __init__(self, words: int, layers: int, pooled: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, WORD_DIM)
        self.rnn = nn.GRU(WORD_DIM, DIM, layers, batch_first=True, bidirectional=True)
        if pooled:
            self.gpool = Gpo()

    def forward(self, ids: list[int]) -> Tensor:
        out = self.rnn(self.embed(torch.tensor([ids])))[0][0]
        rows = (out[:, :DIM] + out[:, DIM:]) / 2
        return unit(self.gpool(rows) if hasattr(self, "gpool") else rows)


def unit(rows: Tensor) -> Tensor:
    return rows / (rows.norm(dim=-1, keepdim=True) + 1e-8)


def vse_options(**changes: object) -> argparse.Namespace:
    values = {
        "data_path": "/elsewhere", "data_name": "f30k", "vocab_path": "./vocab/", "margin": 0.2, "num_epochs": 25,
        "batch_size": 128, "word_dim": WORD_DIM, "embed_size": DIM, "grad_clip": 2.0, "learning_rate": 5e-4,
        "lr_update": 15, "optim": "adam", "workers": 10, "log_step": 200, "val_step": 500, "max_violation": True,
        "img_dim": FEATURES, "no_imgnorm": False, "no_txtnorm": False, "precomp_enc_type": "basic",
        "backbone_path": "", "backbone_source": "detector", "vse_mean_warmup_epochs": 1, "input_scale_factor": 1,
    }  # fmt: skip
    return argparse.Namespace(**{**values, **changes})


def scan_options(**changes: object) -> argparse.Namespace:
    values = {
        "data_path": "/elsewhere", "data_name": "f30k_precomp", "margin": 0.2, "num_epochs": 30, "batch_size": 128,
        "word_dim": WORD_DIM, "embed_size": DIM, "grad_clip": 2.0, "num_layers": 1, "learning_rate": 2e-4,
        "lr_update": 15, "max_violation": True, "img_dim": FEATURES, "no_imgnorm": False, "no_txtnorm": False,
        "raw_feature_norm": "clipped_l2norm", "agg_func": "LogSumExp", "cross_attn": "t2i", "bi_gru": True,
        "precomp_enc_type": "basic", "lambda_lse": 6.0, "lambda_softmax": 9.0, "vocab_size": len(WORDS),
    }  # fmt: skip
    return argparse.Namespace(**{**values, **changes})


def save(path: Path, states: list[Any], opt: argparse.Namespace, parallel: bool = False, **how: Any) -> Path:
    if parallel:
        states = [OrderedDict((f"module.{name}", value) for name, value in state.items()) for state in states]
    content = {"epoch": 17, "model": states, "best_rsum": 512.5, "opt": opt, "Eiters": 6543}
    torch.save(content, path, **how)
    return path


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    Vocabulary(WORDS).save(tmp_path / "f30k_precomp_vocab.json")
    return tmp_path / "f30k_precomp_vocab.json"


def ids_of(caption: str) -> list[int]:
    return [1, *(WORDS.index(word) if word in WORDS else 3 for word in tokenize(caption)), 2]


def scores_of(run: Path, dataset: Path) -> np.ndarray:
    retriever, opened = Retriever.from_pretrained(run), open_split(dataset, "test", None)
    images = retriever.encode_images([opened.gather(np.array([number])) for number in range(6)])
    return retriever.score(images, retriever.encode_captions(opened.split.captions)).numpy()


def images_and_captions(dataset: Path) -> tuple[list[Tensor], list[str]]:
    opened = open_split(dataset, "test", None)
    return [torch.from_numpy(opened.gather(np.array([n]))).float() for n in range(6)], list(opened.split.captions)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_vse_infinity_with_a_bigru(
    layers: int, parallel: bool, vocabulary: Path, dataset: Path, tmp_path: Path
) -> None:
    image, text = VseImage().eval(), GruText(len(WORDS) + 1, layers, True).eval()  # <mask> is the last word
    states = [random_state(image, 1), random_state(text, 2)]
    path = save(tmp_path / "model_best.pth", states, vse_options(num_layers=layers), parallel)
    imported = import_checkpoint(path, vocabulary, None, tmp_path / "run")
    assert (imported.code, imported.epoch, imported.best_rsum) == ("VSE-infinity", 17, 512.5)
    features, captions = images_and_captions(dataset)
    expected = torch.stack([image(rows) for rows in features]) @ torch.stack([text(ids_of(c)) for c in captions]).T
    np.testing.assert_allclose(scores_of(tmp_path / "run", dataset), expected.numpy(), rtol=1e-5, atol=1e-5)
    config = load_run_config(tmp_path / "run")
    assert (config.loss.margin, config.loss.warmup_epochs, config.train.weight_decay) == (0.2, 1, 0.01)
    assert (config.data.region_keep_prob, config.data.token_change_prob) == (0.8, 0.2)


@pytest.mark.parametrize("parallel", [False, True])
@torch.no_grad()
def test_vse_infinity_with_bert(parallel: bool, bert_folder: str, dataset: Path, tmp_path: Path) -> None:
    text = nn.Module()
    text.bert, text.linear, text.gpool = AutoModel.from_pretrained(bert_folder), nn.Linear(384, DIM), Gpo()
    image, state = VseImage().eval(), OrderedDict(text.eval().state_dict())
    state |= {name: random_state(text, 3)[name] for name in state if not name.startswith("bert.")}
    text.load_state_dict(state)
    path = save(tmp_path / "model_best.pth", [random_state(image, 1), state], vse_options(), parallel)
    import_checkpoint(path, None, bert_folder, tmp_path / "run")

    features, captions = images_and_captions(dataset)
    tokenizer, rows = AutoTokenizer.from_pretrained(bert_folder), []
    for caption in captions:
        ids = torch.tensor([tokenizer(caption)["input_ids"]])
        rows.append(unit(text.gpool(text.linear(text.bert(ids, (ids != 0).float())[0][0]))))
    expected = torch.stack([image(each) for each in features]) @ torch.stack(rows).T
    np.testing.assert_allclose(scores_of(tmp_path / "run", dataset), expected.numpy(), rtol=1e-5, atol=1e-5)
    config = load_run_config(tmp_path / "run")
    assert (config.model.text.bert, config.train.weight_decay) == (bert_folder, 1e-4)


def scan_score(regions: Tensor, words: Tensor, opt: argparse.Namespace) -> float:
    """Section 3 of the paper, one query at a time."""
    queries, keys = (words, regions) if opt.cross_attn == "t2i" else (regions, words)
    similarity = (keys @ queries.T).double()
    if opt.raw_feature_norm.startswith("clipped"):
        similarity = leaky_relu(similarity, 0.1)
    kind = opt.raw_feature_norm.removeprefix("clipped_")
    if kind == "l2norm":
        similarity = similarity / (similarity.square().sum(1, keepdim=True).sqrt() + 1e-8)
    elif kind == "l1norm":
        similarity = similarity / (similarity.abs().sum(1, keepdim=True) + 1e-8)
    elif kind == "softmax":
        similarity = similarity.softmax(1)
    values = []
    for number, query in enumerate(queries.double()):
        weights = (opt.lambda_softmax * similarity[:, number]).softmax(0)
        attended = sum(weight * key for weight, key in zip(weights, keys.double(), strict=True))
        values.append(float(query @ attended / max(float(query.norm() * attended.norm()), 1e-8)))
    return {
        "Max": max(values), "Sum": sum(values), "Mean": sum(values) / len(values),
        "LogSumExp": math.log(sum(math.exp(opt.lambda_lse * value) for value in values)) / opt.lambda_lse,
    }[opt.agg_func]  # fmt: skip


SCANS = [
    {},
    {"cross_attn": "i2t", "lambda_lse": 5.0, "lambda_softmax": 4.0},
    {"agg_func": "Mean", "raw_feature_norm": "softmax", "parallel": True},
    {"cross_attn": "i2t", "agg_func": "Max", "raw_feature_norm": "clipped", "precomp_enc_type": "weight_norm"},
    {"agg_func": "Sum", "raw_feature_norm": "l2norm", "num_layers": 2},
    {"raw_feature_norm": "no_norm"},
    {"raw_feature_norm": "l1norm"},
    {"cross_attn": "i2t", "raw_feature_norm": "clipped_l1norm", "max_violation": False},
]


@pytest.mark.parametrize("changes", SCANS)
@torch.no_grad()
def test_scan(changes: dict[str, Any], vocabulary: Path, dataset: Path, tmp_path: Path) -> None:
    parallel = changes.get("parallel", False)
    opt = scan_options(**{name: value for name, value in changes.items() if name != "parallel"})
    image, text = nn.Module(), GruText(len(WORDS), opt.num_layers, False)
    image.fc = nn.Linear(FEATURES, DIM)
    if opt.precomp_enc_type == "weight_norm":
        state = OrderedDict(
            [
                ("fc.bias", torch.randn(DIM)),
                ("fc.weight_g", torch.tensor(3.0)),
                ("fc.weight_v", torch.randn(DIM, FEATURES)),
            ]
        )
        weight = 3.0 * state["fc.weight_v"] / state["fc.weight_v"].square().sum().sqrt()
        image.fc.load_state_dict({"weight": weight, "bias": state["fc.bias"]})
    else:
        state = random_state(image, 1)
    path = save(tmp_path / "model_best.pth.tar", [state, random_state(text, 2)], opt, parallel)
    assert import_checkpoint(path, vocabulary, None, tmp_path / "run").code == "SCAN"
    features, captions = images_and_captions(dataset)
    regions, words = [unit(image.fc(rows)) for rows in features], [text(ids_of(caption)) for caption in captions]
    expected = [[scan_score(one, other, opt) for other in words] for one in regions]
    np.testing.assert_allclose(scores_of(tmp_path / "run", dataset), expected, rtol=1e-5, atol=1e-5)
    config = load_run_config(tmp_path / "run")
    assert config.loss.warmup_epochs == (0 if opt.max_violation else None)
    assert (config.train.epochs, config.train.weight_decay, config.data.region_keep_prob) == (30, 0.0, 1.0)


class _Python2Pickler(pickle._Pickler):
    """Writes text as Python 2 wrote its strings: bytes without an encoding."""

    def save_text(self: Any, text: str) -> None:
        content = text.encode("ascii")
        self.write(b"U" + bytes([len(content)]) + content)
        self.memoize(text)

    dispatch: ClassVar[dict[type, Any]] = {**pickle._Pickler.dispatch, str: save_text}


class _Python2:
    """What `torch.save` takes as `pickle_module`."""

    __name__ = "pickle"
    Pickler = _Python2Pickler

    @staticmethod
    def dump(value: Any, file: Any, protocol: int) -> None:
        _Python2Pickler(file, protocol).dump(value)


def test_a_checkpoint_that_python_2_wrote(vocabulary: Path, dataset: Path, tmp_path: Path) -> None:
    image = nn.Module()
    image.fc = nn.Linear(FEATURES, DIM)
    states = [random_state(image, 1), random_state(GruText(len(WORDS), 1, False), 2)]
    write = partial(save, states=states, opt=scan_options())
    old = write(tmp_path / "old.pth.tar", pickle_module=_Python2, _use_new_zipfile_serialization=False)
    import_checkpoint(old, vocabulary, None, tmp_path / "old")
    import_checkpoint(write(tmp_path / "new.pth.tar"), vocabulary, None, tmp_path / "new")
    np.testing.assert_array_equal(scores_of(tmp_path / "old", dataset), scores_of(tmp_path / "new", dataset))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(vse_options, precomp_enc_type="backbone"), "precomp_enc_type: backbone: this model takes pixels"),
        (partial(scan_options, bi_gru=False), "bi_gru: expected a bidirectional GRU"),
        (partial(scan_options, cross_attn="both"), "cross_attn: 'both': expected one of t2i, i2t"),
        (partial(scan_options, agg_func="Min"), "agg_func: 'Min': expected one of LogSumExp"),
        (partial(scan_options, raw_feature_norm="tanh"), "model.similarity_norm"),
        (partial(scan_options, precomp_enc_type="conv"), "precomp_enc_type: 'conv': expected one of basic"),
        (partial(scan_options, num_layers=3), "weights do not fit"),
    ],
)
def test_what_this_program_lacks_is_refused(make: Any, message: str, vocabulary: Path, tmp_path: Path) -> None:
    opt = make()
    if hasattr(opt, "cross_attn"):
        image: nn.Module = nn.Module()
        image.fc = nn.Linear(FEATURES, DIM)
    else:
        image = VseImage()
    text = GruText(len(WORDS), 1, not hasattr(opt, "cross_attn"))
    path = save(tmp_path / "m.pth", [random_state(image, 1), random_state(text, 2)], opt)
    with pytest.raises(InputError, match=message) as error:
        import_checkpoint(path, vocabulary, None, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def scan_states(**changes: Tensor) -> list[Any]:
    image = nn.Module()
    image.fc = nn.Linear(FEATURES, DIM)
    return [{**random_state(image, 1), **changes}, random_state(GruText(len(WORDS), 1, False), 2)]


HOSTILE_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a list": ({"agg_func": ["Mean"]}, "agg_func: expected a number or a word, found a list"),
    "a dict": ({"cross_attn": {}}, "cross_attn: expected a number or a word, found a dict"),
    "a tensor": ({"margin": torch.zeros(3000)}, "margin: expected a number or a word, found a Tensor"),
    "two lines": ({"raw_feature_norm": "l2\nnorm"}, "raw_feature_norm: expected a number or a word"),
    "a megabyte": ({"margin": "x" * 10**6}, "margin: expected a number or a word, found 1000000 characters"),
    "the environment": ({"margin": "${oc.env:HOME}"}, "expected key=value, and a plain value"),
    "no number": ({"learning_rate": math.nan}, r"train\.lr: expected a finite number"),
    "a huge model": ({"embed_size": 8 * 10**8}, r"wrong shape: image_encoder\.fc\.weight \(16, 24\), expected"),
    "huge words": ({"word_dim": 2 * 10**9}, r"wrong shape: text_encoder\.embed\.weight"),
}


@pytest.mark.parametrize("case", HOSTILE_OPTIONS)
def test_hostile_options_are_one_line_and_take_no_memory(case: str, vocabulary: Path, tmp_path: Path) -> None:
    changes, message = HOSTILE_OPTIONS[case]
    path = save(tmp_path / "m.pth", scan_states(), scan_options(**changes))
    with pytest.raises(InputError, match=message) as error:
        import_checkpoint(path, vocabulary, None, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    assert not (tmp_path / "run").exists()


def test_a_run_whose_configuration_claims_a_huge_model(vocabulary: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "m.pth", scan_states(), scan_options())
    import_checkpoint(path, vocabulary, None, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(f"  dim: {DIM}\n", "  dim: 800000000\n", 1))
    assert load_run_config(tmp_path / "run").model.dim == 800_000_000
    with pytest.raises(InputError, match="not the weights of this run's model: wrong shape") as error:
        Retriever.from_pretrained(tmp_path / "run")
    assert "\n" not in str(error.value)


HOSTILE_WEIGHTS: dict[str, tuple[dict[str, Tensor], str]] = {
    "NaN": ({"fc.bias": torch.full((DIM,), math.nan)}, "fc.bias: holds a number that is not finite"),
    "whole numbers": ({"fc.bias": torch.zeros(DIM, dtype=torch.int64)}, "fc.bias: expected numbers of the type"),
    "a name of lines": ({"a\nb" * 300: torch.zeros(1)}, "unexpected: 'image_encoder.a"),
    "a vector of weights": (
        {"fc.weight_g": torch.zeros(3, 5), "fc.weight_v": torch.zeros(4, 7)},
        "expected one num",
    ),
    "a direction of zeros": ({"fc.weight_g": torch.ones(()), "fc.weight_v": torch.zeros(DIM, FEATURES)}, "finite"),
}


@pytest.mark.parametrize("case", HOSTILE_WEIGHTS)
def test_hostile_weights_are_one_line(case: str, vocabulary: Path, tmp_path: Path) -> None:
    changes, message = HOSTILE_WEIGHTS[case]
    path = save(tmp_path / "m.pth", scan_states(**changes), scan_options())
    with pytest.raises(InputError, match=message) as error:
        import_checkpoint(path, vocabulary, None, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("key", "value"), [("best_rsum", math.nan), ("epoch", "a\n" * 500), ("epoch", None)])
def test_records_that_are_no_numbers(key: str, value: object, vocabulary: Path, tmp_path: Path) -> None:
    content = {"epoch": 1, "model": scan_states(), "best_rsum": 1.0, "opt": scan_options(), key: value}
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(InputError, match=f"{key}: expected a number") as error:
        import_checkpoint(tmp_path / "m.pth", vocabulary, None, tmp_path / "run")
    assert len(str(error.value)) < 300 + len(str(tmp_path))


def test_vse_plus_plus_and_berts_of_other_sizes_are_refused(bert_folder: str, tmp_path: Path) -> None:
    image = nn.Module()
    image.fc = nn.Linear(FEATURES, DIM)
    state = random_state(image, 1)
    path = save(tmp_path / "m.pth", [state, state], argparse.Namespace(embed_size=DIM))
    with pytest.raises(InputError, match="of CHAN, VSE-infinity or SCAN; it is of none of them"):
        import_checkpoint(path, None, None, tmp_path / "run")
    vse = random_state(VseImage(), 1)
    bert = AutoModel.from_pretrained(bert_folder).state_dict()
    words = "embeddings.word_embeddings.weight"
    for change, message in (
        ({f"bert.{words}": bert[words][:100]}, "tokens of its BERT: 100; --bert"),
        ({f"bert.{words}": bert[words][:, :128]}, "hidden size of its BERT: 128; --bert"),
        ({"bert.encoder.layer.6.output.dense.bias": torch.zeros(384)}, "layers of its BERT: 7; --bert .* has 6"),
    ):
        text = OrderedDict({f"bert.{name}": value for name, value in bert.items()} | change)
        save(path, [vse, text], vse_options())
        with pytest.raises(InputError, match=message):
            import_checkpoint(path, None, bert_folder, tmp_path / "run")


def test_from_an_address(vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = nn.Module()
    image.fc = nn.Linear(FEATURES, DIM)
    states = [random_state(image, 1), random_state(GruText(len(WORDS), 1, False), 2)]
    (tmp_path / "served").mkdir()
    save(tmp_path / "served" / "model_best.pth.tar", states, scan_options())
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setenv("PIXELS_TO_RECALL_CACHE", str(tmp_path / "cache"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/model_best.pth.tar"
    try:
        import_checkpoint(address, vocabulary, None, tmp_path / "run")
        with pytest.raises(InputError, match="could not be fetched"):
            import_checkpoint(address + "x", vocabulary, None, tmp_path / "other")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(UsageError, match="--vocab FILE is needed"):
        import_checkpoint(address, None, None, tmp_path / "again")  # from the cache
