"""The detector that `extract-features IMAGES` uses where nothing else is said."""

PUBLISHED = "butd_r101_airsplay"  # a configuration of configs/extract
PUBLISHED_WEIGHTS = "unc-nlp/frcnn-vg-finetuned"  # a Hugging Face repository
