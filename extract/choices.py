"""The detector that `extract-features IMAGES` uses where nothing else is said, and where its weights are."""

PUBLISHED = "butd_r101_caffe"  # a configuration of configs/extract
PUBLISHED_WEIGHTS = "unc-nlp/frcnn-vg-finetuned"  # a Hugging Face repository: the 36-box model
DEFAULT_WEIGHTS = {PUBLISHED: PUBLISHED_WEIGHTS, "butd_r101_airsplay": PUBLISHED_WEIGHTS}
OTHER_WEIGHTS = {  # what to give where nothing can be fetched
    "butd_r101_caffe_10_100": "bua-caffe-frcn-r101-k10-100.pth (MILVLG/bottom-up-attention.pytorch) or "
    "faster_rcnn_from_caffe_attr_original.pkl (airsplay/py-bottom-up-attention)"
}
