"""The emulated tensor cores, and the table of what the kernel is compiled to."""

import numpy as np
import pytest

pytest.importorskip("triton")
from benchmarks import kernel_code
from benchmarks.kernel_code import Floats, errors, tensor_core_sums


def row(*numbers: float) -> Floats:
    return np.array([numbers], dtype=np.float32)


def test_sums_are_cut_off_below_the_last_bit_of_the_largest() -> None:
    """To the nearest, 1 + 3 * 2**-25 would be 1 + 2**-23."""
    ones, step = row(1, 1, 1, 1), 4
    small = 2.0**-25
    assert tensor_core_sums([(row(1, small, small, small), ones)], step).tolist() == [1]
    assert tensor_core_sums([(row(-1, -small, -small, -small), ones)], step).tolist() == [-1]
    assert tensor_core_sums([(row(1, 2.0**-23, 0, 0), ones)], step).tolist() == [1 + 2.0**-23]


def test_steps_are_summed_to_the_nearest() -> None:
    """3 * 2**-25 is more than half of the last bit of 1: kept between steps, cut off within one."""
    ones, rows = row(*[1] * 8), row(1, 0, 0, 0, *[2.0**-25] * 3, 0)
    assert tensor_core_sums([(rows, ones)], 4).tolist() == [1 + 2.0**-23]
    assert tensor_core_sums([(rows, ones)], 8).tolist() == [1]


@pytest.mark.parametrize("cosine", [0.05, 0.3, 0.6, 0.9])
def test_three_products_of_tf32_are_as_exact_as_float32(cosine: float) -> None:
    """In steps as the kernel computes them; over whole rows they are not, and one of TF32 is far from it."""
    found = errors(cosine, pairs=200)
    assert found["three tf32, in steps"] < found["float32"]
    assert found["three tf32, whole rows"] > found["float32"]
    assert found["tf32"] > 20 * found["float32"]


def test_table(monkeypatch: pytest.MonkeyPatch) -> None:
    code = kernel_code.Code("128x64x64", 224, 8, 144 << 10, 85.33, 36, 12, 2, "4 HGMMA", 1400, (106, 385), {})
    monkeypatch.setattr(kernel_code, "compiled", lambda *arguments: code)
    monkeypatch.setattr(kernel_code, "ARCHITECTURES", {90: kernel_code.ARCHITECTURES[90]})
    heading, *lines = kernel_code.code_lines([200], ["bf16"])
    assert heading.split()[-1] == "products"
    assert [line.split()[1:] for line in lines] == [
        f"sm_90 bf16 200 {winners} 128x64x64 224 8 144 85.3 36 2 1400 106+385 4 HGMMA".split()
        for winners in ("no", "yes")
    ]


def test_sums_of_few_bits_are_exact() -> None:
    random = np.random.default_rng(1)
    left, right = (random.integers(-8, 9, (5, 64)).astype(np.float32) for _ in range(2))
    assert tensor_core_sums([(left, right)], 32).tolist() == (left * right).sum(1).tolist()


def test_instructions_of_a_loop_are_counted() -> None:
    """A listing in the form of nvdisasm: of a loop of five two are skipped; an endless one follows."""
    listing = """
        /*0000*/                   MOV R1, c[0x0] ;
.L_x_1:
        /*0010*/                   HGMMA R24 ;
        /*0020*/               @P0 BRA `(.L_x_2) ;
        /*0030*/                   FMNMX R2 ;
        /*0040*/                   FMNMX R3 ;
.L_x_2:
        /*0050*/               @P1 BRA `(.L_x_1) ;
        /*0060*/                   EXIT ;
.L_x_3:
        /*0070*/                   BRA `(.L_x_3);
"""
    assert kernel_code.loop_instructions(listing) == (3, 2)
    twice = listing.replace("FMNMX R2", "@P2 BRA `(.L_x_2)")
    assert kernel_code.loop_instructions(twice) is None
