"""The options of `extract-features` and `butd`."""

from pathlib import Path
from typing import Annotated

from data_tools.options import (
    INPUT,
    NETWORK,
    OUTPUT,
    REGIONS,
    RUN,
    argument,
    config_option,
    flag,
    option,
    seed_option,
)
from extract.choices import (
    BATCH_SIZES,
    DEFAULT_WEIGHTS,
    MAX_CELLS,
    MOST_WORKERS,
    PART_SIZES,
    PUBLISHED_WEIGHTS,
    Dtype,
    Engine,
    OnError,
    Precision,
    Rule,
)

MAX_SEED = 2**32 - 1  # NumPy's

# Input
Images = Annotated[
    Path,
    argument("IMAGES", "Folder of images, searched with its sub-folders, or a text file with one image per line."),
]
IdMapping = Annotated[
    Path | None,
    option(
        INPUT,
        "JSON object of image ids and files relative to IMAGES; without one, file names are ids.",
        metavar="FILE",
        show_default="IMAGES/../id_mapping.json",
    ),
]
Ids = Annotated[
    Path | None,
    option(INPUT, "Extract only the images with the ids in this file, one id per line.", metavar="FILE"),
]
MaxPixels = Annotated[
    int,
    option(
        INPUT,
        "Width times height of the largest image that is read; 64 million take about 1.2 GB per worker.",
        metavar="N",
        min=1,
    ),
]
GivenBoxes = Annotated[
    Path | None,
    option(
        INPUT,
        "Extract features of these boxes instead of detected ones: a JSON object of image ids and lists of boxes "
        "(x1, y1, x2, y2 in pixels), or another store.",
        metavar="FILE",
    ),
]
Data = Annotated[
    Path,
    option(
        INPUT,
        "Data folder, with images/ and annotations/SPLIT.json, in this project's form or COCO's.",
        metavar="DIR",
    ),
]
SplitName = Annotated[str, option(INPUT, "Name of the split, for instance val or test.", metavar="NAME")]

Precomp = Annotated[
    Path,
    argument(
        "PRECOMP", "Folder of published features, SPLIT_ims.npy and SPLIT_ids.txt; or one array, or a store."
    ),
]
Pictures = Annotated[
    Path, option(INPUT, "Folder of the images, or a text file with one image per line.", metavar="IMAGES")
]
PicturesMapping = Annotated[
    Path | None,
    option(
        INPUT,
        "JSON object of image ids and files relative to --images; without one, file names are ids.",
        metavar="FILE",
        show_default="IMAGES/../id_mapping.json",
    ),
]
PublishedSplit = Annotated[
    str | None,
    option(INPUT, "The only split of PRECOMP to read.", metavar="NAME", show_default="all splits"),
]

# Regions
Selection = Annotated[
    Rule,
    option(
        REGIONS,
        "Selection rule. caffe: proposals, NMS per class. detectron2: regressed boxes, one NMS over all classes.",
    ),
]
NumBoxes = Annotated[
    int | None,
    option(
        REGIONS,
        "Regions per image, the same for every image.",
        metavar="N",
        min=1,
        show_default="TEST.REGIONS of the configuration",
    ),
]
MinBoxes = Annotated[
    int | None, option(REGIONS, "Minimum number of regions per image; goes with --max-boxes.", metavar="N", min=1)
]
MaxBoxes = Annotated[
    int | None, option(REGIONS, "Maximum number of regions per image; goes with --min-boxes.", metavar="N", min=1)
]
DrawnBoxes = Annotated[int, option(REGIONS, "Number of regions to draw.", metavar="N", min=1)]
Threshold = Annotated[
    float | None,
    option(
        REGIONS,
        "Minimum class score of a region.",
        metavar="SCORE",
        min=0,
        max=1,
        show_default="0.2 for caffe, 0 for detectron2",
    ),
]
Nms = Annotated[
    float | None,
    option(
        REGIONS,
        "NMS threshold: IoU with a region of a higher score above which a region is dropped.",
        metavar="IOU",
        min=0,
        max=1,
        show_default="0.3 for caffe, 0.5 for detectron2",
    ),
]
MinCosine = Annotated[
    float,
    option(
        REGIONS,
        "Minimum cosine of a published feature with that of a proposal whose box it gets.",
        metavar="COSINE",
        min=0,
        max=1,
    ),
]

GridCells = Annotated[
    int | None,
    option(
        REGIONS,
        "Take the N x N cells of each image as its regions, without classes and attributes: res5 of the whole "
        "feature map, averaged over each cell.",
        metavar="N",
        min=1,
        max=MAX_CELLS,
    ),
]

# Network
Config = Annotated[str, config_option("extract", NETWORK)]
Weights = Annotated[
    str | None,
    option(
        NETWORK,
        "Weight file, URL or Hugging Face repository; the word random gives an untrained network.",
        metavar="WEIGHTS",
        show_default=f"{PUBLISHED_WEIGHTS} for {' and '.join(DEFAULT_WEIGHTS)}",
    ),
]
InitialWeights = Annotated[
    str | None,
    option(
        NETWORK,
        "Weights that a new run starts from: an ImageNet ResNet or a detector, as a file, URL or repository.",
        metavar="WEIGHTS",
        show_default="random weights",
    ),
]
NetworkPrecision = Annotated[
    Precision,
    option(NETWORK, "Arithmetic of the network's convolutions and matrix products; tf32 needs a GPU."),
]

# Run
BatchSize = Annotated[
    int | None,
    option(
        RUN,
        "Maximum number of images per batch; all of them have the same resized shape.",
        metavar="N",
        min=1,
        show_default=" and ".join(f"{size} on {kind}" for kind, size in BATCH_SIZES.items()),
    ),
]
Workers = Annotated[
    int | None,
    option(
        RUN,
        "Processes that read and resize images; 0 does it in the main process.",
        metavar="N",
        min=0,
        show_default="cores but one, at most "
        + " and ".join(f"{most} on {kind}" for kind, most in MOST_WORKERS.items()),
    ),
]
PartSize = Annotated[
    int | None,
    option(
        RUN,
        "Images per part file; a killed run repeats at most the part it was writing.",
        metavar="N",
        min=1,
        show_default=" and ".join(f"{size} on {kind}" for kind, size in PART_SIZES.items()),
    ),
]
Shard = Annotated[
    str | None,
    option(
        RUN,
        "Extract the I-th of N shares of the images; when all are done, data-tools join makes the store.",
        metavar="I/N",
    ),
]
WhichEngine = Annotated[
    Engine, option(RUN, "Where the extraction runs. local: in this process. ray: on a Ray cluster.")
]
RayAddress = Annotated[
    str,
    option(
        RUN,
        "Address of a running Ray cluster, or auto; goes with --engine ray.",
        metavar="ADDRESS",
        show_default="a new cluster on this machine",
    ),
]
WhenUnreadable = Annotated[
    OnError, option(RUN, "What to do about an image that cannot be read: skip and report it, or fail.")
]
Seed = Annotated[int | None, seed_option("random weights", max=MAX_SEED, show_default="SEED of the configuration")]
TrainSeed = Annotated[
    int | None,
    seed_option(
        "the initial weights, the order and the augmentation",
        max=MAX_SEED,
        show_default="SEED of the configuration",
    ),
]
Gpus = Annotated[int, option(RUN, "GPUs of this machine to train on, one process each.", metavar="N", min=1)]

# Output
Store = Annotated[
    Path | None,
    option(OUTPUT, "Feature store to write.", metavar="FILE", show_default="IMAGES/../precomp/features.h5"),
]
RecoveredStore = Annotated[Path, option(OUTPUT, "Feature store to write.", metavar="FILE")]
StoredDtype = Annotated[Dtype, option(OUTPUT, "Type of the stored features.")]
BoxesOnly = Annotated[bool, flag(OUTPUT, "Store boxes, classes and attributes, but no features.", "--boxes-only")]
Overwrite = Annotated[
    bool, flag(OUTPUT, "Discard an existing store and the parts of earlier runs.", "--overwrite")
]
RunFolder = Annotated[Path, option(OUTPUT, "Run folder to write.", metavar="RUN")]
Picture = Annotated[Path, option(OUTPUT, "Picture (PNG) to write.", metavar="FILE")]
