import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor

from chan.training.curves import draw_curves


def side(value: float) -> dict[str, float]:
    return {"r1": value, "r5": value + 5, "r10": value + 10}


def write(folder: Path, rsums: list[float]) -> None:
    lines = [{"kind": "train", "step": 10 * n, "epoch": n, "loss": 1 / (n + 1)} for n in range(5)]
    lines += [
        {"kind": "dev", "step": 10 * n, "epoch": n, "rsum": rsum, "i2t": side(rsum / 6), "t2i": side(rsum / 6)}
        for n, rsum in enumerate(rsums)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def heights(path: Path, colour: str, part: int) -> np.ndarray:
    """The rows of the pixels of a colour in a third of the picture."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    third = pixels.shape[1] // 3
    near = abs(pixels[:, part * third : (part + 1) * third] - ImageColor.getrgb(colour)).sum(-1) < 30
    return np.flatnonzero(near.any(1))


def test_the_picture_shows_rsum_above_chance(tmp_path: Path) -> None:
    write(tmp_path, [50.0, 300.0, 500.0])
    path = draw_curves(tmp_path, chance=32.0)
    assert path == tmp_path / "curves.png"
    rsum, chance = heights(path, "#d62728", 2), heights(path, "#8a9097", 2)
    assert len(rsum) > 200  # it rises over most of the picture
    assert chance.max() > rsum.max()  # below it


def test_a_run_that_measured_nothing_has_no_picture(tmp_path: Path) -> None:
    assert draw_curves(tmp_path, 1.0) is None
    write(tmp_path, [])
    assert draw_curves(tmp_path, 1.0) is not None
    assert not list(tmp_path.glob(".*"))
