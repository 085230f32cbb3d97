"""How well and how fast does retrieval work from pixels, and how much of it is due to the detector?

    python -m benchmarks.pipeline --out runs/demo --record
    python -m benchmarks.pipeline --out runs/untrained --untrained --record

Runs `examples/scenes.py`; with `--record` the figures go into the results of this machine.
"""

from benchmarks.recording import record
from examples.scenes import parser, run_to_summary


def main() -> None:
    """Run from the command line."""
    options = parser("python -m benchmarks.pipeline")
    options.add_argument("--record", action="store_true", help="add the figures to this machine's results")
    arguments = options.parse_args()
    summary = run_to_summary(arguments.out, arguments.untrained)
    if arguments.record:
        print(record("demo untrained" if arguments.untrained else "demo", summary))


if __name__ == "__main__":
    main()
