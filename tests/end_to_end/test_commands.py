"""The real commands, each in a process of its own, on tiny data."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

BIN = Path(sys.executable).parent


def command(name, *arguments, **options):
    line = [str(BIN / name), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, **options)


def one_line(done, code):
    """The only thing a failed command says, checked for its exit code."""
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("extract:", "evaluate"))]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "scenes"
    done = command("data-tools", "scenes", "--out", folder, "--train", 24, "--dev", 4, "--test", 4)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def short_config(tmp_path_factory):
    """The small detector's configuration with three iterations of training."""
    from data_tools.configs import find_config

    path = tmp_path_factory.mktemp("config") / "short.yaml"
    shipped = find_config("extract", "scenes")
    path.write_text(f"_BASE_: {shipped}\nSOLVER:\n  MAX_ITER: 3\n  WARMUP_ITERS: 1\n  CHECKPOINT_PERIOD: 2\n")
    return path


def test_pixels_to_recall(data, short_config, tmp_path):
    detector = tmp_path / "detector"
    trained = command("butd", "train", "--config", short_config, "--data", data, "--out", detector, "--json")
    assert trained.returncode == 0, trained.stderr
    weights = json.loads(trained.stdout)["weights"]
    scored = command("butd", "evaluate", "--config", short_config, "--data", data, "--weights", weights)
    assert scored.returncode == 0, scored.stderr
    assert "box AP50" in scored.stdout
    assert "attribute accuracy" in scored.stdout

    store = tmp_path / "features.h5"
    extracted = command(
        "extract-features",
        data / "images",
        "--config",
        short_config,
        "--weights",
        weights,
        "--out",
        store,
        "--json",
    )
    assert extracted.returncode == 0, extracted.stderr
    summary = json.loads(extracted.stdout)
    assert (summary["stored"], summary["regions"]) == (32, 32 * 36)
    with h5py.File(store) as file:
        assert file["features"].shape == (32 * 36, 512)
        assert file["boxes"][:].max() <= 160

    run = tmp_path / "chan"
    settings = ("model.dim=32", "train.epochs=1", "train.batch_size=16")
    done = command(
        "chan", "train", "--config", "scenes", "--data", data, "--out", run, "--features", store, *settings
    )
    assert done.returncode == 0, done.stderr
    matrix = tmp_path / "scores.npy"
    test = ("--data", data, "--split", "test", "--features", store)
    evaluated = command("chan", "evaluate", run, *test, "--scores", matrix, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["rsum"] == pytest.approx(rsum_by_sorting(np.load(matrix)))
    picture = tmp_path / "retrieval.png"
    explained = command(
        "chan", "explain", run, "--data", data, "--split", "test", "--features", store, "--out", picture
    )
    assert explained.returncode == 0, explained.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


def rsum_by_sorting(scores):
    """The sum of the six recalls of (images, 5 x images) scores, by sorting each row and column."""
    images = len(scores)
    total = 0.0
    for cutoff in (1, 5, 10):
        by_image = [set(row.argsort()[::-1][:cutoff] // 5) for row in scores]
        by_caption = [set(column.argsort()[::-1][:cutoff]) for column in scores.T]
        total += 100 * sum(i in found for i, found in enumerate(by_image)) / images
        total += 100 * sum(c // 5 in found for c, found in enumerate(by_caption)) / (5 * images)
    return total


@pytest.mark.slow
def test_training_the_detector_goes_on_after_a_kill(data, short_config, tmp_path):
    arguments = ("--config", short_config, "--data", data)
    whole = command("butd", "train", *arguments, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "model_final.pth").unlink()
    (tmp_path / "cut" / "last_checkpoint").write_text("model_0000001.pth")
    again = command("butd", "train", *arguments, "--out", tmp_path / "cut", "--resume")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "cut" / "model_final.pth").is_file()
    assert "with --resume" in one_line(command("butd", "train", *arguments, "--out", tmp_path / "cut"), 2)
    other = ("--config", "scenes", "--data", data, "--out", tmp_path / "cut", "--resume")
    assert "a resumed run keeps its configuration" in one_line(command("butd", "train", *other), 1)
    assert "no checkpoint" in one_line(
        command("butd", "train", *arguments, "--out", tmp_path / "new", "--resume"), 2
    )


@pytest.mark.slow
def test_visual_genome_to_a_scored_detector(data, short_config, tmp_path):
    """The scenes written as Visual Genome publishes its data, and back; training begins with a file's ResNet."""
    source, genome = tmp_path / "downloads", tmp_path / "genome"
    write_as_visual_genome(data, source, genome / "images")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("".join(f"VG_100K/{n}.jpg xml/{n}.xml\n" for n in range(1, 7)))
    (lists / "test.txt").write_text("7\n8\n")
    arguments = ("visual-genome", source, "--out", genome, "--labels", "scenes")
    made = command("data-tools", *arguments, "--lists", lists, "--json")
    assert made.returncode == 0, made.stderr
    summary = json.loads(made.stdout)
    assert summary["images"] == {"train": 6, "test": 2}
    assert (summary["unknown_objects"], summary["images_missing"]) == (0, 0)
    written = json.loads((genome / "annotations" / "train.json").read_text())
    drawn = json.loads((data / "annotations" / "train.json").read_text())
    assert [image["annotations"] for image in written["images"]] == [
        image["annotations"] for image in drawn["images"][:6]
    ]

    resnet = tmp_path / "resnet.safetensors"
    write_resnet(short_config, resnet)
    run = tmp_path / "run"
    trained = command(
        "butd", "train", "--config", short_config, "--data", genome, "--out", run, "--weights", resnet, "--json"
    )
    assert trained.returncode == 0, trained.stderr
    summary = json.loads(trained.stdout)
    assert summary["images"] == 6
    assert summary["initial_weights"]["kind"] == "detectron2"
    assert summary["initial_weights"]["placed"] == 53 * 5
    scored = command(
        "butd", "evaluate", "--config", short_config, "--data", genome, "--weights", summary["weights"], "--json"
    )
    assert scored.returncode == 0, scored.stderr
    scores = json.loads(scored.stdout)
    assert scores["ap50"] == pytest.approx(np.mean(list(scores["ap50_by_class"].values())))
    assert scores["attribute_ap"] == pytest.approx(np.mean(list(scores["attribute_ap_by_name"].values())))
    assert len(scores["ap50_by_class"]) == 4
    assert len(scores["attribute_ap_by_name"]) == 13

    assert "go together" in one_line(command("data-tools", *arguments, "--objects-vocab", lists / "train.txt"), 2)
    (source / "objects.json").write_text("[7]")
    assert "objects.json: entry 0: expected" in one_line(command("data-tools", *arguments), 1)


def write_as_visual_genome(data, source, images):
    """Ten scenes with their annotations in Visual Genome's three files, numbered from 1."""
    document = json.loads((data / "annotations" / "train.json").read_text())
    (images / "VG_100K").mkdir(parents=True)
    source.mkdir()
    files = {"image_data": [], "objects": [], "attributes": []}
    for number, record in enumerate(document["images"][:10], start=1):
        shutil.copy(data / "images" / record["file_name"], images / "VG_100K" / f"{number}.jpg")
        url = f"https://cs.stanford.edu/people/rak248/VG_100K/{number}.jpg"
        sides = {"width": record["width"], "height": record["height"]}
        files["image_data"].append({"image_id": number, "url": url, **sides})
        objects, attributes = [], []
        for place, item in enumerate(record["annotations"]):
            x1, y1, x2, y2 = item["bbox"]
            common = {"object_id": 100 * number + place, "x": x1, "y": y1, "w": x2 - x1, "h": y2 - y1}
            common["names"] = [document["classes"][item["category_id"]].upper()]
            objects.append({**common, "synsets": []})
            names = [document["attributes"][attribute] for attribute in item["attribute_ids"]]
            attributes.append({**common, "attributes": [" and ".join(names[:2]), *names[2:]]})
        files["objects"].append({"image_id": number, "objects": objects})
        files["attributes"].append({"image_id": number, "attributes": attributes})
    for name, content in files.items():
        (source / f"{name}.json").write_text(json.dumps(content))


def write_resnet(config, path):
    """The ResNet of a configuration's network with Detectron2's names, as an ImageNet file has it."""
    import torch
    from safetensors.torch import save_file

    from extract.build import build_network
    from extract.config import load_config

    state = build_network(load_config(str(config)), None, torch.device("cpu")).state_dict()
    short = {name.removeprefix("backbone.").removeprefix("roi_heads."): tensor for name, tensor in state.items()}
    save_file({name: t for name, t in short.items() if name.startswith(("stem.", "res"))}, path)


def test_wrong_use_of_training_is_one_line(data, tmp_path):
    arguments = ("butd", "train", "--config", "scenes", "--data", data, "--out", tmp_path / "run")
    assert "--gpus 99: this machine has" in one_line(command(*arguments, "--gpus", 99), 2)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_ones_own_pictures(data, tmp_path):
    mine = tmp_path / "mine" / "pictures"
    (mine / "holiday").mkdir(parents=True)
    for number, file in enumerate(sorted((data / "images").iterdir())[:3]):
        shutil.copy(file, mine / "holiday" / f"picture {number}.jpg")
    done = command("extract-features", mine, "--config", "scenes", "--weights", "random", "--num-boxes", 7)
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "mine" / "precomp" / "features.h5") as file:
        assert [value.decode() for value in file["image_ids"]] == ["picture 0", "picture 1", "picture 2"]
        assert file["offsets"][:].tolist() == [0, 7, 14, 21]
    before = (tmp_path / "mine" / "precomp" / "features.h5").stat().st_mtime_ns
    again = command("extract-features", mine, "--config", "scenes", "--weights", "random", "--num-boxes", 7)
    assert again.returncode == 0
    assert (tmp_path / "mine" / "precomp" / "features.h5").stat().st_mtime_ns == before
    changed = command("extract-features", mine, "--config", "scenes", "--weights", "random", "--num-boxes", 8)
    assert "selection was caffe min=7" in one_line(changed, 1)
    forced = command(
        "extract-features", mine, "--config", "scenes", "--weights", "random", "--num-boxes", 8, "--overwrite"
    )
    assert forced.returncode == 0, forced.stderr
    store = tmp_path / "mine" / "precomp" / "features.h5"
    with h5py.File(store) as file:
        assert file["offsets"][-1] == 24
    (tmp_path / "junk.pth").write_text("no weights")
    junk = command(
        "extract-features", mine, "--config", "scenes", "--weights", tmp_path / "junk.pth", "--overwrite"
    )
    assert "not a readable weight file" in one_line(junk, 1)
    assert store.is_file()


def jpeg(path, size=(48, 40), **options):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path, **options)


@pytest.fixture
def every_kind(tmp_path):
    """A folder of good pictures of every kind and bad files of every kind, with its id mapping."""
    folder = tmp_path / "data" / "images"
    (folder / "deep" / "er").mkdir(parents=True)
    jpeg(folder / "good.jpg")
    jpeg(folder / "deep" / "er" / "grün.png")
    Image.new("L", (30, 20), 7).save(folder / "grey.png")
    Image.new("P", (30, 20), 3).save(folder / "palette.gif")
    Image.new("RGBA", (30, 20), (1, 2, 3, 90)).save(folder / "transparent.webp")
    Image.new("CMYK", (30, 20)).save(folder / "print.jpg")
    Image.fromarray(np.full((20, 30), 40000, np.uint16)).save(folder / "sixteen.png")
    Image.new("RGB", (1, 3000), (9, 9, 9)).save(folder / "thin.png")
    jpeg(folder / "wrong-ending.png", format="JPEG")
    good = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    whole = (folder / "good.jpg").read_bytes()
    bad = {
        "empty.jpg": b"",
        "text.jpg": b"<html>404 Not Found</html>",
        "cut.jpg": whole[: len(whole) // 2],
        "cut.png": (folder / "grey.png").read_bytes()[:-30],
        "header.jpg": b"\xff\xd8\xff\xe0" + bytes(40),
        "zeros.jpg": bytes(4096),
        "bomb.png": png_header(60000, 60000),
    }
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    (folder / "folder.jpg").mkdir()
    (folder / "loop.jpg").symlink_to("loop.jpg")
    names = [*good, *bad, "folder.jpg", "loop.jpg", "missing.jpg"]
    mapping = {f"id {number}": name for number, name in enumerate(names)}
    (folder.parent / "id_mapping.json").write_text(json.dumps(mapping))
    return folder, len(good), [f"id {number}" for number in range(len(good), len(names))]


def png_header(width, height):
    """A PNG that says it is enormous."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    chunk = (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk + bytes(64)


@pytest.mark.slow
def test_every_kind_of_bad_file_is_reported_and_the_exit_code_says_so(every_kind, tmp_path):
    folder, good, bad = every_kind
    arguments = (folder, "--config", "scenes", "--weights", "random", "--out", tmp_path / "features.h5")
    done = command("extract-features", *arguments)
    assert done.returncode == 1, done.stderr
    assert f"{len(bad)} images could not be stored" in done.stdout
    assert "Traceback" not in done.stderr
    report = json.loads((tmp_path / "features.report.json").read_text())
    assert [failure["id"] for failure in report["failures"]] == bad
    assert all(failure["reason"] and failure["file"] for failure in report["failures"])
    with h5py.File(tmp_path / "features.h5") as file:
        assert [value.decode() for value in file["image_ids"]] == [f"id {number}" for number in range(good)]
        assert np.isfinite(file["features"][:]).all()
    stopped = command("extract-features", *arguments, "--overwrite", "--on-error", "fail")
    assert f"image {bad[0]} cannot be read: the file is empty" in one_line(stopped, 1)


@pytest.mark.slow
def test_shards_are_joined_by_data_tools(data, tmp_path):
    pictures = sorted((data / "images").iterdir())[:5]
    listing = tmp_path / "list.txt"
    listing.write_text("".join(f"{number}\t{path}\n" for number, path in enumerate(pictures)))
    arguments = (listing, "--config", "scenes", "--weights", "random", "--part-size", 1, "--num-boxes", 3)
    whole, store = tmp_path / "whole.h5", tmp_path / "store.h5"
    assert command("extract-features", *arguments, "--out", whole).returncode == 0
    first = command("extract-features", *arguments, "--out", store, "--shard", "1/2")
    assert "2 parts are still to be written by other shards" in first.stdout
    assert "2 of 5 parts are missing" in one_line(command("data-tools", "join", "--out", store), 1)
    second = command("extract-features", *arguments, "--out", store, "--shard", "2/2")
    assert "data-tools join" in second.stdout
    joined = command("data-tools", "join", "--out", store)
    assert joined.returncode == 0, joined.stderr
    assert datasets(store) == datasets(whole)


@pytest.mark.slow
def test_boxes_of_a_store_are_described_again(data, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text(
        "".join(f"{image_id}\n" for image_id in list(json.loads((data / "id_mapping.json").read_text()))[:3])
    )
    common = (data / "images", "--config", "scenes", "--weights", "random", "--ids", ids)
    first, boxes, again = tmp_path / "first.h5", tmp_path / "boxes.h5", tmp_path / "again.h5"
    assert command("extract-features", *common, "--out", first, "--num-boxes", 4).returncode == 0
    only = command("extract-features", *common, "--out", boxes, "--num-boxes", 4, "--boxes-only")
    assert only.returncode == 0, only.stderr
    given = command("extract-features", *common, "--out", again, "--boxes", boxes)
    assert given.returncode == 0, given.stderr
    with h5py.File(first) as one, h5py.File(again) as other:
        assert one["boxes"][:].tobytes() == other["boxes"][:].tobytes()
        features = one["features"][:]
        np.testing.assert_allclose(other["features"][:], features, atol=1e-3 * np.abs(features).max())


def test_the_regions_of_a_picture_are_drawn(data, tmp_path):
    picture = sorted((data / "images").iterdir())[0]
    out = tmp_path / "drawn.png"
    arguments = (picture, "--config", "scenes", "--weights", "random", "--num-boxes", 3, "--out", out)
    done = command("butd", "show", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    regions = json.loads(done.stdout)["regions"]
    assert len(regions) == 3
    assert regions[0]["class"] in ("circle", "square", "triangle", "star")
    with Image.open(out) as drawn:
        assert drawn.format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("absent",), 1, "absent: no such folder or list of images"),
        ((".", "--config", "scenes"), 2, "--config scenes needs --weights"),
    ],
)
def test_wrong_use_of_extract_features_is_one_line(data, arguments, code, message):
    assert message in one_line(command("extract-features", *arguments, cwd=data / "images"), code)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("extract-features", ()),
        *[("butd", (c,)) for c in ("train", "evaluate", "show")],
        *[("data-tools", (c,)) for c in ("scenes", "splits")],
        *[("chan", (c,)) for c in ("train", "evaluate", "explain")],
    ],
)
def test_every_command_has_help_with_an_example(name, arguments):
    done = command(name, *arguments, "--help")
    assert done.returncode == 0
    assert "Example" in done.stdout


def test_a_missing_detectron2_is_one_line(tmp_path):
    program = (
        "import sys; sys.modules['detectron2'] = None; sys.argv = ['butd', 'train', '--config', 'scenes', "
        "'--data', 'x', '--out', 'y']; from extract.command_line import butd; butd()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert "run python -m extract.install_detectron2" in one_line(done, 1)


def datasets(path):
    with h5py.File(path) as file:
        return {**{name: file[name][()].tobytes() for name in file}, **{k: str(v) for k, v in file.attrs.items()}}


@pytest.mark.slow  # make trials does the same for twenty runs
def test_killing_an_extraction_at_random_moments_leaves_no_trace(data, tmp_path):
    arguments = (
        data / "images", "--config", "scenes", "--weights", "random", "--part-size", 4, "--workers", 1,
    )  # fmt: skip
    whole, cut = tmp_path / "whole" / "f.h5", tmp_path / "cut" / "f.h5"
    assert command("extract-features", *arguments, "--out", whole).returncode == 0
    moments, kills = random.Random(0), 0
    line = [str(BIN / "extract-features"), *map(str, arguments), "--out", str(cut)]
    for _ in range(40):
        process = subprocess.Popen(
            line, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )
        kill_soon_after_the_first_new_part(process, cut, moments)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        if cut.exists():
            break
    final = command("extract-features", *arguments, "--out", cut)
    assert final.returncode == 0, final.stderr
    assert kills >= 2
    assert datasets(cut) == datasets(whole)
    assert sorted(path.name for path in cut.parent.iterdir()) == ["f.h5", "f.report.json"]


def kill_soon_after_the_first_new_part(process, store, moments):
    """Wait until the run has written something new, then up to half a second more."""
    folder = store.with_name(store.name + ".parts")
    before = len(list(folder.glob("part-*"))) if folder.exists() else 0
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if folder.exists() and len(list(folder.glob("part-*"))) > before:
            break
        time.sleep(0.005)
    time.sleep(moments.uniform(0, 0.5))


def test_real_photographs_become_a_store(coco_samples, tmp_path):
    done = command(
        "extract-features", coco_samples / "images", "--config", "scenes", "--weights", "random",
        "--out", tmp_path / "features.h5", "--dtype", "float16",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "features.h5") as file:
        assert len(file["image_ids"]) == 10
        assert (np.diff(file["offsets"][:]) == 36).all()
        widths = np.repeat(file["image_sizes"][:, 1], 36)
        assert (file["boxes"][:, 2] <= widths + 0.01).all()
