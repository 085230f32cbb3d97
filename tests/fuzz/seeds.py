"""Valid inputs: small files of every kind that the program reads, each written by the program or as others do."""

import base64
import gzip
import json
import pickle
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_tools.formats.conversion import convert
from data_tools.scenes.dataset import write_scenes
from data_tools.store.joining import join_stores
from data_tools.store.parts import Parts
from data_tools.store.schema import REGION_COLUMNS, Block, StoreSchema
from data_tools.store.writing import write_store
from examples.coco_scenes import write_coco

DIM, REGIONS = 8, 3
MADE = {"config": "MODEL: small", "weights_sha256": "none", "selection": "random", "feature_dtype": "float32"}
MODEL = ("model.dim=8", "model.text.word_dim=8", "train.epochs=1", "train.batch_size=8", "loss.warmup_epochs=9")


def block(ids: list[str], seed: int = 0) -> Block:
    """Random regions of some images of 80 x 60 pixels, with every column."""
    rng = np.random.default_rng(seed)
    rows = REGIONS * len(ids)
    regions = {"features": rng.normal(size=(rows, DIM)).astype(np.float32)}
    for name, (kind, trailing) in REGION_COLUMNS.items():
        low = 1 if name == "box_confidence" else 0  # 0 says that there is no box, which readers of boxes refuse
        regions[name] = rng.integers(low, 3, (rows, *trailing)).astype(kind)
    regions["boxes"] = np.sort(rng.uniform(0, 60, (rows, 2, 2)), axis=1).reshape(rows, 4).astype(np.float32)
    return Block(ids, np.full(len(ids), REGIONS), regions, np.full((len(ids), 2), (60, 80), np.int32))


def store(path: Path, ids: list[str], seed: int = 0) -> None:
    """A plain store."""
    content = block(ids, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_store(path, [content], StoreSchema.of([content]), MADE)


def one_store(folder: Path) -> None:
    """features.h5 alone."""
    store(folder / "features.h5", ["1", "2", "3"])


def two_stores(folder: Path) -> None:
    """a.h5 and b.h5."""
    store(folder / "a.h5", ["1", "2", "3"])
    store(folder / "b.h5", ["4", "5"], seed=1)


def virtual_store(folder: Path) -> None:
    """virtual.h5, whose features lie in a.h5 and b.h5."""
    two_stores(folder)
    join_stores(folder / "virtual.h5", [folder / "a.h5", folder / "b.h5"], virtual=True)


def parts(folder: Path) -> None:
    """Three parts of a store."""
    whole = Parts(folder / "features.h5", MADE, images=5, size=2, conditions={"threads": "1"})
    for number, ids in enumerate((["1", "2"], ["3", "4"], ["5"])):
        whole.write(number, block(ids, seed=number))


def dataset(folder: Path) -> None:
    """Drawn scenes with splits, a vocabulary and a store."""
    write_scenes(folder / "data", train=4, dev=2, test=2, seed=7)
    ids = [line for s in ("train", "dev", "test") for line in _lines(folder / "data" / "precomp" / f"{s}_ids.txt")]
    store(folder / "data" / "precomp" / "features.h5", ids)
    with Image.open(next((folder / "data" / "images").rglob("*.jpg"))) as image:
        width, height = image.size
    import h5py

    with h5py.File(folder / "data" / "precomp" / "features.h5", "r+") as file:
        file["image_sizes"][...] = (height, width)


def _lines(path: Path) -> list[str]:
    return path.read_text().split()


def lists(folder: Path) -> None:
    """SCAN's lists and a vocabulary, without images."""
    dataset(folder / "whole")
    (folder / "precomp").mkdir()
    for path in (folder / "whole" / "data" / "precomp").glob("*.txt"):
        path.rename(folder / "precomp" / path.name)
    (folder / "whole" / "data" / "vocab.json").rename(folder / "vocab.json")
    _remove(folder / "whole")


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)


def arrays(folder: Path) -> None:
    """SCAN's arrays and ids."""
    rng = np.random.default_rng(0)
    for name, images in (("train", 4), ("dev", 2)):
        np.save(folder / f"{name}_ims.npy", rng.normal(size=(images, REGIONS, DIM)).astype(np.float32))
        (folder / f"{name}_ids.txt").write_text("".join(f"{name}{n}\n" for n in range(images)))


def scores(folder: Path) -> None:
    """Two models' scores of a split."""
    lists(folder)
    images = len(set(_lines(folder / "precomp" / "test_ids.txt")))
    for name in ("a", "b"):
        np.save(folder / f"{name}.npy", np.random.default_rng(1).normal(size=(images, 5 * images)).astype("f4"))


def _text(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def butd_tsv(folder: Path) -> None:
    """The TSV of bottom-up attention."""
    content = block(["1", "2", "3"])
    rows = []
    for n in range(3):
        own = slice(n * REGIONS, (n + 1) * REGIONS)
        arrays_ = (_text(content.regions["boxes"][own]), _text(content.regions["features"][own]))
        rows.append("\t".join((str(n), "80", "60", str(REGIONS), *arrays_)))
    (folder / "features.tsv").write_text("\n".join(rows) + "\n")


def lxmert_tsv(folder: Path) -> None:
    """LXMERT's TSV."""
    content = block(["1", "2", "3"])
    rows = []
    for n in range(3):
        own = {name: values[n * REGIONS : (n + 1) * REGIONS] for name, values in content.regions.items()}
        texts = (
            _text(own["class_ids"].astype("<i8")),
            _text(own["class_scores"]),
            _text(own["attribute_ids"].astype("<i8")),
            _text(own["attribute_scores"]),
            str(REGIONS),
            _text(own["boxes"]),
            _text(own["features"]),
        )
        rows.append("\t".join((f"img{n}", "60", "80", *texts)))
    (folder / "features.tsv").write_text("\n".join(rows) + "\n")


def oscar_tsv(folder: Path) -> None:
    """Oscar's TSV, whose features end in boxes."""
    _converted(folder, "oscar")


def vinvl_tsv(folder: Path) -> None:
    """The TSV of VinVL's detector."""
    _converted(folder, "vinvl")


def _converted(folder: Path, kind: str) -> None:
    one_store(folder)
    convert(folder / "features.h5", folder / "features.tsv", to=kind)
    (folder / "features.h5").unlink()
    (folder / "features.lineidx").unlink()  # which is not read


def archives(folder: Path) -> None:
    """MILVLG's archives."""
    content = block(["1", "2"])
    for n in range(2):
        own = slice(n * REGIONS, (n + 1) * REGIONS)
        np.savez(
            folder / f"{n}.npz",
            x=content.regions["features"][own],
            bbox=content.regions["boxes"][own],
            num_bbox=REGIONS,
            image_h=60,
            image_w=80,
            info=np.array({"objects_id": 3}, dtype=object),
        )


def karpathy(folder: Path) -> None:
    """Karpathy's JSON."""
    images = [
        {
            "filename": f"{n}.jpg",
            "filepath": "val2014",
            "cocoid": n,
            "imgid": n,
            "split": ("train", "train", "restval", "val", "test")[n],
            "sentids": [5 * n + k for k in range(5)],
            "sentences": [
                {"raw": f"A dog and {n} cats .", "tokens": ["a"], "sentid": 5 * n + k, "imgid": n}
                for k in range(5)
            ],
        }
        for n in range(5)
    ]
    (folder / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": images}))


def coco(folder: Path) -> None:
    """COCO's captions and a list of ids."""
    document = {
        "info": {"year": 2014},
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 60, "width": 80} for n in range(5)],
        "annotations": [{"image_id": n % 5, "id": n, "caption": f"A dog and {n} cats."} for n in range(12)],
    }
    (folder / "captions_val2014.json").write_text(json.dumps(document))
    (folder / "dev.txt").write_text("1\n2\n")


def table(folder: Path) -> None:
    """A caption table in each of its forms; the target takes one of them."""
    rows = [(f"a/{n // 2}.jpg", f"A dog, and {n} cats.", ("train", "dev", "test")[n // 2 % 3]) for n in range(12)]
    (folder / "plain.csv").write_text("image,caption,split\n" + "".join(f'{a},"{b}",{c}\n' for a, b, c in rows))
    (folder / "plain.tsv").write_text("image\tcaption\n" + "".join(f"{a}\t{b}\n" for a, b, _ in rows))
    (folder / "plain.txt").write_text("image,caption\n" + "".join(f'{a},"{b}"\n' for a, b, _ in rows))
    (folder / "plain.jsonl").write_text("".join(json.dumps({"image": a, "caption": b}) + "\n" for a, b, _ in rows))


def visual_genome(folder: Path) -> None:
    """Visual Genome's three files and lists."""
    images, objects, attributes = [], [], []
    for n in range(1, 5):
        images.append({"image_id": n, "url": f"https://x/VG_100K/{n}.jpg", "width": 80, "height": 60})
        common = {"object_id": 10 * n, "x": 5, "y": 6, "w": 30, "h": 20, "names": ["circle"]}
        objects.append({"image_id": n, "objects": [{**common, "synsets": []}]})
        attributes.append({"image_id": n, "attributes": [{**common, "attributes": ["red"]}]})
    (folder / "source").mkdir()
    for name, content in (("image_data", images), ("objects", objects), ("attributes", attributes)):
        (folder / "source" / f"{name}.json").write_text(json.dumps(content))
    (folder / "lists").mkdir()
    (folder / "lists" / "train.txt").write_text("1\n2\n")
    (folder / "lists" / "test.txt").write_text("VG_100K/3.jpg xml/3.xml\n")


def annotations(folder: Path) -> None:
    """An annotation file with its images."""
    dataset(folder)
    path = folder / "data" / "annotations" / "train.json"
    path.rename(folder / "train.json")
    images = folder / "data" / "images"
    images.rename(folder / "images")
    _remove(folder / "data")
    (folder / "annotations").mkdir()
    (folder / "train.json").rename(folder / "annotations" / "train.json")


def coco_annotations(folder: Path) -> None:
    """An annotation file in COCO's form, with attributes, and its images."""
    annotations(folder)
    (folder / "scenes").mkdir()
    for name in ("annotations", "images"):
        (folder / name).rename(folder / "scenes" / name)
    write_coco(folder / "scenes", folder / "own")
    for name in ("annotations", "images"):
        (folder / "own" / name).rename(folder / name)
    _remove(folder / "own")
    _remove(folder / "scenes")


def weights(folder: Path) -> None:
    """A few tensors in each format of weight files; the target reads them all."""
    rng = torch.Generator().manual_seed(0)
    state = {f"module.layer{n}.weight": torch.randn(4, 3, generator=rng) for n in range(3)}
    torch.save({"model": state, "iteration": 7}, folder / "new.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    numbers = {name: tensor.numpy() for name, tensor in state.items()}
    (folder / "arrays.pkl").write_bytes(pickle.dumps({"model": numbers, "__author__": "Caffe2"}, protocol=2))
    from safetensors.torch import save_file

    save_file(state, folder / "new.safetensors")
    layers = [_caffe_layer(name.encode(), array) for name, array in numbers.items()]
    (folder / "net.caffemodel").write_bytes(_field(b"\x0a", b"net") + b"".join(layers))


def _caffe_layer(name: bytes, array: np.ndarray) -> bytes:
    """A layer with one blob, as a field of Caffe's NetParameter."""
    blob = _field(b"\x2a", array.tobytes()) + _field(b"\x3a", _field(b"\x0a", bytes(array.shape)))
    message = _field(b"\x0a", name) + _field(b"\x12", b"InnerProduct") + _field(b"\x3a", blob)
    return _field(b"\xa2\x06", message)


def _field(key: bytes, content: bytes) -> bytes:
    """A field of fewer than 128 bytes of a protocol buffer."""
    return key + bytes([len(content)]) + content


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (60, 80)) -> None:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def pictures(folder: Path) -> None:
    """Two pictures."""
    picture(folder / "images" / "1.png")
    picture(folder / "images" / "2.jpg", seed=1)


def image_lists(folder: Path) -> None:
    """Pictures with a list, ids and a mapping."""
    pictures(folder)
    (folder / "list.txt").write_text("1\timages/1.png\nimages/2.jpg\n")
    (folder / "ids.txt").write_text("1\n2\n")
    (folder / "id_mapping.json").write_text(json.dumps({"1": "1.png", "2": "2.jpg"}))


def given_boxes(folder: Path) -> None:
    """Pictures, and boxes of them as JSON and as a store."""
    pictures(folder)
    boxes = {"1": [[1, 2, 30, 40], [0, 0, 80, 60]], "2": [[5.5, 6.5, 50, 50]]}
    (folder / "boxes.json").write_text(json.dumps(boxes))
    store(folder / "boxes.h5", ["1", "2"])


def detector_weights(folder: Path) -> None:
    """A picture, and the weights of the small detector."""
    from extract.build import build_network
    from extract.config import load_config

    picture(folder / "images" / "1.png")
    state = build_network(load_config("scenes"), None, torch.device("cpu")).state_dict()
    torch.save({"model": state, "iteration": 3}, folder / "model.pth")


def detector_run(folder: Path) -> None:
    """A run of two iterations of `butd train`, with its data."""
    from extract.config import load_config, with_values
    from extract.training.data import load_detection_split
    from extract.training.trainer import train_detector

    dataset(folder)
    _remove(folder / "data" / "precomp")
    (folder / "short.yaml").write_text(
        "_BASE_: scenes.yaml\nSOLVER:\n  MAX_ITER: 2\n  WARMUP_ITERS: 1\n"
        "  CHECKPOINT_PERIOD: 1\n  IMS_PER_BATCH: 1\n"
    )
    from data_tools.configs import find_config

    (folder / "scenes.yaml").write_text(find_config("extract", "scenes").read_text())
    cfg = with_values(load_config(str(folder / "short.yaml")), device="cpu")
    train_detector(cfg, load_detection_split(folder / "data", "train"), folder / "run")
    (folder / "run" / "model_final.pth").unlink()
    (folder / "run" / "last_checkpoint").write_text("model_0000000.pth")


def run_folder(folder: Path) -> None:
    """A finished run of `chan train`, with its data."""
    from chan.config import load_config
    from chan.runs.train import train

    dataset(folder)
    _remove(folder / "data" / "images")
    train(folder / "run", load_config("scenes", MODEL), folder / "data", None, torch.device("cpu"), resume=False)
    for path in (folder / "run").glob("events*"):
        path.unlink()


def checkpoint(folder: Path) -> None:
    """A checkpoint of the public CHAN code, in both of torch's formats, and its vocabulary."""
    from chan.build import build_model
    from chan.config import load_config
    from chan.text.tokenizers import VocabularyTokenizer
    from data_tools.captions.vocabulary import Vocabulary

    vocabulary = Vocabulary.build(["a red dog", "two blue cats"], threshold=1)
    vocabulary.save(folder / "vocab.json")
    options = {
        "embed_size": 8,
        "word_dim": 8,
        "img_dim": DIM,
        "precomp_enc_type": "basic",
        "text_enc_type": "bigru",
    }
    config = load_config("f30k_bigru", ["model.dim=8", "model.text.word_dim=8", "model.image.encoder=basic"])
    model = build_model(config.model, DIM, VocabularyTokenizer(vocabulary), pretrained=False, verbose=False)
    state = model.state_dict()
    split = [
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        for prefix in ("image_encoder.", "text_encoder.", "scoring.", "loss.")
    ]
    options |= {
        "coding_type": "VHACoding",
        "pooling_type": "LSEPooling",
        "criterion": "ContrastiveLoss",
        "drop": True,
    }
    content = {"epoch": 3, "model": split, "best_rsum": 12.5, "opt": Namespace(**options), "Eiters": 7}
    torch.save(content, folder / "model.pth")


def bert(folder: Path) -> None:
    """A BERT of one small layer, as transformers saves it."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "red", "##s", "."]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(0)
    small = BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(small).save_pretrained(folder)


def word_vectors(folder: Path) -> None:
    """GloVe's text, fastText's text, both compressed."""
    text = "".join(
        f"{word} " + " ".join("0.5" for _ in range(DIM)) + "\n" for word in ("a", "dog", "the", "x-ray")
    )
    (folder / "glove.txt").write_text(text)
    (folder / "fast.vec").write_text(f"4 {DIM}\n{text}")
    (folder / "glove.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    with zipfile.ZipFile(folder / "glove.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("glove.txt", text)


def chan_config(folder: Path) -> None:
    """A configuration of `chan train` with a base."""
    from data_tools.configs import find_config

    (folder / "config.yaml").write_text(find_config("chan", "scenes").read_text())
    (folder / "over.yaml").write_text("base: config\ntrain:\n  lr: 0.001\n  epochs: 3\nmodel:\n  pooling: mean\n")


def overrides(folder: Path) -> None:
    """Arguments `key=value`."""
    lines = (
        "model.dim=16\ntrain.lr=1e-3\nmodel.pooling=mean\nmodel.text.bert=x\ndata.vocab=null\nloss.margin=0.2\n"
    )
    (folder / "keys.overrides").write_text(lines)


def detector_config(folder: Path) -> None:
    """A configuration of the detector with a base."""
    from data_tools.configs import find_config

    (folder / "base.yaml").write_text(find_config("extract", "scenes").read_text())
    (folder / "config.yaml").write_text("_BASE_: base.yaml\nSEED: 3\nINPUT:\n  MIN_SIZE_TEST: 100\n")
    labels = {"classes": ["dog", "cat"], "attributes": ["red"], "class_aliases": {"dog": ["puppy"]}}
    (folder / "labels.json").write_text(json.dumps(labels))
