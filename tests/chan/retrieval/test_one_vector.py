"""Models with one vector per image: index, search and explanation by score alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from chan.build import build_model
from chan.commands import measuring, searching  # noqa: F401 - they register commands
from chan.config import load_config
from chan.data.splits import open_split
from chan.evaluation import evaluate as evaluation
from chan.keys import with_value
from chan.options import app
from chan.packing import pack
from chan.retrieval.retriever import Retriever, open_index
from chan.retrieval.words import NO_REGIONS
from chan.runs.folder import start_run
from chan.text.tokenizers import VocabularyTokenizer
from chan.training.checkpoints import BEST, save_weights
from data_tools.captions.vocabulary import Vocabulary
from data_tools.errors import InputError

CPU = torch.device("cpu")
CHANGES = ["model.coding=global", "model.pooling=gpo", "model.image.encoder=mlp"]


@pytest.fixture(scope="module")
def run(dataset: Path, tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "vse"
    config = with_value(load_config(str(tiny_config), CHANGES), "model.image.dim", 24)
    captions = open_split(dataset, "test", None).split.captions
    tokenizer = VocabularyTokenizer(Vocabulary.build(list(captions), threshold=1))
    start_run(folder, config, tokenizer, {})
    torch.manual_seed(3)
    save_weights(dict(build_model(config.model, 24, tokenizer, pretrained=False).state_dict()), folder / BEST)
    return folder


@pytest.fixture(scope="module")
def index(run: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("indexes") / "vse.index"
    called("index", run, "--data", dataset, "--out", out)
    return out


def called(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_embeddings_of_a_split_are_those_of_each_item_alone(run: Path, dataset: Path) -> None:
    retriever, opened = Retriever.from_pretrained(run, "cpu"), open_split(dataset, "test", None)
    model, tokenizer = retriever.model, retriever.tokenizer
    images, captions = evaluation.encode(model, opened, tokenizer, CPU)
    assert images.rows.shape == (6, 16)
    assert captions.rows.shape == (30, 16)
    with torch.inference_mode():
        for place in (0, 3, 5):
            alone = model.image_encoder(pack([torch.from_numpy(opened.gather(np.array([place])))])).rows
            torch.testing.assert_close(images.slice(place, place + 1).rows, alone, rtol=1e-5, atol=1e-6)
    expected = torch.stack([image @ captions.rows.T for image in images.rows])
    torch.testing.assert_close(evaluation.score(model, images, captions), expected, rtol=1e-5, atol=1e-6)


def test_an_index_has_one_row_per_image_and_a_search_ranks_by_the_product(index: Path, run: Path) -> None:
    searched = open_index(index, "cpu")
    assert searched.index.region_count == len(searched.index) == 23
    assert searched.index.column(0, "boxes") is None
    assert searched.index.size(0) == (80, 120)
    query = searched.query("a red zeugma")
    assert query.unknown == ["zeugma"]
    results = searched.search(query, k=5)
    rows = searched.index.regions(range(23)).rows.float()
    scores = rows @ Retriever.from_pretrained(run, "cpu").encode_captions(["a red zeugma"]).rows[0]
    order = scores.argsort(descending=True, stable=True)[:5].tolist()
    assert [hit.position for hit in results.hits] == order
    assert [hit.score for hit in results.hits] == pytest.approx(scores[order].tolist(), abs=1e-6)
    assert all(hit.words == () for hit in results.hits)


def test_what_needs_regions_says_in_one_line_that_there_are_none(index: Path) -> None:
    searched = open_index(index, "cpu")
    for ask in (
        lambda: searched.like("0", 0),
        lambda: searched.region_at("0", 20, 30),
    ):
        with pytest.raises(InputError, match=NO_REGIONS):
            ask()
    with pytest.raises(InputError, match="its words cannot be struck or weighted"):
        searched.query("a red square").weighted([1, 1, 0, 1, 1])


def test_the_commands_search_and_explain_by_score_alone(
    index: Path, run: Path, dataset: Path, tmp_path: Path
) -> None:
    printed = called("search", index, "a red square", "-k", 2, "--out", tmp_path / "found.png").splitlines()
    assert printed[1].strip() == NO_REGIONS
    assert len(printed) == 5
    assert printed[-1] == str(tmp_path / "found.png")
    [document] = json.loads(called("search", index, "a red square", "-k", 2, "--json"))
    assert [sorted(hit) for hit in document["hits"]] == [["file", "id", "score"]] * 2
    called("search", index, "a red square", "--out", tmp_path / "found.html")
    called("explain", run, "--data", dataset, "--split", "test", "--captions", 2, "--out", tmp_path / "why.png")
    for name in ("found.png", "found.html", "why.png"):
        assert (tmp_path / name).stat().st_size > 1000


def test_images_are_added_removed_and_compacted(run: Path, dataset: Path, tmp_path: Path) -> None:
    ids, out = tmp_path / "ids.txt", tmp_path / "my.index"
    ids.write_text("0\n1\n2\n")
    called("index", run, "--data", dataset, "--ids", ids, "--out", out)
    called("index", "--data", dataset, "--add", "--out", out)
    before = open_index(out, "cpu").search("a blue circle", k=23)
    called("index", "--remove", "1", "--compact", "--out", out)
    after = open_index(out, "cpu").search("a blue circle", k=23)
    kept = [hit for hit in before.hits if hit.image_id != "1"]
    assert [hit.image_id for hit in after.hits] == [hit.image_id for hit in kept]
    assert [hit.score for hit in after.hits] == pytest.approx([hit.score for hit in kept], abs=1e-6)
