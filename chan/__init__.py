"""CHAN: image-text retrieval from region features with hard assignment coding (Pan et al., CVPR 2023)."""

from typing import TYPE_CHECKING

from data_tools.facade import lazy_names

if TYPE_CHECKING:
    from chan.config import Config as Config
    from chan.config import load_config as load_config
    from chan.data.splits import open_split as open_split
    from chan.model.chan import Chan as Chan
    from chan.packing import Packed as Packed
    from chan.retrieval.indexing import add_to_index as add_to_index
    from chan.retrieval.indexing import compact_index as compact_index
    from chan.retrieval.indexing import create_index as create_index
    from chan.retrieval.indexing import open_collection as open_collection
    from chan.retrieval.indexing import remove_from_index as remove_from_index
    from chan.retrieval.retriever import Retriever as Retriever
    from chan.retrieval.retriever import open_index as open_index
    from chan.runs.folder import load_best_model as load_best_model
    from chan.runs.importing import import_checkpoint as import_checkpoint
    from chan.scoring.pairwise import pairwise_scores as pairwise_scores
else:  # hidden from type checkers, to which every name would exist with a __getattr__
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "chan.config": ("Config", "load_config"),
            "chan.data.splits": ("open_split",),
            "chan.model.chan": ("Chan",),
            "chan.packing": ("Packed",),
            "chan.retrieval.indexing": (
                "add_to_index",
                "compact_index",
                "create_index",
                "open_collection",
                "remove_from_index",
            ),
            "chan.retrieval.retriever": ("Retriever", "open_index"),
            "chan.runs.folder": ("load_best_model",),
            "chan.runs.importing": ("import_checkpoint",),
            "chan.scoring.pairwise": ("pairwise_scores",),
        },
    )
