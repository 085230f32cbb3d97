"""Image-to-image and text-to-text retrieval of CxC, on COCO's 5,000 test images (Parekh et al. 2021).

Its authors publish how similar annotators found pairs of images (`sis_test.csv`) and of captions
(`sts_test.csv`), from 0 to 5. The right answers are images from 2.5 on, and captions from 3 on together with the
other captions of the image, as VSE-infinity's code takes them. Images without a right answer are no queries, and
nothing is an answer to itself.

A model that compares regions with words compares two images by the same score: the query's regions take the place
of words. For two captions the candidate's words take the place of regions.

Shapes: N images or captions.
"""

import csv
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chan.evaluation.coco_metrics import CocoTest
from chan.evaluation.recall import CUTOFFS
from chan.model.chan import Chan
from chan.packing import Packed
from data_tools.captions.splits import Split
from data_tools.console import Progress
from data_tools.devices import to_device
from data_tools.errors import InputError, reading

IMAGES, CAPTIONS = "sis_test.csv", "sts_test.csv"
SIMILAR_IMAGES, SIMILAR_CAPTIONS = 2.5, 3.0
QUERIES = 256  # scored at a time

Answers = Sequence[np.ndarray]
"""For each of N queries the positions of its right answers, int64; none where it is no query."""
QueryScorer = Callable[[Tensor], Tensor]
"""From the positions (q,) of queries to their scores with all candidates, (N, q)."""


@dataclass(frozen=True)
class SimilarItems:
    """The right answers among images and among captions."""

    images: Answers
    captions: Answers

    @classmethod
    def read(cls, folder: Path, split: Split, coco: CocoTest) -> "SimilarItems":
        """Read the published files, in the folder `data` of their repository.

        Raises:
            InputError: a file is missing, or a row of it is no pair of the test set with a score.
        """
        images = _read(folder / IMAGES, r"0*(\d+)\.jpg", coco.images, SIMILAR_IMAGES)
        captions = _read(folder / CAPTIONS, r"sentid:(\d+)", coco.captions, SIMILAR_CAPTIONS)
        of_image: dict[int, set[int]] = {}
        for place, image in enumerate(split.caption_images.tolist()):
            of_image.setdefault(image, set()).add(place)
        for place, image in enumerate(split.caption_images.tolist()):
            captions[place] |= of_image[image] - {place}
        return cls(_arrays(images), _arrays(captions))

    @torch.inference_mode()
    def measure(self, model: Chan, regions: Packed, words: Packed, precision: str) -> dict[str, dict[str, float]]:
        """Recall in percent, `CxC R@1` and so on, each of `i2i` and `t2t`, of the embeddings of a split."""
        found: dict[str, dict[str, float]] = {f"CxC R@{cutoff}": {} for cutoff in CUTOFFS}
        for side, answers, items in (("i2i", self.images, regions), ("t2t", self.captions, words)):
            ranks = rank(answers, partial(_scores, model, items, precision))
            for cutoff in CUTOFFS:
                found[f"CxC R@{cutoff}"][side] = 100.0 * float((ranks < cutoff).mean()) if len(ranks) else math.nan
        return found


def _scores(model: Chan, items: Packed, precision: str, places: Tensor) -> Tensor:
    return model.score(items, items.take(places), precision)


def rank(answers: Answers, scorer: QueryScorer) -> np.ndarray:
    """(queries,) int64: for each query the number of wrong candidates that are not strictly below its best answer.

    >>> scores = torch.tensor([[9.0, 0.2, 0.1], [0.2, 9.0, 0.5], [0.1, 0.5, 9.0]])
    >>> rank([np.array([2]), np.array([2]), np.array([], int)], lambda places: scores[:, places]).tolist()
    [1, 0]
    """
    queries = [place for place, right in enumerate(answers) if len(right)]
    ranks = []
    with Progress("comparing within CxC", len(queries), "queries") as progress:
        for first in range(0, len(queries), QUERIES):
            places = queries[first : first + QUERIES]
            scores = scorer(torch.tensor(places))
            right = torch.zeros_like(scores, dtype=torch.bool)
            right[_pairs([answers[place] for place in places], scores.device)] = True
            best = scores.masked_fill(~right | scores.isnan(), -torch.inf).amax(0)
            ahead = ~right & (~(scores < best) | (best == -torch.inf))
            ahead[_pairs([[place] for place in places], scores.device)] = False  # a query is no candidate
            ranks.append(ahead.sum(0))
            progress.advance(len(places))
    return torch.cat(ranks).cpu().numpy() if ranks else np.zeros(0, np.int64)


def _pairs(candidates: Sequence[Sequence[int] | np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns (n,) int64, on `device`, of the candidates of consecutive queries in (N, q) scores."""
    rows = torch.from_numpy(np.concatenate(candidates))
    columns = torch.arange(len(candidates)).repeat_interleave(torch.tensor([len(own) for own in candidates]))
    return to_device(rows, device), to_device(columns, device)


def _read(path: Path, pattern: str, ids: np.ndarray, least: float) -> list[set[int]]:
    """For each id the positions of those that a file pairs it with at `least` or more."""
    place_of = {int(number): place for place, number in enumerate(ids)}
    similar: list[set[int]] = [set() for _ in ids]
    with reading(path, "not a table of pairs and scores"), path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        next(rows, None)  # the names of the columns
        for row in rows:
            where = f"{path}: line {rows.line_num}"
            found = [re.search(pattern + "$", cell) for cell in row[:2]]
            pair = [place_of.get(int(match[1])) for match in found if match is not None]
            if len(row) < 3 or len(pair) != 2 or None in pair:
                raise InputError(f"{where}: expected two items of COCO's test set and a score, found {row[:3]}")
            score = float(row[2])
            if not math.isfinite(score):
                raise InputError(f"{where}: expected a score, found {row[2]}")
            if score >= least and pair[0] != pair[1]:
                first, second = (int(place) for place in pair if place is not None)
                similar[first].add(second)
                similar[second].add(first)
    return similar


def _arrays(similar: Sequence[set[int]]) -> Answers:
    return [np.array(sorted(found), dtype=np.int64) for found in similar]
