"""The report of an evaluation: a folder with the recall, how the ranks are distributed, and queries as pictures.

report.md        the recall table, and what the other files show
metrics.json     the numbers, as `chan evaluate --json` prints them
ranks.png        how many captions and images have their answer at which rank
best.png         captions with the best ranks, and
worst.png        with the worst; absent where there are no boxes or pictures
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from chan.evaluation.evaluate import Evaluation, as_table
from chan.evaluation.recall import Ranking
from chan.retrieval.drawing import draw, save
from chan.retrieval.explanation import Explainer
from data_tools.files import replace_file
from data_tools.images.figures import save_figure

SHOWN = 8  # captions in each picture
BINS = (1, 2, 6, 11, 51, 101, 501, 1001, 5001, 10001)  # first ranks of the bars


def write_report(
    out: Path, title: str, result: Evaluation, document: dict[str, Any], explainer: Explainer | str
) -> None:
    """Write the report of an evaluation into a folder.

    Args:
        out: the folder; made if absent, files of an earlier report are replaced.
        title: what was evaluated on what, for the heading.
        result: the evaluation.
        document: its numbers as plain data.
        explainer: of the whole split, for the pictures; or why there can be none.

    Raises:
        InputError: a file cannot be written, or an image cannot be decoded.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines = [f"# {title}", "", "```", as_table(result.recall, result.chance, result.intervals), "```", ""]
    replace_file(out / "metrics.json", (json.dumps(document, indent=2) + "\n").encode())
    draw_ranks(result.ranking, out / "ranks.png")
    lines += ["![ranks](ranks.png)", ""]
    if isinstance(explainer, str):
        lines += [f"No pictures of queries: {explainer}.", ""]
    else:
        order = result.ranking.t2i.argsort(stable=True).tolist()
        for name, captions in (("best", order[:SHOWN]), ("worst", order[: -SHOWN - 1 : -1])):
            save(draw(explainer.of_captions(captions)), out / f"{name}.png")
            lines += [f"The captions with the {name} ranks:", "", f"![{name}]({name}.png)", ""]
    replace_file(out / "report.md", "\n".join(lines).encode())


def rank_shares(ranks: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names of the intervals of ranks up to the largest, and the percentage of queries in each.

    >>> names, shares = rank_shares(np.array([0, 0, 3, 7]))
    >>> names, shares.tolist()
    (['1', '2-5', '6-10'], [50.0, 25.0, 25.0])

    Args:
        ranks: (Q,) from 0.
    """
    used = [first for first in BINS if first <= ranks.max() + 1]
    edges = [*used, np.inf]
    counts = np.histogram(ranks + 1, edges)[0]
    after = [*BINS, None]
    names = []
    for number, first in enumerate(used):
        following = after[number + 1]
        last = None if following is None else following - 1
        names.append(f"{first}+" if last is None else str(first) if last == first else f"{first}-{last}")
    return names, 100.0 * counts / len(ranks)


def draw_ranks(ranking: Ranking, path: Path) -> None:
    """Draw the distribution of ranks of both directions as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    sides = (("image to text", ranking.i2t, "#1f77b4"), ("text to image", ranking.t2i, "#e07b00"))
    for axes, (name, ranks, colour) in zip(figure.subplots(1, 2), sides, strict=True):
        names, shares = rank_shares(ranks.cpu().numpy())
        bars = axes.bar(names, shares, color=colour)
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
        axes.set(
            title=f"{name}: {len(ranks)} queries", xlabel="rank of the first correct answer", ylabel="percent"
        )
    save_figure(figure, path)
