"""How well and how fast does retrieval work from pixels, and how much of it is due to the detector?

    python -m benchmarks.pipeline --out runs/demo --record
    python -m benchmarks.pipeline --out runs/untrained --untrained --record

Runs `examples/scenes.py`; with `--record` the figures go into the results of this machine.
"""

from pathlib import Path

from benchmarks.recording import record
from examples.scenes import parser, run_to_summary


def main() -> None:
    """Run from the command line."""
    options = parser("python -m benchmarks.pipeline")
    options.add_argument("--record", action="store_true", help="add the figures to this machine's results")
    options.add_argument("--results", type=Path, help="another results file than this machine's, with --record")
    arguments = options.parse_args()
    summary = run_to_summary(arguments.out, arguments.untrained, arguments.quick)
    section = " ".join(["demo", *(name for name in ("untrained", "quick") if getattr(arguments, name))])
    if arguments.record:
        print(record(section, summary, arguments.results))


if __name__ == "__main__":
    main()
