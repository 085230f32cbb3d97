"""CHAN: image-text retrieval from region features with hard assignment coding (Pan et al., CVPR 2023)."""
