"""The provenance of a run's features, so that a run is only used with features that were made in the same way.

The detector weights and the selection rule are compared. A features file that does not state them (SCAN's arrays)
and a run that does not know them (imported checkpoints) are accepted.
"""

import json
from pathlib import Path

from chan.data.splits import FeatureSplit
from data_tools.errors import InputError
from data_tools.files import read_json, replace_file

FEATURES = "features.json"


def save_provenance(folder: Path, provenance: dict[str, str]) -> None:
    """Write the provenance of the training features to the run's folder."""
    replace_file(folder / FEATURES, json.dumps(provenance, indent=2).encode())


def check_provenance(folder: Path, feature_split: FeatureSplit) -> None:
    """Check features against those that the run in `folder` was trained on.

    Raises:
        InputError: weights or selection rule differ.
    """
    path = folder / FEATURES
    trained = read_json(path) if path.is_file() else {}
    if not isinstance(trained, dict):
        raise InputError(f"{path}: expected an object of names and values")
    check_same_features(trained, f"the run {folder}", feature_split)


def check_same_features(expected: dict[str, str], owner: str, feature_split: FeatureSplit) -> None:
    """`InputError` where the split's features have other weights or another selection rule than `owner`'s."""
    source = feature_split.source
    for key, name in (("weights_sha256", "weights"), ("selection", "selection")):
        ours, theirs = feature_split.features.provenance.get(key), expected.get(key)
        if ours and theirs and ours != theirs:
            raise InputError(f"{source}: features made with {name} {ours}, those of {owner} with {theirs}")
