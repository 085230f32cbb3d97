"""Pixels to region features: the bottom-up-attention detector on Detectron2."""

from typing import TYPE_CHECKING

from data_tools.facade import lazy_names

if TYPE_CHECKING:
    from extract.build import build_detector as build_detector
    from extract.choices import Precision as Precision
    from extract.choices import RunOptions as RunOptions
    from extract.config import load_config as load_config
    from extract.detector.detector import Detector as Detector
    from extract.regions.selection import Selection as Selection
    from extract.regions.selection import build_selection as build_selection
    from extract.run.extraction import extract as extract
    from extract.run.extractor import Extractor as Extractor
    from extract.run.extractor import ImageRegions as ImageRegions
    from extract.run.plan import ExtractionPlan as ExtractionPlan
    from extract.run.plan import plan_extraction as plan_extraction
    from extract.weights.locating import find_weights as find_weights
else:  # hidden from type checkers, to which every name would exist with a __getattr__
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "extract.build": ("build_detector",),
            "extract.choices": ("Precision", "RunOptions"),
            "extract.config": ("load_config",),
            "extract.detector.detector": ("Detector",),
            "extract.regions.selection": ("Selection", "build_selection"),
            "extract.run.extraction": ("extract",),
            "extract.run.extractor": ("Extractor", "ImageRegions"),
            "extract.run.plan": ("ExtractionPlan", "plan_extraction"),
            "extract.weights.locating": ("find_weights",),
        },
    )
