"""Pixels to region features: the bottom-up-attention detector on Detectron2."""

from typing import TYPE_CHECKING

from data_tools.facade import lazy_names

if TYPE_CHECKING:
    from extract.build import build_detector as build_detector
    from extract.config import load_config as load_config
    from extract.detector.detector import Detector as Detector
    from extract.detector.precision import Precision as Precision
    from extract.regions.selection import Selection as Selection
    from extract.regions.selection import build_selection as build_selection
    from extract.weights.locating import find_weights as find_weights
else:  # hidden from type checkers, to which every name would exist with a __getattr__
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "extract.build": ("build_detector",),
            "extract.config": ("load_config",),
            "extract.detector.detector": ("Detector",),
            "extract.detector.precision": ("Precision",),
            "extract.regions.selection": ("Selection", "build_selection"),
            "extract.weights.locating": ("find_weights",),
        },
    )
