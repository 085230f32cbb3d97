"""What a user of `extract-features` chooses among, and what is used where nothing is chosen. No torch here.

The command line knows these names before it imports anything that takes seconds.
"""

from dataclasses import dataclass
from enum import StrEnum

from data_tools.errors import UsageError

PUBLISHED = "butd_r101_caffe"  # the default configuration, of configs/extract
PUBLISHED_WEIGHTS = "unc-nlp/frcnn-vg-finetuned"  # a Hugging Face repository: the 36-box model
DEFAULT_WEIGHTS = {PUBLISHED: PUBLISHED_WEIGHTS, "butd_r101_airsplay": PUBLISHED_WEIGHTS}
_GRID_WEIGHTS = "https://dl.fbaipublicfiles.com/grid-feats-vqa"
OTHER_WEIGHTS = {  # what to give for a configuration whose weights are not fetched by themselves
    "butd_r101_caffe_10_100": "https://storage.googleapis.com/up-down-attention/"
    "resnet101_faster_rcnn_final.caffemodel (Anderson et al.), "
    "bua-caffe-frcn-r101-k10-100.pth (MILVLG/bottom-up-attention.pytorch) or "
    "faster_rcnn_from_caffe_attr_original.pkl (airsplay/py-bottom-up-attention)",
    "butd_r152_caffe": "bua-caffe-frcn-r152.pth (MILVLG/bottom-up-attention.pytorch)",
    "grid_r50": f"{_GRID_WEIGHTS}/R-50/R-50.pth",
    "grid_x101": f"{_GRID_WEIGHTS}/X-101/X-101.pth",
    "grid_x152": f"{_GRID_WEIGHTS}/X-152/X-152.pth",
    "vinvl_x152": "vinvl_vg_x152c4.pth (microsoft/scene_graph_benchmark)",
}
RANDOM_WEIGHTS = "random"  # the word for an untrained network, as a baseline

MAX_CELLS = 100  # along a side of a grid; the map of a published network has at most 63 places


class Rule(StrEnum):
    """Which published rule selects regions among an image's proposals; see extract/regions/selection.py."""

    CAFFE = "caffe"
    DETECTRON2 = "detectron2"


class Precision(StrEnum):
    """Arithmetic of the network's convolutions and matrix products, apart from the type of stored features."""

    FP32 = "fp32"  # float32 throughout
    TF32 = "tf32"  # float32 with products of 10-bit mantissas, on GPUs that support it
    FP16 = "fp16"
    BF16 = "bf16"


class Dtype(StrEnum):
    """Types that features can be stored in."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


class Engine(StrEnum):
    """Where parts are extracted: in this process or on a Ray cluster."""

    LOCAL = "local"
    RAY = "ray"


class OnError(StrEnum):
    """What happens when an image cannot be read."""

    SKIP = "skip"  # it is reported, and the run goes on
    FAIL = "fail"  # the run stops


MIN_COSINE = 0.999
"""Of a published feature and a proposal's, from which the proposal's box counts as recovered."""

PART_SIZES = {"cuda": 256, "cpu": 4}
"""Images per part file by device: about a minute's work, which a kill can cost; a CPU takes 18 s per image."""


@dataclass(frozen=True)
class RunOptions:
    """How a run works. Of it, only `max_pixels` decides what is in the store.

    Attributes:
        batch_size: images that go through the network together.
        workers: processes that decode and resize images; 0 for none beside the caller's.
        part_size: images per part file. A killed run loses the work on at most the parts that were not complete.
        on_error: what happens when an image cannot be read.
        shard: (i, n) with 1 <= i <= n: write every n-th part only, and do not join.
        overwrite: discard an existing store and its parts, after everything else was checked.
        max_pixels: width times height of the largest image that is decoded; a larger one cannot be read.

    Raises:
        UsageError: `overwrite` together with `shard`.
    """

    batch_size: int = 8
    workers: int = 2
    part_size: int = 256
    on_error: OnError = OnError.SKIP
    shard: tuple[int, int] | None = None
    overwrite: bool = False
    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        if self.overwrite and self.shard:
            raise UsageError("--overwrite would discard other shards' parts: remove the store and its parts first")
