"""Feature stores, and the ids, captions and vocabularies beside them.

Neither `extract` nor `chan` is imported here; both import this package before they import PyTorch.
"""

from typing import TYPE_CHECKING

from data_tools.environment import prepare_environment
from data_tools.facade import lazy_names

if TYPE_CHECKING:
    from data_tools.captions.splits import Split as Split
    from data_tools.captions.splits import load_split as load_split
    from data_tools.captions.vocabulary import Vocabulary as Vocabulary
    from data_tools.detection.labels import Labels as Labels
    from data_tools.detection.labels import load_labels as load_labels
    from data_tools.errors import InputError as InputError
    from data_tools.errors import UsageError as UsageError
    from data_tools.layout import load_id_mapping as load_id_mapping
    from data_tools.store.features import RegionFeatures as RegionFeatures
    from data_tools.store.features import open_features as open_features
    from data_tools.store.joining import join_stores as join_stores
    from data_tools.store.reading import FeatureStore as FeatureStore
    from data_tools.store.schema import Block as Block
    from data_tools.store.schema import StoreSchema as StoreSchema
    from data_tools.store.writing import write_store as write_store
else:  # hidden from type checkers, to which every name would exist with a __getattr__
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "data_tools.captions.splits": ("Split", "load_split"),
            "data_tools.captions.vocabulary": ("Vocabulary",),
            "data_tools.detection.labels": ("Labels", "load_labels"),
            "data_tools.errors": ("InputError", "UsageError"),
            "data_tools.layout": ("load_id_mapping",),
            "data_tools.store.features": ("RegionFeatures", "open_features"),
            "data_tools.store.joining": ("join_stores",),
            "data_tools.store.reading": ("FeatureStore",),
            "data_tools.store.schema": ("Block", "StoreSchema"),
            "data_tools.store.writing": ("write_store",),
        },
    )

prepare_environment()
