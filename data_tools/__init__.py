"""The feature store, and ids, captions and vocabularies beside it. Imports neither `extract` nor `chan`."""

from data_tools.store.features import RegionFeatures, open_features

__all__ = ["RegionFeatures", "open_features"]
