"""The notebook of the examples runs from its first cell to its last, on drawn scenes and a random detector."""

import csv
import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from data_tools.captions.splits import load_split
from data_tools.layout import load_id_mapping
from data_tools.scenes.dataset import write_scenes

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "own_photos.ipynb"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of pictures with a table of captions, as a user has it."""
    write_scenes(tmp_path / "scenes", train=10, dev=1, test=1, seed=1)
    files = load_id_mapping(tmp_path / "scenes" / "id_mapping.json")
    folder = tmp_path / "my"
    folder.mkdir()
    (tmp_path / "scenes" / "images").rename(folder / "images")
    with (folder / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        for name in ("train", "dev", "test"):
            split = load_split(tmp_path / "scenes" / "precomp", name)
            for owner, caption in zip(split.caption_images, split.captions, strict=True):
                table.writerow([files[split.image_ids[owner]], caption])
    return folder


def test_the_notebook_runs(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        "DATA": str(pictures),
        "DETECTOR": "scenes",
        "WEIGHTS": "random",
        "SENTENCE": "a red circle",
        "TRAINING": "train.epochs=2 model.dim=32",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # kept without outputs
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": pictures}}
    )
    client.execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    texts = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
    assert "(36, 4) (36, 512)" in texts[1]
    assert texts[4].count("cosine") == 3 * 5  # <start>, three words and <end> in each of three pictures
    drawn = [
        output for cell in (cells[2], cells[5]) for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    assert len(drawn) == 2
    assert "tensor([[" in cells[6].outputs[0]["data"]["text/plain"]
    assert (pictures / "my.index" / "manifest.json").is_file()
