"""What is fuzzed: for every reader, a valid input and a call of what the command calls."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import InputError, UsageError
from tests.fuzz import seeds

INPUT, OUTPUT = Path("in"), Path("out")  # of one trial, relative to the folder in which it runs


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        name: as in the table of results.
        make: writes a valid input into a folder.
        read: reads the input in `INPUT`; may write to `OUTPUT`.
        share: its part of the inputs, relative to the other targets; smaller where a trial takes seconds.
        changed: patterns of the files that are changed.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[], None]
    share: float = 1.0
    changed: tuple[str, ...] = ("**/*",)


def command(name: str, *arguments: object) -> Callable[[], None]:
    """A call of a whole command in this process.

    Raises:
        InputError, UsageError: it ended with exit code 1 or 2; its lines are on standard error already.
    """

    def call() -> None:
        from chan.command_line import chan
        from data_tools.command_line import data_tools
        from extract.command_line import butd, extract_features

        commands = {"chan": chan, "data-tools": data_tools, "extract-features": extract_features, "butd": butd}
        sys.argv = [name, *map(str, arguments)]
        try:
            commands[name]()
        except SystemExit as end:
            if end.code in (1, 2):
                raise (InputError if end.code == 1 else UsageError)("") from None
            if end.code:
                raise RuntimeError(f"exit code {end.code}") from None

    return call


def each(*calls: Callable[[], None]) -> Callable[[], None]:
    """All of these calls, one after another; an input that one of them refuses is given to the others too."""

    def call() -> None:
        refused: Exception | None = None
        for one in calls:
            try:
                one()
            except (InputError, UsageError) as error:
                refused = error
        if refused is not None:
            raise refused

    return call


def _load_weights(name: str) -> Callable[[], None]:
    def load() -> None:
        from extract.weights.locating import find_weights
        from extract.weights.reading import read_weights

        read_weights(find_weights(str(INPUT / name)))

    return load


def _annotations() -> None:
    from extract.training.data import load_detection_split

    load_detection_split(INPUT, "train")


def _sources(*names: str) -> Callable[[], None]:
    def find() -> None:
        from extract.run.sources import find_sources

        images, mapping, split = (INPUT / name if name else None for name in names)
        assert images is not None
        find_sources(images, mapping, split)

    return find


def _decode() -> None:
    from extract.config import load_config
    from extract.detector.resizing import Resizing
    from extract.run.loading import load
    from extract.run.sources import find_sources

    found = find_sources(INPUT / "images")
    cfg = load_config("scenes")
    resizing = Resizing(cfg.INPUT.RESIZE, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, (127.5,) * 3)
    for decoded in load(found.folder, found.images, range(len(found.images)), resizing, workers=0):
        if decoded.problem:
            print(decoded.problem)


def _bert() -> None:
    import torch

    from chan.packing import pack
    from chan.text.bert import load_bert
    from chan.text.tokenizers import BertTokenizer, tokenize_captions

    tokenizer = BertTokenizer(str(INPUT))
    words = tokenize_captions(tokenizer, ["a red dog.", "dogs " * 600])
    model = load_bert(str(INPUT), pretrained=True)
    load_bert(str(INPUT), pretrained=False)
    from chan.model.text_encoders import BertEncoder

    encoder = BertEncoder(model, 8, True)
    for caption in range(len(words)):
        ids = [*tokenizer.prefix, *(i for word in words.caption(caption) for i in word), *tokenizer.suffix]
        encoder(pack([torch.tensor(ids)]))


def _word_vectors(name: str) -> Callable[[], None]:
    def read() -> None:
        from chan.text.word_vectors import read_word_vectors

        read_word_vectors(INPUT / name, {"a", "dog", "x-ray", "absent"}, seeds.DIM)

    return read


def _chan_config(name: str) -> Callable[[], None]:
    def load() -> None:
        from chan.config import load_config, read_config, save_config

        config = load_config(str(INPUT / name))
        save_config(config, OUTPUT / "config.yaml")
        if read_config(OUTPUT / "config.yaml") != config:
            raise RuntimeError("the configuration is another one when it is read again")

    return load


def _overrides() -> None:
    from chan.config import Config, override

    path = INPUT / "keys.overrides"
    if not path.is_file():  # these are arguments: only their text counts
        raise UsageError("no arguments")
    lines = path.read_bytes().decode(errors="surrogateescape").split("\n")
    override(Config(), [line for line in lines if line])


def _detector_config() -> None:
    import torch

    from extract.build import build_detector
    from extract.config import labels_of, load_config, provenance_text

    cfg = load_config(str(INPUT / "config.yaml"))
    labels_of(cfg)
    provenance_text(cfg)
    build_detector(cfg, None, torch.device("cpu"))


def _labels() -> None:
    from data_tools.detection.labels import load_labels

    load_labels(str(INPUT / "labels.json"))


_STORE, _OUT = INPUT / "features.h5", OUTPUT / "out.h5"
_EXTRACT = ("--config", "scenes", "--workers", 0, "--batch-size", 1, "--device", "cpu")
_DATA = ("--data", INPUT / "data", "--device", "cpu")

_RUN = ("run/*", "run/*", "data/precomp/*")
_VERIFIED = ("data/precomp/features.h5", "data/precomp/*.txt", "data/*.json", "data/images/**/*")

TARGETS = (
    Target("store-inspect", seeds.one_store, command("data-tools", "inspect", _STORE, "--all"), 2),
    Target("store-convert", seeds.one_store, command("data-tools", "convert", _STORE, "--out", _OUT), 2),
    Target(
        "store-virtual",
        seeds.virtual_store,
        command("data-tools", "convert", INPUT / "virtual.h5", "--out", _OUT),
        2,
    ),
    Target(
        "store-join",
        seeds.two_stores,
        command("data-tools", "join", INPUT / "a.h5", INPUT / "b.h5", "--out", _OUT),
    ),
    Target("store-parts", seeds.parts, command("data-tools", "join", "--out", _STORE)),
    Target("store-verify", seeds.dataset, command("data-tools", "verify", INPUT / "data", "--all"), 1, _VERIFIED),
    Target("arrays", seeds.arrays, command("data-tools", "convert", INPUT, "--out", _OUT)),
    Target(
        "scores",
        seeds.scores,
        command("chan", "ensemble", INPUT / "a.npy", INPUT / "b.npy", "--data", INPUT, "--split", "test"),
        0.5,
    ),
    Target(
        "tsv-butd", seeds.butd_tsv, command("data-tools", "convert", INPUT / "features.tsv", "--out", _OUT), 1.5
    ),
    Target(
        "tsv-lxmert", seeds.lxmert_tsv, command("data-tools", "convert", INPUT / "features.tsv", "--out", _OUT)
    ),
    Target("tsv-oscar", seeds.oscar_tsv, command("data-tools", "convert", INPUT / "features.tsv", "--out", _OUT)),
    Target("tsv-vinvl", seeds.vinvl_tsv, command("data-tools", "convert", INPUT / "features.tsv", "--out", _OUT)),
    Target("npz", seeds.archives, command("data-tools", "convert", INPUT, "--out", _OUT)),
    Target(
        "captions-karpathy",
        seeds.karpathy,
        command("data-tools", "splits", INPUT / "dataset_coco.json", "--out", OUTPUT),
    ),
    Target(
        "captions-coco",
        seeds.coco,
        command(
            "data-tools",
            "splits",
            INPUT / "captions_val2014.json",
            "--ids",
            f"dev={INPUT}/dev.txt",
            "--out",
            OUTPUT,
        ),
    ),
    Target(
        "captions-table",
        seeds.table,
        each(
            *(
                command(
                    "data-tools",
                    "splits",
                    INPUT / f"plain.{kind}",
                    "--dev",
                    1,
                    "--test",
                    1,
                    "--out",
                    OUTPUT / kind,
                )
                for kind in ("csv", "tsv", "txt", "jsonl")
            )
        ),
        2,
    ),
    Target(
        "captions-lists",
        seeds.lists,
        command("data-tools", "vocab", INPUT, "--compare", INPUT / "vocab.json", "--out", OUTPUT / "vocab.json"),
    ),
    Target(
        "visual-genome",
        seeds.visual_genome,
        command(
            *("data-tools", "visual-genome", INPUT / "source", "--lists", INPUT / "lists", "--labels", "scenes"),
            *("--out", OUTPUT),
        ),
    ),
    Target("annotations", seeds.annotations, _annotations, 0.7),
    Target("coco-annotations", seeds.coco_annotations, _annotations, 0.7),
    Target(
        "weights",
        seeds.weights,
        each(*map(_load_weights, ("new.pth", "old.pth", "arrays.pkl", "new.safetensors", "net.caffemodel"))),
        4,
    ),
    Target(
        "detector-weights",
        seeds.detector_weights,
        command("extract-features", INPUT / "images", *_EXTRACT, "--weights", INPUT / "model.pth", "--out", _OUT),
        0.5,
        ("model.pth",),
    ),
    Target(
        "detector-run",
        seeds.detector_run,
        command(
            *("butd", "train", "--data", INPUT / "data", "--config", INPUT / "short.yaml", "--out", INPUT / "run"),
            *("--resume", "--device", "cpu"),
        ),
        0.4,
        ("run/*", "run/last_checkpoint", "run/model_0000000.pth", "short.yaml", "data/annotations/train.json"),
    ),
    Target("detector-config", seeds.detector_config, each(_detector_config, _labels), 1.5),
    Target("pictures", seeds.pictures, _decode, 3),
    Target(
        "image-lists",
        seeds.image_lists,
        each(_sources("images", "id_mapping.json", "ids.txt"), _sources("list.txt", "", "")),
        0.7,
    ),
    Target(
        "boxes-json",
        seeds.given_boxes,
        command(
            *(
                "extract-features",
                INPUT / "images",
                *_EXTRACT,
                "--weights",
                "random",
                "--boxes",
                INPUT / "boxes.json",
            ),
            *("--out", _OUT),
        ),
        1,
        ("boxes.json",),
    ),
    Target(
        "boxes-store",
        seeds.given_boxes,
        command(
            *(
                "extract-features",
                INPUT / "images",
                *_EXTRACT,
                "--weights",
                "random",
                "--boxes",
                INPUT / "boxes.h5",
            ),
            *("--out", _OUT),
        ),
        1,
        ("boxes.h5",),
    ),
    Target(
        "chan-run",
        seeds.run_folder,
        command("chan", "evaluate", INPUT / "run", *_DATA, "--split", "test"),
        2,
        _RUN,
    ),
    Target(
        "chan-resume",
        seeds.run_folder,
        command("chan", "train", *_DATA, "--out", INPUT / "run", "--resume", "train.epochs=2"),
        2.5,
        ("run/state.pt", "run/state.pt", *_RUN),
    ),
    Target(
        "chan-import",
        seeds.checkpoint,
        command("chan", "import", INPUT / "model.pth", "--vocab", INPUT / "vocab.json", "--out", OUTPUT / "run"),
        2,
    ),
    Target("bert", seeds.bert, _bert, 1.5),
    Target(
        "word-vectors",
        seeds.word_vectors,
        each(*map(_word_vectors, ("glove.txt", "fast.vec", "glove.gz", "glove.zip"))),
    ),
    Target("chan-config", seeds.chan_config, each(_chan_config("config.yaml"), _chan_config("over.yaml")), 2),
    Target("chan-overrides", seeds.overrides, _overrides),
)
