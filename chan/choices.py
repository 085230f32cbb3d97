"""What options of the command line choose from, in a module that imports no library."""

from enum import StrEnum


class PrecisionName(StrEnum):
    """Arithmetic of matrix products; weights and normalised embeddings are float32 in each."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class SearchEngine(StrEnum):
    """What searches an index."""

    local = "local"
    ray = "ray"
