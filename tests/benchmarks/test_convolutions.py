import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.convolutions import alone, recorded_calls
from extract.choices import Precision
from extract.detector.precision import precision_context

CPU = torch.device("cpu")


class Operators(TorchDispatchMode):
    """The names of all operators, and the types of the results of products."""

    def __init__(self):
        super().__init__()
        self.names, self.types = [], set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        name = operator.overloadpacket.__name__
        self.names.append(name)
        if name in ("convolution", "conv2d", "addmm", "linear"):
            self.types.add(result.dtype)
        return result


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_limit_has_the_networks_products_and_no_conversion(precision):
    precision = Precision(precision)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(45, 6)
    )
    with torch.no_grad(), precision_context(precision, "cpu"):
        calls = recorded_calls(network, lambda: network(torch.randn(2, 3, 7, 7)))
    assert [type(layer) for layer, _ in calls] == [nn.Conv2d, nn.Conv2d, nn.Linear]
    limit = alone(calls, precision, CPU)
    with Operators() as operators:
        limit()
    assert operators.types == {{"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]}
    assert not {"to", "_to_copy", "copy_"} & set(operators.names)
