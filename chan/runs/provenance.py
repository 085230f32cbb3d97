"""The provenance of a run's features, so that a run is only used with features that were made in the same way.

The detector weights and the selection rule are compared. A features file that does not state them (SCAN's arrays)
and a run that does not know them (imported checkpoints) are accepted.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from chan.data.splits import FeatureSplit
from data_tools.errors import InputError
from data_tools.files import read_json, replace_file

FEATURES = "features.json"


def save_provenance(folder: Path, provenance: dict[str, str]) -> None:
    """Write the provenance of the training features to the run's folder."""
    replace_file(folder / FEATURES, json.dumps(provenance, indent=2).encode())


def load_provenance(folder: Path) -> dict[str, str]:
    """The provenance of the training features of the run in `folder`; empty where it does not know them."""
    path = folder / FEATURES
    trained = read_json(path) if path.is_file() else {}
    if not isinstance(trained, dict):
        raise InputError(f"{path}: expected an object of names and values")
    return trained


def check_provenance(folder: Path, feature_split: FeatureSplit) -> None:
    """Check features against those that the run in `folder` was trained on.

    Raises:
        InputError: weights or selection rule differ.
    """
    features = feature_split.features.provenance
    check_same_features(load_provenance(folder), f"the run {folder}", features, feature_split.source)


def check_same_features(expected: Mapping[str, str], owner: str, found: Mapping[str, str], source: Path) -> None:
    """`InputError` where the features in `source` have other weights or another selection rule than `owner`'s."""
    for key, name in (("weights_sha256", "weights"), ("selection", "selection")):
        ours, theirs = found.get(key), expected.get(key)
        if ours and theirs and ours != theirs:
            raise InputError(f"{source}: features made with {name} {ours}, those of {owner} with {theirs}")
