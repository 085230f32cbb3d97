"""What `chan search` prints: results as lines of text or as JSON."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chan.retrieval.documents import of_match
from chan.retrieval.search import CaptionHit, Hit, Query, Results
from chan.retrieval.words import NO_REGIONS, WordMatch, is_content_word
from data_tools.console import print_json
from data_tools.errors import InputError, UsageError
from data_tools.files import read_text


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty; `InputError` where there is none."""
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path}: expected one sentence per line, found none")
    return lines


def parse_point(text: str) -> tuple[float, float]:
    """`120,80` as (120.0, 80.0); `UsageError` where the text is not of this form."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--at {text}: expected X,Y in pixels, for instance 120,80") from None
    return x, y


def print_results(queries: Sequence[Query], results: Sequence[Results], as_json: bool) -> None:
    """Print the results of sentences."""
    if as_json:
        print_json([query_document(*pair) for pair in zip(queries, results, strict=True)])
        return
    for query, found in zip(queries, results, strict=True):
        print(f"{query.text}  ({_how(found)})")
        if query.unknown:
            print(f"  not in the model's vocabulary: {', '.join(query.unknown)}")
        if not any(word.tokens for word in query.words):
            print(f"  {NO_REGIONS}")
        for rank, hit in enumerate(found.hits, start=1):
            print(f"{rank:4}  {hit.score:8.3f}  {hit.image_id}  {_path(hit)}")
            if hit.words:
                print(f"                {_matches(hit.words)}")


def print_like(image_id: str, region: int, results: Results, as_json: bool) -> None:
    """Print the images that hold a region like one of an image."""
    if as_json:
        print_json({"image": image_id, "region": region, **results_document(results)})
        return
    print(f"regions like region {region} of {image_id}  ({_how(results)})")
    for rank, hit in enumerate(results.hits, start=1):
        print(f"{rank:4}  {hit.score:8.3f}  {hit.image_id}  region {hit.region}  {_path(hit)}")


def print_captions(image_id: str, found: Sequence[CaptionHit], as_json: bool) -> None:
    """Print the sentences that fit an image."""
    if as_json:
        print_json({"image": image_id, "captions": [asdict(hit) for hit in found]})
        return
    for rank, hit in enumerate(found, start=1):
        print(f"{rank:4}  {hit.score:8.3f}  {hit.caption}")


def query_document(query: Query, results: Results) -> dict[str, Any]:
    """A sentence with its results, as plain data."""
    return {"query": query.text, "unknown_words": query.unknown, **results_document(results)}


def results_document(results: Results) -> dict[str, Any]:
    """Results as plain data."""
    return {
        "exact": results.exact,
        "way": results.way,
        "bound": results.bound,
        "seconds": round(results.seconds, 6),
        "hits": [_hit_document(hit) for hit in results.hits],
    }


def _hit_document(hit: Hit) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": hit.image_id,
        "score": hit.score,
        "file": None if hit.file is None else str(hit.file),
    }
    if hit.region is not None:
        document["region"] = hit.region
    if hit.words:
        document["words"] = [of_match(match) for match in hit.words]
    return document


def _path(hit: Hit) -> str:
    """The image's file, seen from the working folder; empty where it is not known."""
    return "" if hit.file is None else os.path.relpath(hit.file.resolve())


def _how(results: Results) -> str:
    return f"{'exact' if results.exact else 'approximate'}, by {results.way}, {1000 * results.seconds:.0f} ms"


def _matches(matches: Sequence[WordMatch]) -> str:
    """The content words with value and region, on one line."""
    shown = [match for match in matches if is_content_word(match.word)] or list(matches)
    return "  ".join(f"{match.word} {match.value:.2f} (region {match.region})" for match in shown)
