"""How fast are the ways of searching a large index, and how near is an approximate answer?

    chan train --config flickr8k --data flickr8k_1k --out runs/flickr8k model.dim=1024
    python -m benchmarks.search --run runs/flickr8k --data flickr8k_1k --work FOLDER
    python -m benchmarks.search ... --images 10000 --kinds IVF{cells},SQ8 IVF{cells},RaBitQ SQfp16

Images are made: each mixes the region embeddings of two real photographs and disturbs them, so that regions have
neighbours. Queries are real captions of 5 to 15 words. A size needs 2 x 36 x D bytes per image in the work folder,
and its lists; all is removed when it is measured.
"""

import argparse
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.recording import record
from chan.packing import Packed
from chan.retrieval.candidates import CandidateSearch
from chan.retrieval.index import ImageIndex
from chan.retrieval.manifest import MANIFEST, MODEL, Manifest, Segment
from chan.retrieval.ray_engine import RaySearch
from chan.retrieval.region_lists import KIND, build_lists, lists_file
from chan.retrieval.retriever import Retriever
from chan.retrieval.scan import CHUNK_REGIONS, Ranking, ScanSearch
from chan.retrieval.search import Engine
from chan.retrieval.segments import write_segment
from chan.runs.folder import copy_model, weights_sha256
from data_tools.files import check_space, read_text
from data_tools.store.features import open_features
from data_tools.store.schema import Block, StoreSchema

WORDS = (5, 15)  # fewest and most of a query
LARGEST_SHARE = 0.5  # of the second photograph in a region
NOISE = 0.5  # length of what disturbs a region, beside its own length 1
BLOCK = 250  # images made at a time
BEST = 10


def make_blocks(photographs: np.ndarray, images: int) -> Iterator[Block]:
    """Made images in blocks, from photographs (n, K, D) of unit rows."""
    random = np.random.default_rng(0)
    count, regions, dim = photographs.shape
    for first in range(0, images, BLOCK):
        size = min(BLOCK, images - first)
        one, other = (photographs[random.integers(count, size=size)] for _ in range(2))
        other = other[:, random.permutation(regions)]
        share = random.uniform(0, LARGEST_SHARE, (size, regions, 1)).astype(np.float32)
        noise = random.standard_normal((size, regions, dim), dtype=np.float32)
        mixed = (1 - share) * one + share * other + NOISE / np.sqrt(dim) * noise
        mixed /= np.linalg.norm(mixed, axis=2, keepdims=True)
        ids = [str(number) for number in range(first, first + size)]
        rows = mixed.reshape(-1, dim).astype(np.float16)
        yield Block(ids, np.full(size, regions), {"features": rows})


def make_index(folder: Path, run: Path, photographs: np.ndarray, images: int) -> None:
    """Write an index of made images in one segment without lists."""
    _, regions, dim = photographs.shape
    check_space(folder / "segment-0.h5", 2 * images * regions * dim)
    folder.mkdir(parents=True, exist_ok=True)
    copy_model(run, folder / MODEL)
    schema = StoreSchema(images, images * regions, dim, "<f2", (), False, len(str(images)))
    write_segment(folder, "segment-0", make_blocks(photographs, images), schema, [""] * images, {})
    Manifest(weights_sha256(run), dim).with_segment(images, images * regions).save(folder)


def queries_of(retriever: Retriever, data: Path, count: int) -> list[Packed]:
    """The embedded tokens of so many captions of the test split, spread over it."""
    lines = [line for line in read_text(data / "precomp" / "test_caps.txt").splitlines() if line.strip()]
    fitting = [line for line in lines if WORDS[0] <= len(line.split()) <= WORDS[1]]
    chosen = np.unique(np.linspace(0, len(fitting) - 1, count).astype(int)).tolist()
    return [retriever.encode_captions([fitting[place]]) for place in chosen]


def timed(
    search: Engine, retriever: Retriever, queries: Sequence[Packed]
) -> tuple[list[Ranking], dict[str, float]]:
    """The best ten of each query, asked one after another, and the seconds of one; the first one warms up."""
    search(retriever.model.scorer, queries[0], BEST)
    found, seconds = [], []
    for query in queries:
        start = time.perf_counter()
        found += search(retriever.model.scorer, query, BEST)
        seconds.append(time.perf_counter() - start)
    return found, {"median_s": statistics.median(seconds), "p95_s": float(np.percentile(seconds, 95))}


def limits(index: ImageIndex, words: int, repeats: int = 2) -> dict[str, float]:
    """Median seconds of copying all embeddings once, and of their product with so many words in float32."""
    query = torch.randn(words, index.dim)
    copied, raised = (torch.empty(CHUNK_REGIONS, index.dim, dtype=kind) for kind in (torch.float16, torch.float32))
    raised.normal_()

    def read() -> None:
        for _, regions in index.chunks(CHUNK_REGIONS):
            copied[: len(regions.rows)].copy_(regions.rows)

    def multiply() -> None:
        for _, regions in index.chunks(CHUNK_REGIONS):
            raised[: len(regions.rows)] @ query.T

    return {"reading_s": _median(read, repeats), "product_s": _median(multiply, repeats)}


def lists_figures(
    index: ImageIndex, kind: str, retriever: Retriever, queries: Sequence[Packed], exhaustive: Sequence[Ranking]
) -> dict[str, Any]:
    """Building lists of a kind, searching with them, and how near the answers are; the file is removed again."""
    start = time.perf_counter()
    build_lists(index.folder, index.segments[0], kind)
    building = time.perf_counter() - start
    segment = Segment("segment-0", len(index), index.region_count, lists=True)
    path = lists_file(index.folder, segment.name)
    with_lists = ImageIndex(index.folder, replace(index.manifest, segments=(segment,)))
    search = CandidateSearch.of(with_lists)
    assert search is not None
    found, seconds = timed(search, retriever, queries)
    shared = [
        len(set(own.positions.tolist()) & set(all_.positions.tolist())) / BEST
        for own, all_ in zip(found, exhaustive, strict=True)
    ]
    wrong = [
        own.exact and own.positions.tolist() != all_.positions.tolist()
        for own, all_ in zip(found, exhaustive, strict=True)
    ]
    figures = {
        "kind": kind,
        **seconds,
        "agreement": statistics.mean(shared),
        "exact_by_certificate": statistics.mean(float(own.exact) for own in found),
        "above_bound": statistics.mean(float(own.bound is None or own.scores[-1] > own.bound) for own in found),
        "certified_but_wrong": sum(wrong),
        "images_scored": statistics.median(own.scored for own in found),
        "building_s": building,
        "bytes_per_image": path.stat().st_size / len(index),
        "process_private_bytes": _private_bytes(),
    }
    path.unlink()
    return figures


def ray_figures(
    index: ImageIndex, retriever: Retriever, queries: Sequence[Packed], exhaustive: Sequence[Ranking]
) -> dict[str, Any]:
    """The scan by two workers of a Ray cluster on this machine."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    search = RaySearch(index, "cpu")
    found, seconds = timed(search, retriever, queries)
    same = [np.allclose(own.scores, all_.scores, rtol=1e-5) for own, all_ in zip(found, exhaustive, strict=True)]
    search.close()
    ray.shutdown()
    return {**seconds, "same_as_scan": statistics.mean(float(own) for own in same)}


def measure(options: argparse.Namespace, images: int) -> dict[str, Any]:
    """All figures of one size."""
    retriever = Retriever.from_pretrained(options.run, "cpu")
    precomp = options.data / "precomp"
    embedded = [
        retriever.encode_images(open_features(precomp / f"{split}_ims.npy")) for split in ("train", "dev", "test")
    ]
    photographs = np.concatenate([own.rows.unflatten(0, (len(own), -1)).numpy() for own in embedded])
    queries = queries_of(retriever, options.data, options.queries)
    folder = options.work / f"{images}.index"
    try:
        if not (folder / MANIFEST).exists():
            make_index(folder, options.run, photographs, images)
        index = ImageIndex(folder)
        exhaustive, scan_seconds = timed(ScanSearch(index), retriever, queries)
        words = [len(query.rows) for query in queries]
        document = {
            "images": images,
            "regions": index.region_count,
            "dim": index.dim,
            "queries": len(queries),
            "tokens_per_query": statistics.median(words),
            "load_before": os.getloadavg()[0],
            "bytes_per_image": (folder / "segment-0.h5").stat().st_size / images,
            "scan": {**scan_seconds, **limits(index, round(statistics.median(words)))},
            "candidates": [lists_figures(index, kind, retriever, queries, exhaustive) for kind in options.kinds],
        }
        if options.ray:
            document["ray"] = ray_figures(index, retriever, queries, exhaustive)
        document["load_after"] = os.getloadavg()[0]
        return document
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


def as_text(document: dict[str, Any]) -> str:
    """The table for the console."""
    scan = document["scan"]
    limit = max(scan["reading_s"], scan["product_s"])
    lines = [
        f"{document['images']} images of {document['regions'] // document['images']} x {document['dim']}, "
        f"{document['queries']} queries of {document['tokens_per_query']:g} tokens at the median, "
        f"{document['bytes_per_image']:.0f} bytes per image",
        f"{'way':28}{'median':>9}{'95 %':>9}{'of the ten':>12}{'exact':>7}{'scored':>8}{'build':>8}{'B/image':>9}",
        f"{'scan':28}{scan['median_s']:8.3f}s{scan['p95_s']:8.3f}s{1:12}{1:7.0%}{document['images']:8}",
    ]
    lines += [
        f"{row['kind']:28}{row['median_s']:8.3f}s{row['p95_s']:8.3f}s{row['agreement']:12.3f}"
        f"{row['exact_by_certificate']:7.0%}{row['images_scored']:8.0f}{row['building_s']:7.0f}s"
        f"{row['bytes_per_image']:9.0f}"
        for row in document["candidates"]
    ]
    if "ray" in document:
        ray = document["ray"]
        lines.append(
            f"{'ray, 2 workers':28}{ray['median_s']:8.3f}s{ray['p95_s']:8.3f}s{ray['same_as_scan']:12.3f}{1:7.0%}"
        )
    lines.append(
        f"copying all embeddings {scan['reading_s']:.3f} s, their product {scan['product_s']:.3f} s: "
        f"the scan takes {scan['median_s'] / limit:.2f} times the longer"
    )
    return "\n".join(lines)


def _median(work: Callable[[], None], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _private_bytes() -> int:
    """Memory of this process that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder of a trained model")
    parser.add_argument("--data", type=Path, required=True, help="its data folder, with SCAN's arrays of 3 splits")
    parser.add_argument("--work", type=Path, required=True, help="folder for the indexes, which are removed")
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--kinds", nargs="*", default=[KIND], help="FAISS's names of indexes; {cells} is a number")
    parser.add_argument("--ray", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--keep", action="store_true", help="leave the index for another run, or use the one left")
    parser.add_argument("--out", type=Path, help="another results file than this machine's")
    options = parser.parse_args()
    for images in options.images:
        document = measure(options, images)
        print(as_text(document), flush=True)
        print(record(f"search {images}", document, options.out), flush=True)


if __name__ == "__main__":
    main()
