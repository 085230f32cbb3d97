"""The group of commands `chan`, and the options that several of them share."""

from pathlib import Path
from typing import Annotated

from data_tools.options import INPUT, argument, flag, make_group, option, seed_option

METRICS = "Metrics"  # a group of the help

app = make_group("chan", "Train CHAN on region features and captions, and measure and explain its retrieval.")

RunFolder = Annotated[
    Path, argument("RUN", "Run folder, written by chan train or chan import, or hf://OWNER/NAME@REVISION.")
]
_DATA = option(INPUT, "Data folder, with splits and features in its precomp/ folder.", metavar="DIR")
Data = Annotated[Path, _DATA]
DataOrNone = Annotated[Path | None, _DATA]
Features = Annotated[
    Path | None,
    option(
        INPUT,
        "Features: an HDF5 store, a .npy file of SCAN, or a folder that holds one of them.",
        metavar="FILE|DIR",
        show_default="the features in --data",
    ),
]
SplitName = Annotated[str, option(INPUT, "Name of the split, for instance dev, test or testall.", metavar="NAME")]
Folds = Annotated[
    int,
    option(
        METRICS,
        "Average the metrics over this many consecutive parts of the images; 5 on testall is COCO's 1K protocol.",
        metavar="N",
        min=1,
    ),
]
Eccv = Annotated[bool, flag(METRICS, "Add the metrics of CxC and ECCV Caption (COCO's testall only).", "--eccv")]
Cxc = Annotated[
    Path | None,
    option(
        METRICS,
        "Also image to image and text to text retrieval of CxC: the folder data of its repository, with "
        "sis_test.csv and sts_test.csv; includes --eccv.",
        metavar="DIR",
    ),
]
BootstrapSeed = Annotated[int, seed_option("the bootstrap resampling behind the 95 % intervals")]
