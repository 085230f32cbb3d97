"""The search by candidates: only images that hold a region near some word of the query are scored.

For each word FAISS lists the regions most similar to it. The images that hold them are scored by the model's own
scorer, the most promising ones first. An image outside all lists has for
each word at most the last value of the word's list, and poolings that rise in every word make of these values the
most that its score can be: the bound. Where the lists are exact and the k-th best score is above the bound, the
answer is exact. Approximate lists have the same bound, but may lack a region.

Shapes: T words of one query, R regions listed per word, n images, N images of the index, D joint dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from chan.packing import Packed
from chan.retrieval.index import ImageIndex
from chan.retrieval.region_lists import RegionLists, open_lists
from chan.retrieval.scan import CHUNK_REGIONS, Ranking, finite, ranking, scan_chunks
from chan.retrieval.segments import OpenSegment
from chan.scoring.pairwise import Scorer
from chan.scoring.pooling import rises_in_every_value

LISTED = 200  # regions per word and segment
BATCH = 256  # images that are scored at a time
LIMIT = 1024  # images per segment that are scored for approximate lists
ROUNDING = 1e-5  # of scores, relative: the products of the lists and of the scorer are summed in different orders


@dataclass(frozen=True)
class CandidateSearch:
    """Searches the segments with region lists by candidates, the others by a scan.

    Attributes:
        index: the images.
        lists: for each segment its region lists; None where it is scanned.
        listed: R.
        limit: images of a segment that are scored for approximate lists, which do not tell when to stop: an image
            whose region they lack scores more than it promises.
    """

    index: ImageIndex
    lists: Sequence[RegionLists | None]
    listed: int = LISTED
    limit: int = LIMIT

    @classmethod
    def of(cls, index: ImageIndex) -> "CandidateSearch | None":
        """The candidate search of an index; None if no segment has lists, or FAISS is not installed.

        Raises:
            InputError: a file of lists is missing or damaged.
        """
        lists = [open_lists(index.folder, segment) for segment in index.segments]
        return cls(index, lists) if any(own is not None for own in lists) else None

    @staticmethod
    def serves(scorer: Scorer) -> bool:
        """Whether lists of regions tell which images score most: a word's value is that of its best region."""
        return scorer.coding.of_words and not scorer.coding.soft and scorer.precision is None

    @torch.inference_mode()
    def __call__(self, scorer: Scorer, queries: Packed, k: int) -> list[Ranking]:
        """The k best images for each query.

        Args:
            scorer: one that this way `serves`.
            queries: (T, D) token embeddings.
            k: how many.
        """
        words = queries.rows.float().cpu().numpy()
        found: list[list[_Found]] = [[] for _ in range(len(queries))]
        for number, lists in enumerate(self.lists):
            if lists is not None:
                values, regions = lists.nearest(words, self.listed)
                for query, (first, last) in enumerate(pairwise(queries.offsets.tolist())):
                    few = queries.slice(query, query + 1)
                    near = values[first:last], regions[first:last]
                    found[query].append(self._of_segment(number, lists.exact, scorer, few, near, k))
        scanned = [number for number, lists in enumerate(self.lists) if lists is None]
        positions, scores = scan_chunks(self.index.chunks(CHUNK_REGIONS, scanned), scorer, queries)
        return [_merged([*own, _Found(positions, row)], k) for own, row in zip(found, scores, strict=True)]

    def _of_segment(
        self,
        number: int,
        exact: bool,
        scorer: Scorer,
        query: Packed,
        near: tuple[np.ndarray, np.ndarray],
        k: int,
    ) -> "_Found":
        """The candidates of one segment that may be among the k best, with their scores."""
        segment, positions = self.index.segments[number], self.index.segment_positions[number]
        rows, limits, bound = _candidates(scorer, segment, *near)
        alive = positions[rows] >= 0
        rows, limits = rows[alive], limits[alive]
        order = np.argsort(-limits, kind="stable")
        if not exact:
            order = order[: max(self.limit, k)]
        rows, limits = rows[order], limits[order]
        rises, scored = rises_in_every_value(scorer.pooling), np.empty(0, np.float32)
        while len(scored) < len(rows):
            if exact and rises and len(scored) >= k and _above(np.partition(scored, -k)[-k], limits[len(scored)]):
                break
            some = segment.some_images(rows[len(scored) : len(scored) + BATCH])
            found = scorer(some.to(query.rows.device), query)[:, 0].cpu().numpy()
            scored = np.concatenate([scored, finite(found)])
        return _Found(positions[rows[: len(scored)]], scored, bound, exact and rises)


@dataclass(frozen=True)
class _Found:
    """Scored images of a part of an index, whose other images score at most `bound` if `exact`."""

    positions: np.ndarray
    scores: np.ndarray
    bound: float = -np.inf
    exact: bool = True


def _merged(parts: Sequence[_Found], k: int) -> Ranking:
    positions = np.concatenate([part.positions for part in parts])
    found = ranking(positions, np.concatenate([part.scores for part in parts]), k, "candidates")
    bound = max(part.bound for part in parts)
    full = len(found.scores) == k and _above(found.scores[-1], bound)
    exact = all(part.exact for part in parts) and (full or bound == -np.inf)
    return replace(found, exact=exact, bound=None if bound == -np.inf else bound)


def _candidates(
    scorer: Scorer, segment: OpenSegment, values: np.ndarray, regions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """The images that hold listed regions: rows (n,), the most that each can score (n,), and the bound of others.

    Args:
        scorer: whose pooling makes scores of the values of words.
        segment: that the lists are of.
        values: (T, R) similarities, falling along each list; -inf where a list is shorter.
        regions: (T, R) their regions; -1 where a list is shorter.
    """
    if values.shape[1] < segment.segment.regions:
        last = np.where(regions >= 0, values, np.inf).min(1)
    else:  # no region is outside
        last = np.full(len(values), -np.inf)
    words, places = np.nonzero(regions >= 0)
    rows, inverse = np.unique(segment.image_of(regions[words, places]), return_inverse=True)
    limits = np.repeat(last[None].astype(np.float32), len(rows) + 1, 0)  # the last row is of all other images
    np.maximum.at(limits, (inverse, words), values[words, places])
    pooled = finite(scorer.pooling(torch.from_numpy(limits)[:, :, None])[:, 0].numpy())
    return rows, pooled[:-1], float(pooled[-1])


def _above(score: float, bound: float) -> bool:
    """Whether a score is larger than a bound by more than rounding: an equal one would be a tie."""
    return bool(score > bound + ROUNDING * max(1.0, abs(bound)))
