"""From a folder of images to its feature store: what `extract-features` does, for Python programs too."""

from pathlib import Path

from data_tools.devices import resolve_device
from data_tools.errors import UsageError
from extract.config import load_config
from extract.detector import build_detector
from extract.extraction import Extraction, Options, Summary
from extract.provenance import describe_run
from extract.published import PUBLISHED, PUBLISHED_WEIGHTS
from extract.selection import CaffeSelection
from extract.sources import find_images
from extract.weights import find_weights

RANDOM = "random"  # the weights of a network that nobody trained, for comparison


def extract_folder(
    images: Path,
    output: Path | None,
    id_mapping: Path | None,
    config: str,
    weights: str | None,
    bounds: tuple[int, int],
    options: Options,
    device: str,
    overwrite: bool,
) -> Summary:
    """Write the feature store of a folder of images, or what is missing of it.

    Args:
        images: the folder.
        output: the store; by default `IMAGES/../precomp/features.h5`.
        id_mapping: see `find_images`.
        config: a shipped configuration's name, or a YAML file.
        weights: see `find_weights`; `random` for none; by default those of the published configuration.
        bounds: the fewest and the most regions of an image.
        options: how the run works.
        device: see `resolve_device`.
        overwrite: discard an existing store and its parts, once all else is known to be right.

    Raises:
        UsageError: the configuration has no default weights, or `output` is no file name.
        InputError: something given cannot be read, or the store was made otherwise; see `Extraction.run`.
    """
    target = resolve_device(device)
    cfg = load_config(config)
    sources = find_images(images, id_mapping)
    store = output or images.resolve().parent / "precomp" / "features.h5"
    if not store.name or store.is_dir():
        raise UsageError(f"--output {store}: expected a file")
    spec = weights or (PUBLISHED_WEIGHTS if config == PUBLISHED else None)
    if spec is None:
        raise UsageError(f"--config {config} needs --weights FILE")
    file = None if spec == RANDOM else find_weights(spec)
    detector, selection = build_detector(cfg, file, target), CaffeSelection(*bounds)
    provenance = describe_run(cfg, file, selection, options.dtype, sources)
    run = Extraction(detector, selection, images, sources, store, provenance, options)
    if overwrite:
        run.parts.discard()
        store.unlink(missing_ok=True)
    return run.run()
