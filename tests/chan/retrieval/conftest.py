"""A trained tiny model, and indexes of embeddings that are given."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from chan.build import build_model
from chan.config import load_config
from chan.keys import with_value
from chan.retrieval.manifest import MODEL, Manifest
from chan.retrieval.retriever import Retriever
from chan.retrieval.segments import write_segment
from chan.runs.folder import start_run, weights_sha256
from chan.text.tokenizers import VocabularyTokenizer
from chan.training.checkpoints import BEST, save_weights
from data_tools.captions.vocabulary import Vocabulary
from data_tools.store.schema import Block, StoreSchema

DIM = 16
WORDS = ["a red square and a blue circle", "the green triangle is beside a yellow circle"]


@pytest.fixture(scope="session")
def run(dataset: Path, tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: an untrained tiny model is as good as a trained one here."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    config = with_value(load_config(str(tiny_config)), "model.image.dim", 24)
    tokenizer = VocabularyTokenizer(Vocabulary.build(WORDS, threshold=1))
    start_run(folder, config, tokenizer, {})
    torch.manual_seed(3)
    model = build_model(config.model, 24, tokenizer, pretrained=False)
    save_weights(dict(model.state_dict()), folder / BEST)
    return folder


@pytest.fixture(scope="session")
def retriever(run: Path) -> Retriever:
    return Retriever.from_pretrained(run, "cpu")


@pytest.fixture
def made_index(run: Path, tmp_path: Path) -> Callable[[Sequence[Sequence[np.ndarray]]], Path]:
    """Write an index whose segments hold the given embeddings, (K, D) per image; ids are i0, i1, ..."""

    def make(segments: Sequence[Sequence[np.ndarray]], columns: dict[str, np.ndarray] | None = None) -> Path:
        folder = tmp_path / "made.index"
        (folder).mkdir()
        (folder / MODEL).symlink_to(run)
        manifest, number = Manifest(weights_sha256(run), DIM), 0
        for images in segments:
            names = [f"i{number + place}" for place in range(len(images))]
            number += len(images)
            rows = np.concatenate(images).astype(np.float16)
            block = Block(names, np.array([len(image) for image in images]), {"features": rows, **(columns or {})})
            write_segment(folder, manifest.next_name(), [block], StoreSchema.of([block]), [""] * len(names), {})
            manifest = manifest.with_segment(len(names), len(rows))
        manifest.save(folder)
        return folder

    return make
