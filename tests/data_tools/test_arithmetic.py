"""The switches of float32 products, in processes of their own: PyTorch's defaults cannot be set again."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch

from data_tools.arithmetic import float32_products

PROGRAM = """
    import itertools, json
    import torch
    from torch import backends
    from data_tools.arithmetic import float32_products

    OPERATORS = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn,
                 backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]

    def legacy():
        try:
            return backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
        except RuntimeError:  # old and new switches do not agree
            return "mixed"

    def state():
        "What all switches say, and would say if those that they may follow were set otherwise."
        found = [legacy(), backends.fp32_precision, backends.cudnn.fp32_precision]
        general, cuda = backends.fp32_precision, backends.cudnn.fp32_precision
        for value in ("none", "ieee", "tf32"):
            backends.fp32_precision = value
            found.append([switch.fp32_precision for switch in [backends.cudnn, *OPERATORS]])
        backends.fp32_precision = general
        return found

    {setting}
    before, inside = state(), []
    for kind in ("ieee", "tf32"):
        with float32_products(kind):
            inside.append([switch.fp32_precision for switch in OPERATORS])
        try:
            with float32_products(kind):
                raise OSError
        except OSError:
            pass
    print(json.dumps([before, inside, state()]))
"""
SETTINGS = {
    "defaults": "pass",
    "one GRU": "backends.cudnn.rnn.fp32_precision = 'ieee'",
    "all": "backends.fp32_precision = 'tf32'",
    "CUDA": "backends.fp32_precision = 'tf32'; backends.cudnn.fp32_precision = 'ieee'",
    "CPU": "backends.mkldnn.matmul.fp32_precision = 'bf16'; backends.cuda.matmul.fp32_precision = 'tf32'",
    "old switches": "backends.cuda.matmul.allow_tf32 = True; backends.cudnn.allow_tf32 = False",
    "medium": "torch.set_float32_matmul_precision('medium')",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_all_products_have_the_kind_and_afterwards_every_switch_is_as_it_was(setting):
    program = textwrap.dedent(PROGRAM).replace("{setting}", SETTINGS[setting])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, inside, after = json.loads(done.stdout)
    assert inside == [["ieee"] * 6, ["tf32"] * 6]
    assert after == before


def test_an_inner_kind_ends_before_the_outer_one():
    before = torch.backends.cuda.matmul.fp32_precision
    with float32_products("ieee"):
        with float32_products("tf32"):
            assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == before
