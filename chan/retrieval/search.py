"""Searching an index: by a sentence, by a region of an image, and sentences by an image.

Shapes: N images of the index, K regions of one image, D joint dimension.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from chan.packing import Packed, join, pack
from chan.retrieval.candidates import CandidateSearch
from chan.retrieval.index import ImageIndex
from chan.retrieval.scan import Ranking, ScanSearch, best
from chan.retrieval.words import NO_REGIONS, Word, WordMatch
from chan.runs.folder import weights_sha256
from chan.scoring.pairwise import Scorer
from data_tools.errors import InputError

if TYPE_CHECKING:
    from chan.retrieval.retriever import Retriever

Engine = Callable[[Scorer, Packed, int], list[Ranking]]
"""Finds the k best images for each query (T, D)."""

MAX_WEIGHT = 5
_SAME_REGION = Scorer.from_names(coding="vha", pooling="max")


@dataclass(frozen=True)
class Query:
    """A sentence, encoded.

    Attributes:
        text: as it was typed.
        words: its words, which know their tokens.
        tokens: (T, D) embeddings of its tokens, one sequence; one row where the model has one vector.
        weights: how often each word counts.
        scored: the tokens that are scored: `tokens`, unless words were struck or weighted.
    """

    text: str
    words: tuple[Word, ...]
    tokens: Packed
    weights: tuple[int, ...]
    scored: Packed

    @property
    def unknown(self) -> list[str]:
        """The words that the model's vocabulary does not have."""
        return [word.text for word in self.words if not word.known]

    def weighted(self, weights: Sequence[int]) -> "Query":
        """The query in which the tokens of each word count so many times; 0 strikes the word.

        Args:
            weights: one number per word, 0 to `MAX_WEIGHT`.

        Raises:
            InputError: there are more or fewer numbers than words, one is out of range, or all words are struck,
                or the sentence has one vector.
        """
        if not any(word.tokens for word in self.words):
            raise InputError("this model has one vector per sentence: its words cannot be struck or weighted")
        if len(weights) != len(self.words) or not all(0 <= weight <= MAX_WEIGHT for weight in weights):
            raise InputError(f"expected {len(self.words)} weights from 0 to {MAX_WEIGHT}, one per word")
        scored = self._repeated(weights)
        if scored is None:
            raise InputError("all words are struck; fix: keep one")
        return replace(self, weights=tuple(weights), scored=scored)

    def without(self, word: int) -> Packed | None:
        """The tokens that are scored when a word is struck; None where no token is left."""
        return self._repeated([0 if number == word else weight for number, weight in enumerate(self.weights)])

    def _repeated(self, weights: Sequence[int]) -> Packed | None:
        counts = torch.ones(len(self.tokens.rows), dtype=torch.int64)  # BERT's [CLS] and [SEP] belong to no word
        for word, weight in zip(self.words, weights, strict=True):
            counts[list(word.tokens)] = weight
        rows = self.tokens.rows.repeat_interleave(counts.to(self.tokens.rows.device), 0)
        return pack([rows]) if len(rows) else None


@dataclass(frozen=True)
class Hit:
    """An image that a search found.

    Attributes:
        image_id: its id.
        score: by the model's coding and pooling.
        file: the image file; None if it is not known.
        position: of the image in the index.
        words: for a sentence, what each word found in the image; otherwise, and with one vector, empty.
        region: for a region, the image's most similar one; otherwise None.
    """

    image_id: str
    score: float
    file: Path | None
    position: int
    words: tuple[WordMatch, ...] = ()
    region: int | None = None


@dataclass(frozen=True)
class Results:
    """The best images for a query, best first.

    Attributes:
        hits: at most as many as were asked for; equal scores are in the order of the index.
        exact: whether no other image of the index scores more.
        way: how they were found: scan, candidates or ray.
        seconds: that it took.
        bound: the most that an image which was not scored can have, as far as its lists are exact; None: all were.
    """

    hits: tuple[Hit, ...]
    exact: bool
    way: str
    seconds: float
    bound: float | None = None


@dataclass(frozen=True)
class CaptionHit:
    """A sentence that fits an image, and its score."""

    caption: str
    score: float


class IndexSearch:
    """Searches an index with the model that made it; `chan.open_index` opens one.

    Attributes:
        engine: what searches, for instance a `RaySearch`; None: by candidates where the index has lists of regions
            for them, the model's score allows it and no exact answer is insisted on, otherwise by a scan.

    Raises:
        InputError: there is no index, it is damaged, or the retriever has other weights than its embeddings.
    """

    def __init__(self, folder: Path, retriever: "Retriever") -> None:
        self.index, self.retriever = ImageIndex(folder), retriever
        self.engine: Engine | None = None
        own = retriever.folder
        if own is not None and weights_sha256(own) != self.index.manifest.weights_sha256:
            raise InputError(f"{folder}: was made with other weights than those in {own}")

    def query(self, text: str) -> Query:
        """A sentence, encoded; `InputError` if it has no word."""
        tokens = self.retriever.encode_captions([text])
        words = tuple(self.retriever.words([text])[0])
        return Query(text, words, tokens, (1,) * len(words), tokens)

    def search(self, query: str | Query, k: int = 10, exact: bool = False) -> Results:
        """The k best images for a sentence, by the model's own score; `exact` insists on a scan.

        Raises:
            InputError: the sentence has no word.
        """
        return self.search_all([query], k, exact)[0]

    def search_all(self, queries: Sequence[str | Query], k: int = 10, exact: bool = False) -> list[Results]:
        """As `search`, for several sentences in one pass over the index."""
        start = time.perf_counter()
        encoded = [self.query(query) if isinstance(query, str) else query for query in queries]
        if not encoded:
            return []
        scorer = self.retriever.model.scorer
        found = self._ranked(scorer, join([query.scored for query in encoded]), k, exact)
        seconds = (time.perf_counter() - start) / len(encoded)
        return [
            Results(self._hits(query, own), own.exact, own.way, seconds, own.bound)
            for query, own in zip(encoded, found, strict=True)
        ]

    def like(self, image_id: str, region: int, k: int = 10, exact: bool = False) -> Results:
        """The k images that hold the regions most similar to a region of an image, by cosine.

        Raises:
            InputError: the index does not hold the image, or the image has no such region.
        """
        self._need_regions()
        start = time.perf_counter()
        own = self.index.regions([self.index.position(image_id)]).rows
        if not 0 <= region < len(own):
            raise InputError(f"image {image_id} has {len(own)} regions, 0 to {len(own) - 1}; there is no {region}")
        wanted = pack([own[region : region + 1].to(self.retriever.device)])
        [found] = self._ranked(_SAME_REGION, wanted, k, exact)
        hits = []
        for position, score in zip(found.positions.tolist(), found.scores, strict=True):
            rows = self.index.regions([position]).rows.float()
            nearest = int((rows @ own[region].float()).argmax())
            hits.append(self._plain(position, score, nearest))
        return Results(tuple(hits), found.exact, found.way, time.perf_counter() - start, found.bound)

    def region_at(self, image_id: str, x: float, y: float) -> int:
        """The smallest region of an image that holds the point (x, y), in pixels of the upright image.

        Raises:
            InputError: the index has no boxes or no such image, or no region holds the point.
        """
        self._need_regions()
        boxes = self._boxes(self.index.position(image_id))
        if boxes is None:
            raise InputError(
                f"{self.index.folder}: has no boxes, which a point needs; fix: give the region's number"
            )
        inside = (boxes[:, 0] <= x) & (x <= boxes[:, 2]) & (boxes[:, 1] <= y) & (y <= boxes[:, 3])
        if not inside.any():
            raise InputError(f"image {image_id}: no region holds the point {x:g}, {y:g}")
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return int(np.where(inside, areas, np.inf).argmin())

    def captions_for(self, image_id: str, captions: Sequence[str], k: int = 10) -> list[CaptionHit]:
        """The k sentences that fit an image best, best first.

        Raises:
            InputError: the index does not hold the image, or a sentence has no word.
        """
        image = self.index.regions([self.index.position(image_id)]).to(self.retriever.device)
        scores = self.retriever.score(image, self.retriever.encode_captions(captions))[0].cpu().numpy()
        return [CaptionHit(captions[place], float(scores[place])) for place in best(scores, k)]

    def _need_regions(self) -> None:
        if self.retriever.model.has_one_vector:
            raise InputError(f"{self.index.folder}: {NO_REGIONS}; fix: search by a sentence")

    def _ranked(self, scorer: Scorer, queries: Packed, k: int, exact: bool) -> list[Ranking]:
        """The k best images for each query (T, D), by the engine or the way that fits."""
        if self.engine is not None:
            return self.engine(scorer, queries, k)
        if not exact and CandidateSearch.serves(scorer) and self._candidates is not None:
            found = self._candidates(scorer, queries, k)
            if all(len(own.positions) >= min(k, len(self.index)) for own in found):
                return found
        return ScanSearch(self.index)(scorer, queries, k)

    @cached_property
    def _candidates(self) -> CandidateSearch | None:
        return CandidateSearch.of(self.index)

    def _hits(self, query: Query, found: Ranking) -> tuple[Hit, ...]:
        """The images that were found with what each word found in them, and what it adds to their scores."""
        hits = [self._plain(*pair) for pair in zip(found.positions, found.scores, strict=True)]
        if not hits or self.retriever.model.has_one_vector:
            return tuple(hits)
        images = self.index.regions([hit.position for hit in hits]).to(self.retriever.device)
        drops = self._drops(query, images)
        described = []
        for number, hit in enumerate(hits):
            image, boxes = images.slice(number, number + 1), self._boxes(hit.position)
            matches = self.retriever.explain(image, query.tokens, query.words, boxes)
            added = zip(matches, drops[number], strict=True)
            described.append(replace(hit, words=tuple(replace(match, drop=float(drop)) for match, drop in added)))
        return tuple(described)

    def _drops(self, query: Query, images: Packed) -> np.ndarray:
        """(images, words): by how much a score falls when a word is struck."""
        without = [query.without(number) for number in range(len(query.words))]
        scored = join([query.scored, *(other for other in without if other is not None)])
        scores = self.retriever.score(images, scored).cpu().numpy()
        drops = np.repeat(scores[:, :1], len(without), 1)  # a word that stands alone has the whole score
        kept = [number for number, other in enumerate(without) if other is not None]
        drops[:, kept] -= scores[:, 1:]
        return drops

    def _plain(self, position: int, score: float, region: int | None = None) -> Hit:
        position = int(position)
        index = self.index
        return Hit(index.image_ids[position], float(score), index.file(position), position, region=region)

    def _boxes(self, position: int) -> np.ndarray | None:
        return self.index.boxes(position)
