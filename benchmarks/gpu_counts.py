"""What do the stages ask of a GPU: how often does the host wait, how much is launched, copied and written?

    python -m benchmarks.gpu_counts                        # all stages, on any machine: half a minute
    python -m benchmarks.gpu_counts scoring evaluation

Counted on shapes alone, by the pretended GPU of `tests/pretended_gpu`, at the sizes of the recipes. An operator
counts once, however many kernels it starts; cuDNN's recurrent network is a few operators there. Copied are the
megabytes between host and GPU, written those that operators write on the GPU. Tests hold each stage to a budget.
"""

import argparse
from importlib import import_module

MODULES = ("scoring", "training", "evaluation")


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(MODULES)}; default: all")
    modules = parser.parse_args().modules or MODULES
    if not set(modules) <= set(MODULES):
        parser.error(f"expected modules of {', '.join(MODULES)}")
    print(f"{'':52}{'waits':>6}{'launches':>10}{'copied MB':>11}{'written MB':>12}")
    for module in modules:
        for stage in import_module(f"tests.pretended_gpu.{module}").STAGES:
            found = stage.count()
            numbers = f"{found.waits:>6}{found.launches:>10}{found.copied:>11.2f}{found.written:>12.1f}"
            print(f"{stage.name:52}{numbers}", flush=True)


if __name__ == "__main__":
    main()
