"""Writers of an index are killed at random moments; every time it is as it was before the change or after it."""

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from chan.retrieval.index import ImageIndex
from chan.retrieval.indexing import (
    add_to_index,
    compact_index,
    create_index,
    open_collection,
    remove_from_index,
)

KILLS = 20
ALL = {str(number) for number in range(23)}


def changes(folder: Path, run: Path, dataset: Path, lists: list[Path]):
    """The changes that a writer makes in turn, each with the images that the index has after it."""
    first, second = ({*path.read_text().split()} for path in lists)
    collections = [open_collection(dataset, ids=path) for path in lists]
    return [
        (first, lambda: create_index(folder, run, collections[0], "cpu")),
        (first | second, lambda: add_to_index(folder, collections[1], "cpu")),
        ((first | second) - {"1", "15"}, lambda: remove_from_index(folder, ["1", "15"])),
        ((first | second) - {"1", "15"}, lambda: compact_index(folder)),
        (ALL, lambda: add_to_index(folder, open_collection(dataset), "cpu")),
        (ALL - {"0"}, lambda: remove_from_index(folder, ["0"])),
        (ALL - {"0"}, lambda: compact_index(folder)),
    ]


def test_a_killed_writer_leaves_the_index_before_or_after_its_change(run, dataset, tmp_path, record_property):
    lists = [tmp_path / "first.txt", tmp_path / "second.txt"]
    lists[0].write_text("".join(f"{n}\n" for n in range(8)))
    lists[1].write_text("".join(f"{n}\n" for n in range(8, 17)))
    create_index(tmp_path / "whole.index", run, open_collection(dataset), "cpu")
    whole = ImageIndex(tmp_path / "whole.index")
    seed = random.randrange(1 << 32)
    record_property("seed", seed)
    draw = random.Random(seed)
    duration = None
    for trial in range(KILLS + 1):
        folder = tmp_path / f"{trial}.index"
        begun, report = os.pipe()
        start = time.monotonic()
        writer = os.fork()
        if writer == 0:
            torch.set_num_threads(1)  # the threads of an earlier test do not exist in this process
            for number, (_, change) in enumerate(changes(folder, run, dataset, lists)):
                os.write(report, bytes([number]))
                change()
            os._exit(0)
        os.close(report)
        if duration is not None:
            time.sleep(draw.uniform(0, duration))
            os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        duration = duration or time.monotonic() - start  # the first writer is not killed
        with open(begun, "rb") as numbers:
            last = max([-1, *numbers.read()])
        states = [set(), *(images for images, _ in changes(folder, run, dataset, lists))]
        if not (folder / "manifest.json").exists():
            assert last <= 0, f"seed {seed}"
            create_index(folder, run, open_collection(dataset), "cpu")
        else:
            assert set(ImageIndex(folder).image_ids) in states[max(last, 0) : last + 2], f"seed {seed}"
        check_whole(folder, whole)
        add_to_index(folder, open_collection(dataset), "cpu")
        compact_index(folder)
        check_whole(folder, whole)
        assert set(ImageIndex(folder).image_ids) == ALL
        kept = {path.name for path in folder.iterdir()} - {".lock", "manifest.json", "model"}
        assert len(kept) == 2, f"seed {seed}: {kept}"


def check_whole(folder: Path, whole: ImageIndex) -> None:
    """Every image of an index has the embeddings and boxes that it has in an undisturbed one."""
    index = ImageIndex(folder)
    for position, image_id in enumerate(index.image_ids):
        same = whole.position(image_id)
        np.testing.assert_allclose(
            index.regions([position]).rows.float(), whole.regions([same]).rows.float(), atol=2e-3
        )
        np.testing.assert_array_equal(index.column(position, "boxes"), whole.column(same, "boxes"))


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
