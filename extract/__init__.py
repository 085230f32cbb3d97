"""Pixels to region features: the bottom-up-attention detector on Detectron2."""
