"""The run: from a plan to its feature store, by part files that this process or others write."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from data_tools.console import Progress
from data_tools.errors import InputError, UsageError
from data_tools.files import check_writable, claimed
from data_tools.store.parts import IMAGE_LIST, Parts, StoreContents, check_same_provenance
from data_tools.store.reading import FeatureStore
from data_tools.store.report import report_path, write_report
from extract.build import build_network
from extract.detector.precision import check_precision
from extract.run.plan import ExtractionPlan
from extract.run.summary import Summary
from extract.run.worker import LocalPartWriter, PartWriter


def store_path(images: Path, store: Path | None) -> Path:
    """Where the store of some images is written: `store`, by default `IMAGES/../precomp/features.h5`.

    >>> store_path(Path("/data/coco/images"), None).as_posix()
    '/data/coco/precomp/features.h5'

    Raises:
        UsageError: `store` is a folder.
    """
    path = store or images.resolve().parent / "precomp" / "features.h5"
    if not path.name or path.is_dir():
        raise UsageError(f"{path}: expected a file for the store, this is a folder")
    return path


def extract(plan: ExtractionPlan, store: Path, device: torch.device, ray_address: str | None = None) -> Summary:
    """Write the feature store of a plan, or what is missing of it, and a report beside it.

    Args:
        plan: what to extract.
        store: the file to write; its parts are kept in `STORE.parts` meanwhile.
        device: of the network.
        ray_address: of a Ray cluster that does the work; an empty string starts one on this machine; None for
            this process.

    Raises:
        UsageError: the device does not have the precision, or Ray is not installed.
        InputError: existing files were made in another way, the weights do not fit, the disk is full, an image
            cannot be read and the options say to stop then, or the cluster cannot be reached.
    """
    check_precision(plan.precision, device)
    with claimed_store(store, plan.options.shard):
        return _extract(plan, store, device, ray_address)


@contextmanager
def claimed_store(store: Path, shard: tuple[int, int] | None) -> Iterator[None]:
    """Keep other runs from a store and its parts; those of other shards may work on them at the same time.

    Raises:
        InputError: another run works there, or nothing can be written there.
    """
    check_writable(store)
    lock = store.with_name(f".{store.name}.lock")  # beside the folder of the parts, which comes and goes
    share = nullcontext() if shard is None else claimed(store, Path(f"{lock}-{shard[0]}-of-{shard[1]}"))
    with claimed(store, lock, shared=shard is not None), share:
        yield


def _extract(plan: ExtractionPlan, store: Path, device: torch.device, ray_address: str | None) -> Summary:
    """See `extract`; the store is claimed."""
    # a device of another type sums in another order: its parts would differ from the others
    conditions = {"device": device.type, "max_pixels": str(plan.options.max_pixels)}
    parts = Parts(store, plan.provenance(), len(plan.sources.images), plan.options.part_size, conditions)
    if store.is_file() and not plan.options.overwrite:
        _check_same_list(store, plan, parts.provenance)
    writer = _part_writer(plan, device, ray_address)
    if plan.options.overwrite:
        parts.discard()
        store.unlink(missing_ok=True)
        report_path(store).unlink(missing_ok=True)
    return write_parts_and_join(parts, writer, plan.selection.min_boxes, plan.options.shard)


def _check_same_list(store: Path, plan: ExtractionPlan, provenance: dict[str, str]) -> None:
    """Raise `InputError` where a complete store was made from another list of images; it says what changed."""
    with FeatureStore(store) as opened:
        found = opened.provenance
        held = {*opened.image_ids, *(failure["id"] for failure in opened.failures)}
    changed = {name for name in {*found, *provenance} if found.get(name) != provenance.get(name)}
    if changed != {IMAGE_LIST}:
        return  # another difference is reported where the store is read
    wanted = {image.image_id for image in plan.sources.images}
    raise InputError(
        f"{store}: the list of images changed: {len(wanted - held)} new, {len(held - wanted)} gone; fix: extract "
        "the new ones with --ids to another --out and join both (data-tools join), or begin anew with --overwrite"
    )


def _part_writer(plan: ExtractionPlan, device: torch.device, ray_address: str | None) -> PartWriter:
    if ray_address is None:
        return LocalPartWriter(plan.runner(device))
    from extract.run.ray_engine import RayPartWriter

    build_network(plan.cfg, plan.weights, torch.device("cpu"))  # raises here if the weights do not fit
    return RayPartWriter(plan, device.type, ray_address)


def write_parts_and_join(
    parts: Parts, writer: PartWriter, min_boxes: int, shard: tuple[int, int] | None = None
) -> Summary:
    """Write what is missing of a store, join it, and write its report; a complete store is only counted.

    Args:
        parts: of the store.
        writer: writes the missing ones.
        min_boxes: an image with fewer regions counts as short.
        shard: (i, n) to write every n-th part only and to leave joining to `data-tools join`.

    Raises:
        InputError: existing files were made in another way, the disk is full, or see `PartWriter`.
    """
    start = time.perf_counter()
    summary = Summary(parts.file, parts.images)
    if parts.file.is_file():
        with FeatureStore(parts.file) as store:
            check_same_provenance(store.path, store.provenance, parts.provenance)
            contents = [StoreContents.of_store(store)]
        parts.discard()
    else:
        contents = _write_parts(parts, writer, shard, summary)
    for content in contents:
        summary.count(content, min_boxes)
    if summary.parts_missing is None:
        write_report(parts.file, summary.stored, summary.failures)
    summary.seconds["total"] = time.perf_counter() - start
    return summary


def _write_parts(
    parts: Parts, writer: PartWriter, shard: tuple[int, int] | None, summary: Summary
) -> list[StoreContents]:
    """Write the missing parts; the contents of the joined store, or of the shard's parts."""
    share = range(parts.count) if shard is None else range(shard[0] - 1, parts.count, shard[1])
    present = parts.present()
    missing = [part for part in share if part not in present]
    summary.processed = sum(len(parts.span(part)) for part in missing)
    asked = sum(len(parts.span(part)) for part in share)
    with Progress("extract", asked, "images", asked - summary.processed) as bar:
        written = writer(parts, missing, bar.advance)
    summary.add_seconds(written.seconds)
    present.update(written.contents)
    if shard is not None:
        summary.parts_missing = sum(not parts.path(part).is_file() for part in range(parts.count))
        return [present[part] for part in share]
    joining = time.perf_counter()
    joined = parts.join(present)
    summary.seconds["writing"] += time.perf_counter() - joining
    return [joined]
