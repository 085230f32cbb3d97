"""Pixels to region features: the bottom-up-attention detector on Detectron2."""

import os

# On Linux, tensors of megabytes then come in huge pages: a training step on a CPU spends half its time on the page
# faults of small ones (docs/performance.md). PyTorch reads it with its first tensor; who sets it to 0 keeps that.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
