"""Evaluates several runs on one split, and draws the captions that two of them rank most differently."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from chan.evaluation import evaluate as evaluation
from chan.evaluation.comparison import most_different
from chan.evaluation.evaluate import Evaluation
from chan.retrieval.drawing import draw, save
from chan.retrieval.explanation import Explainer, Explanation, image_files
from chan.retrieval.retriever import Retriever
from chan.runs.folder import open_run
from data_tools.errors import UsageError

SHOWN = 6  # captions, each drawn once for each of two models


def run_names(runs: Sequence[Path]) -> list[str]:
    """A different name for each run: that of its folder or, where two are alike, its path.

    >>> run_names([Path("runs/chan"), Path("old/chan"), Path("runs/scan")])
    ['runs/chan', 'old/chan', 'scan']

    Raises:
        UsageError: a run is given twice.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise UsageError("a run is given twice")
    short = [run.resolve().name for run in runs]
    return [name if short.count(name) == 1 else str(run) for name, run in zip(short, runs, strict=True)]


class Comparison:
    """Runs that are compared on one split.

    Args:
        runs: their folders.
        data: the data folder.
        split: name of the split.
        features: as for `open_split`.
        device: where to compute.
    """

    def __init__(
        self, runs: Sequence[Path], data: Path, split: str, features: Path | None, device: torch.device
    ) -> None:
        self.runs, self.names = runs, run_names(runs)
        self.data, self.split, self.features, self.device = data, split, features, device

    def evaluate(self, folds: int, seed: int) -> list[Evaluation]:
        """The evaluation of each run; arguments and errors as for `evaluation.evaluate`."""
        results = []
        for run in self.runs:
            model, tokenizer, opened = open_run(run, self.device, self.data, self.split, self.features)
            embeddings = evaluation.encode(model, opened, tokenizer, self.device)
            scorer = evaluation.embedding_blocks(model, *embeddings)
            results.append(evaluation.evaluate(opened.split, folds, scorer, seed))
        return results

    def draw_differences(self, results: Sequence[Evaluation], path: Path) -> int:
        """Draw the captions that the first two runs rank most differently, by both; the number of captions.

        Raises:
            InputError: the features have no boxes, or an image has no file.
        """
        captions = most_different(results[0].ranking, results[1].ranking, SHOWN)
        by_run = [self._explained(number, captions) for number in (0, 1)]
        save(draw([row for pair in zip(*by_run, strict=True) for row in pair]), path)
        return len(captions)

    def _explained(self, number: int, captions: Sequence[int]) -> Iterator[Explanation]:
        model, tokenizer, opened = open_run(self.runs[number], self.device, self.data, self.split, self.features)
        retriever = Retriever(model, tokenizer, opened.features.dim, self.device)
        regions, _ = evaluation.encode(model, opened, tokenizer, self.device)
        rows = Explainer(retriever, opened, image_files(self.data, opened), regions).of_captions(captions)
        return (replace(row, heading=f"{self.names[number]}, rank {row.rank}  {row.heading}") for row in rows)
