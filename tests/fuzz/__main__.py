"""Give damaged and hostile inputs to every reader: `python -m tests.fuzz`, or `make fuzz`.

A failure is a traceback, a signal, a hang, a gigabyte of memory, code that runs, a connection, or numbers from
outside the input in an output; the exit code is then 1. `--replay TARGET:SEED` tries an input again and shows what
it printed.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.runner import plan, run, targets_called, warm_up
from tests.fuzz.watching import Outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as the command line says; the exit code."""
    options = _parse(arguments)
    warm_up()
    if options.replay:
        return _replay(options.replay)
    trials = plan(targets_called(options.targets), options.inputs, options.seed)
    started, outcomes = time.monotonic(), list[Outcome]()
    for outcome in run(trials, options.jobs, options.seconds, options.out, _print_failure):
        outcomes.append(outcome)
    seconds = time.monotonic() - started
    text = as_text(outcomes, seconds)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.txt").write_text(f"{text}\n")
    document = {"seed": options.seed, "seconds": round(seconds), "outcomes": [o.as_json() for o in outcomes]}
    (options.out / "results.json").write_text(json.dumps(document, indent=1))
    return int(any(outcome.is_failure for outcome in outcomes))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=3000, help="changed inputs, divided among the targets")
    parser.add_argument("--seed", type=int, default=0, help="seed of a target's first input; the next follow it")
    parser.add_argument("--targets", nargs="*", default=[], help="beginnings of the names of targets")
    parser.add_argument("--seconds", type=float, help="try no further input after this time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="folder for results and failed inputs")
    parser.add_argument("--replay", metavar="TARGET:SEED", help="try one input again")
    return parser.parse_args(arguments)


def _print_failure(outcome: Outcome) -> None:
    changes = ", ".join(outcome.changes) or "unchanged"
    name = f"{outcome.target}:{outcome.seed}"
    print(f"{name}: {outcome.verdict}: {outcome.detail} ({changes})", file=sys.stderr, flush=True)


def _replay(name: str) -> int:
    target_name, _, seed = name.rpartition(":")
    target = next(target for target in targets_called([target_name]) if target.name == target_name)
    with tempfile.TemporaryDirectory() as folder:
        outcome = next(run([(target, int(seed))], 1, None, Path(folder), lambda _: None))
        kept = Path(folder) / f"{target_name}-{seed}" / "stderr"
        if kept.is_file():
            print(kept.read_text(errors="replace"))
    print(json.dumps(outcome.as_json(), indent=2))
    return int(outcome.is_failure)


def as_text(outcomes: Sequence[Outcome], seconds: float) -> str:
    """A line per target with the number of inputs by verdict, and a line per kind of failure."""
    names = list(dict.fromkeys(outcome.target for outcome in outcomes))
    failures = [outcome for outcome in outcomes if outcome.is_failure]
    lines = [f"{'target':20}{'inputs':>8}{'accepted':>10}{'refused':>9}{'failed':>8}"]
    for name in (*names, "total"):
        own = [o for o in outcomes if name in (o.target, "total")]
        counts = Counter("failed" if o.is_failure else o.verdict for o in own)
        lines.append(
            f"{name:20}{len(own):>8}" + f"{counts['accepted']:>10}{counts['refused']:>9}{counts['failed']:>8}"
        )
    lines.append(f"{len(outcomes)} inputs in {seconds:.0f} s")
    for (target, verdict, detail), count in Counter(
        (f.target, f.verdict, f.detail[:160]) for f in failures
    ).items():
        first = next(f for f in failures if (f.target, f.verdict, f.detail[:160]) == (target, verdict, detail))
        lines.append(f"{target}:{first.seed}: {count} x {verdict}: {detail}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
