"""To what is the kernel of hard assignment compiled, and how exact are float32's products on tensor cores?

    python -m benchmarks.kernel_code                # no GPU is needed
    python -m benchmarks.kernel_code --dims 200     # other numbers per row

The kernel is compiled for each architecture as the launcher would: with its tile for that GPU, and with the types
and alignments of arguments that the launcher finds. Per thread: registers, bytes of stack (spilled registers),
asynchronous copies to shared memory, loads to registers, instructions in all, in a step of the loop plus those of
a maximum, and those that multiply. Per block: KiB of shared memory, and operations per byte read from the L2.

The products of TF32 are emulated: tensor cores align the addends of a few products and of the sum so far with the
largest, cut off what lies below float32's last bit, and round the result towards zero.
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from benchmarks.scoring import TYPES
from chan.packing import Packed
from chan.scoring import hard_assignment_triton
from chan.scoring.hard_assignment_triton import best_products

QUERIES, SEQUENCES = 4096, 512  # enough programs for the wide tiles on each GPU
COPY_BYTES = 16  # of one asynchronous copy of a thread
COMPUTED_TOGETHER = (
    4  # products that tensor cores of the A100 add at once; later ones add more, and round less often
)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Architecture:
    """A GPU, and the bytes of shared memory of one multiprocessor and at most of one block.

    From the CUDA C++ Programming Guide, "Compute Capabilities".
    """

    gpu: str
    multiprocessors: int
    memory: int
    block_memory: int


ARCHITECTURES = {
    80: Architecture("A100", 108, 164 << 10, 163 << 10),
    86: Architecture("RTX 3090", 82, 100 << 10, 99 << 10),
    89: Architecture("RTX 4090", 128, 100 << 10, 99 << 10),
    90: Architecture("H100", 132, 228 << 10, 227 << 10),
    100: Architecture("B200", 148, 228 << 10, 227 << 10),
    120: Architecture("RTX 5090", 170, 100 << 10, 99 << 10),
}


@dataclass(frozen=True)
class Code:
    """What one kernel was compiled to, per thread but for the shared memory.

    Attributes:
        tile: queries x sequences x depth.
        registers: of 255 at most.
        stack: bytes of spilled registers.
        shared: bytes of shared memory of a block.
        intensity: operations per byte read.
        copies: asynchronous copies to shared memory, of all stages.
        step_copies: those that one step needs.
        loads: loads from global memory to registers.
        products: instructions of the tensor cores, or of float32's multiplication and addition.
        instructions: in all.
        loop: of the loop, in each step, and with a maximum in addition, if they can be told apart.
        stages: the texts that the compiler goes through, by name (ttgir, ptx).
    """

    tile: str
    registers: int
    stack: int
    shared: int
    intensity: float
    copies: int
    step_copies: int
    loads: int
    products: str
    instructions: int
    loop: tuple[int, int] | None
    stages: dict[str, str] = field(repr=False)


def compiled(capability: int, kind: torch.dtype, dim: int, with_winner: bool, queries: int = QUERIES) -> Code:
    """Compile what `best_products` would start for rows (queries, dim) on a GPU of this compute capability."""
    source, options, settings = launched(capability, kind, dim, with_winner, queries)
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    usage, listing = _tools(result.asm["cubin"])
    block_q, sequences, block_d = (settings[name] for name in ("block_q", "sequences", "block_d"))
    copied = (block_q + 4 * sequences) * block_d * kind.itemsize
    return Code(
        tile=f"{block_q}x{sequences}x{block_d}",
        registers=int(re.findall(r"REG:(\d+)", usage)[0]),
        stack=sum(int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", usage)),
        shared=result.metadata.shared,
        intensity=2 * block_q * 4 * sequences * block_d / copied,
        copies=len(re.findall(r"cp\.async\.c[ag]", result.asm["ptx"])),
        step_copies=copied // (COPY_BYTES * 32 * settings["num_warps"]),
        loads=len(re.findall(r"ld\.global", result.asm["ptx"])),
        products=_products(listing),
        instructions=len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s", listing, re.MULTILINE)),
        loop=loop_instructions(listing),
        stages=result.asm,
    )


def launched(
    capability: int, kind: torch.dtype, dim: int, with_winner: bool, queries: int = QUERIES
) -> tuple[ASTSource, dict[str, Any], dict[str, Any]]:
    """What Triton's launcher would have compiled: the kernel for these arguments, options, the call's settings."""
    arguments, settings = _launch(ARCHITECTURES[capability], kind, dim, with_winner, queries)
    kernel, backend = hard_assignment_triton._best_products, make_backend(GPUTarget("cuda", capability, 32))
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = binder(*arguments, **settings)
    options, *source = kernel._pack_args(backend, settings, bound, specialization, None)
    return ASTSource(kernel, *source), options.__dict__, settings


def _products(listing: str) -> str:
    """The instruction that multiplies, and how often it is there."""
    for kind in ("UTCHMMA", "HGMMA", "HMMA", "FFMA"):
        if count := len(re.findall(rf"\b{kind}2?\b", listing)):
            return f"{count} {kind}"
    raise ValueError("no instruction multiplies")


def loop_instructions(listing: str) -> tuple[int, int] | None:
    """Of the loop: the instructions of each step, and those that are skipped in all but the last of some keys.

    None where more than one part of the loop is skipped, so that this cannot be said.
    """
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for label, instruction in re.findall(
        r"^(?:(\.L_x_\d+):|\s+/\*[0-9a-f]{4,}\*/\s+(.*?);)", listing, re.MULTILINE
    ):
        if label:
            labels[label] = len(instructions)
        else:
            instructions.append(instruction)
    jumps = [
        (place, labels[found[1]])
        for place, instruction in enumerate(instructions)
        if (found := re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction))
    ]
    first, last = max(((to, place) for place, to in jumps if to <= place), key=lambda loop: loop[1] - loop[0])
    skipped = [to - place - 1 for place, to in jumps if first <= place < to <= last]
    if len(skipped) > 1:
        return None
    return last + 1 - first - sum(skipped), sum(skipped)


class _Launches:
    """In the kernel's place: what it is called with."""

    def __init__(self) -> None:
        self.made: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, programs: tuple[int]) -> Callable[..., None]:
        return lambda *arguments, **settings: self.made.append((arguments, settings))


def _launch(
    architecture: Architecture, kind: torch.dtype, dim: int, with_winner: bool, queries: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments and settings that `best_products` gives the launcher on such a GPU."""
    limits = SimpleNamespace(
        multi_processor_count=architecture.multiprocessors, shared_memory_per_multiprocessor=architecture.memory
    )
    keys = Packed(torch.zeros(SEQUENCES, dim, dtype=kind), torch.arange(SEQUENCES + 1))
    winner = torch.empty(queries, SEQUENCES, dtype=torch.int32) if with_winner else None
    launches = _Launches()
    with (
        patch.object(torch.cuda, "get_device_properties", lambda device: limits),
        patch.object(hard_assignment_triton, "_best_products", launches),
    ):
        best_products(torch.zeros(queries, dim, dtype=kind), keys, winner)
    [launch] = launches.made
    return launch


def _tools(binary: bytes) -> tuple[str, str]:
    """The resources that a binary uses, and its instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        lines = ([triton.knobs.nvidia.cuobjdump.path, "-res-usage"], [triton.knobs.nvidia.nvdisasm.path, "-c"])
        usage, listing = (
            subprocess.run([*line, file.name], capture_output=True, text=True, check=True).stdout for line in lines
        )
    return usage, listing


def errors(cosine: float, pairs: int = 500, dim: int = 1024, step: int = 32) -> dict[str, float]:
    """Root mean square errors of the products of pairs of unit vectors with this cosine, against float64's.

    Args:
        step: numbers of a row that tensor cores sum, before float32 adds the sum to that of the steps before.
    """
    left, right = _unit_vectors(cosine, pairs, dim)
    exact = (left.astype(np.float64) * right).sum(1)
    parts = [(high, tf32(rows - high)) for rows in (left, right) for high in [tf32(rows)]]
    (left_high, left_low), (right_high, right_low) = parts
    three = [(left_low, right_high), (left_high, right_low), (left_high, right_high)]
    found = {
        "float32": _fused(left, right),
        "tf32": tensor_core_sums([(left_high, right_high)], dim),
        "three tf32, whole rows": tensor_core_sums(three, dim),
        "three tf32, in steps": tensor_core_sums(three, step),
    }
    return {name: float(np.sqrt(((sums - exact) ** 2).mean())) for name, sums in found.items()}


def _unit_vectors(cosine: float, pairs: int, dim: int) -> tuple[Floats, Floats]:
    left, other = np.random.default_rng(0).standard_normal((2, pairs, dim))
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    other -= (other * left).sum(1, keepdims=True) * left
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    return left.astype(np.float32), (cosine * left + np.sqrt(1 - cosine**2) * other).astype(np.float32)


def tf32(rows: Floats) -> Floats:
    """Rounded to the nearest number of ten explicit bits of mantissa, ties away from zero.

    >>> tf32(np.array([1 + 2**-11, 1 + 2**-12], dtype=np.float32)).tolist()
    [1.0009765625, 1.0]
    """
    return ((rows.view(np.uint32) + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)


def _fused(left: Floats, right: Floats) -> Floats:
    """Sums by one fused multiplication and addition after another, as without tensor cores."""
    sums = np.zeros(len(left), np.float32)
    for place in range(left.shape[1]):
        sums = (sums + left[:, place].astype(np.float64) * right[:, place]).astype(np.float32)
    return sums


def tensor_core_sums(factors: list[tuple[Floats, Floats]], step: int) -> Floats:
    """Sums of the products of all pairs of factors, (n, D) each, by tensor cores within steps."""
    sums = np.zeros(len(factors[0][0]), np.float32)
    for first in range(0, factors[0][0].shape[1], step):
        of_step = np.zeros(len(sums), np.float64)
        for left, right in factors:
            for place in range(first, first + step, COMPUTED_TOGETHER):
                some = slice(place, place + COMPUTED_TOGETHER)
                addends = np.column_stack([of_step, left[:, some].astype(np.float64) * right[:, some]])
                of_step = _towards_zero(_towards_zero(addends).sum(1, keepdims=True))[:, 0]
        sums += of_step.astype(np.float32)
    return sums


def _towards_zero(addends: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row cut off below the last of float32's 24 bits of its largest number."""
    last_bit = np.ldexp(1.0, np.frexp(np.abs(addends).max(1, keepdims=True))[1] - 24)
    cut: NDArray[np.float64] = np.trunc(addends / last_bit) * last_bit
    return cut


def code_lines(dims: list[int], precisions: list[str]) -> Iterator[str]:
    """The table of what is compiled, a line per kernel."""
    yield (
        f"{'GPU':9} {'':7}{'rows':5}{'D':>5} {'winners':8}{'tile':>11}{'registers':>10}{'stack':>6}"
        f"{'KiB':>5}{'FLOP/B':>7}{'copies':>7}{'loads':>6}{'instructions':>13}{'loop':>9}  products"
    )
    for (capability, architecture), kind, dim, winners in product(
        ARCHITECTURES.items(), precisions, dims, (False, True)
    ):
        code = compiled(capability, TYPES[kind], dim, winners)
        loop = "+".join(map(str, code.loop)) if code.loop else "-"
        yield (
            f"{architecture.gpu:9} {f'sm_{capability}':7}{kind:5}{dim:>5} {'yes' if winners else 'no':8}"
            f"{code.tile:>11}{code.registers:>10}{code.stack:>6}{code.shared / 1024:>5.0f}"
            f"{code.intensity:>7.1f}{code.copies:>7}{code.loads:>6}"
            f"{code.instructions:>13}{loop:>9}  {code.products}"
        )


def error_lines() -> Iterator[str]:
    """The table of errors, a line per cosine."""
    for cosine in (0.05, 0.3, 0.6, 0.9):
        found = errors(cosine)
        if cosine == 0.05:
            yield f"{'cosine':8}" + "".join(f"{name:>24}" for name in found)
        yield f"{cosine:<8}" + "".join(f"{error:>24.1e}" for error in found.values())


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[1024])
    parser.add_argument("--precisions", nargs="+", choices=list(TYPES), default=["bf16", "fp32"])
    options = parser.parse_args()
    for line in code_lines(options.dims, options.precisions):
        print(line, flush=True)
    print("\nerrors of products of unit vectors")
    for line in error_lines():
        print(line)


if __name__ == "__main__":
    main()
