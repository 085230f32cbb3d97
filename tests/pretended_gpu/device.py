"""A GPU that is not there: operators on its tensors compute shapes and types alone.

Within `PretendedGPU` tensors on the CPU are computed for real, and those on `cuda` are fake ones of PyTorch. That
is enough to find, on any machine,

- an operator that is given tensors of both devices, which raises `MismatchError`;
- places where the host waits for the GPU (`PretendedGPU.waits`): copies from memory that is not pinned, copies to
  the host, and operators whose result has a size that the host has to know;
- how much is asked of the GPU: how often each operator runs (`launches`) and how many bytes it moves (`moved`),
  copies between host and GPU (`copies`, `copied`), and bytes that operators write (`written`).

What needs a driver is replaced meanwhile: streams, pinned memory, cuDNN's recurrent network, and autograd's
engine, by `backward`. A result of unknown size is as large as it can be, and `repeat_interleave` repeats once.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chan.scoring import hard_assignment

CUDA = torch.device("cuda", 0)
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = tuple(str(ROOT / package) for package in ("chan", "extract", "data_tools"))
COPIES = {"_to_copy", "copy_"}
SELECTING = {"index", "index_select", "embedding", "gather"}
PARTS = {"index_copy_": 3, "index_put_": 2, "_index_put_impl_": 2}  # write an argument's size, not the target's
NO_LAUNCH = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}
NO_LAUNCH |= {"_local_scalar_dense"}
COMPOSITE = "CompositeImplicitAutograd"


class MismatchError(RuntimeError):
    """An operator was given tensors of both devices."""


class PretendedGPU(TorchDispatchMode):
    """Entered, it makes `cuda` a device of fake tensors.

    Args:
        suppressed_to: how many boxes non-maximum suppression leaves at most: also the value of any int64 that is
            copied to the host.

    Attributes:
        waits: how often the host waited, by what for and in which line of the project.
        conversions: from type to type of how many numbers.
        launches: how often each operator ran on the GPU; views and what only reserves memory do not count. Some
            operators start more than one kernel.
        moved: bytes that each operator read and wrote there, every argument and result counted once; those of an
            operator that selects are twice its result.
        written: bytes that operators wrote there.
        copies, copied: between host and GPU, how many and how many bytes.
        current: the one that is entered, if one is.
    """

    current: "ClassVar[PretendedGPU | None]" = None

    def __init__(self, suppressed_to: int | None = None) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.conversions: list[tuple[torch.dtype, torch.dtype, int]] = []
        self.launches: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()
        self.copies = self.copied = self.written = 0
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._suppressed_to = suppressed_to
        self._pinned: dict[int, Tensor] = {}  # by the address of their memory, which they keep from being reused
        self._patches, self._entered = ExitStack(), 0

    def __enter__(self) -> "PretendedGPU":
        if not self._entered:  # it enters itself again, to decompose operators
            self._patches.enter_context(_without_driver(self))
            PretendedGPU.current = self
        self._entered += 1
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._entered -= 1
        if not self._entered:
            self._patches.close()
            PretendedGPU.current = None

    def forget(self) -> None:
        """Count from here on."""
        for counts in (self.waits, self.launches, self.moved, self.conversions):
            counts.clear()
        self.copies = self.copied = self.written = 0

    def pin(self, tensor: Tensor) -> Tensor:
        """A copy in memory that counts as pinned, with all views of it."""
        pinned = tensor.clone()
        self._pinned[pinned.untyped_storage().data_ptr()] = pinned
        return pinned

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32, requires_grad: bool = False) -> Tensor:
        """A tensor on the GPU."""
        return torch.empty(*shape, dtype=dtype, device=CUDA, requires_grad=requires_grad)

    def move(self, module: nn.Module) -> None:
        """Move the parameters and buffers of a module to the GPU, strides included."""
        for part in module.modules():
            for name, value in [*part._parameters.items()]:
                if value is not None:
                    part._parameters[name] = nn.Parameter(self._like(value), value.requires_grad)
            part._buffers.update({n: self._like(b) for n, b in part._buffers.items() if b is not None})

    def _like(self, tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)

    def __torch_dispatch__(
        self, operator: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        fakes = [leaf for leaf in leaves if isinstance(leaf, FakeTensor)]
        goes_to = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
        if not fakes and (goes_to is None or goes_to.type != "cuda"):
            return operator(*args, **kwargs)
        if operator is torch.ops.prim.device.default:
            return args[0].fake_device
        if torch.is_inference_mode_enabled() and torch._C._dispatch_has_kernel_for_dispatch_key(
            operator.name(), COMPOSITE
        ):
            with self:
                return operator.decompose(*args, **kwargs)
        name = operator.overloadpacket.__name__
        if name in COPIES:
            return self._copy(operator, args, kwargs, goes_to)
        self._check(operator, leaves)
        replaced = _REPLACED.get(name)
        with nullcontext() if replaced else self._fake:
            result = replaced(self, operator, args, kwargs) if replaced else operator(*args, **kwargs)
        if not operator.is_view and name not in NO_LAUNCH:
            results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, FakeTensor)]
            written = [args[PARTS[name]]] if name in PARTS else results
            self.launched(name, *results, *(results if name in SELECTING else fakes), written=written)
        return result

    def launched(self, name: str, *moved: Tensor, written: Sequence[Tensor] = ()) -> None:
        """Count that something ran on the GPU, and the bytes that it read and wrote."""
        self.launches[name] += 1
        self.moved[name] += sum(tensor.numel() * tensor.element_size() for tensor in moved)
        self.written += sum(tensor.numel() * tensor.element_size() for tensor in written)

    def _check(self, operator: OpOverload, leaves: Sequence[Any]) -> None:
        """Raise `MismatchError` for a tensor on the CPU; a number in a tensor may be there."""
        own = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, FakeTensor)]
        shapes = [tuple(tensor.shape) for tensor in own if tensor.dim() > 0]
        if shapes:
            raise MismatchError(f"{operator}: tensors on the CPU, {shapes}, beside those on the GPU at {_place()}")

    def _copy(self, operator: OpOverload, args: Any, kwargs: dict[str, Any], goes_to: torch.device | None) -> Any:
        """`_to_copy(source)` or `copy_(target, source, non_blocking)`, between the devices or on the GPU."""
        target, source, *flags = args if operator.overloadpacket.__name__ == "copy_" else (None, *args)
        to_gpu = isinstance(target, FakeTensor) or (target is None and (goes_to is None or goes_to.type == "cuda"))
        if to_gpu and isinstance(source, FakeTensor):
            if kwargs.get("dtype", source.dtype) != source.dtype:
                self.conversions.append((source.dtype, kwargs["dtype"], source.numel()))
            with self._fake:
                result = operator(*args, **kwargs)
            self.launched(operator.overloadpacket.__name__, source, result, written=[result])
            return result
        self.copies += 1
        at_once = kwargs.get("non_blocking") or any(flags)
        if not to_gpu and not at_once:  # at once it is no wait, and what is read may not have come yet
            self.wait("a copy to the host")
        if to_gpu and source.numel() and not (at_once and self._is_pinned(source)):
            self.wait(f"a copy of {tuple(source.shape)}, not from pinned memory or not at once,")
        kind = target.dtype if target is not None else kwargs.get("dtype") or source.dtype
        self.copied += source.numel() * kind.itemsize
        if target is not None:
            return target
        layout = (source.shape, source.stride())
        number = self._suppressed_to or 0 if kind == torch.int64 else 0
        with self._fake if to_gpu else nullcontext():
            return torch.empty_strided(*layout, dtype=kind, device=CUDA if to_gpu else None).fill_(number)

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned

    def wait(self, reason: str) -> None:
        """Count that the host waits."""
        self.waits[f"{reason} at {_place()}"] += 1

    def _sized(self, rows: int, *others: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        with self._fake:
            return torch.empty(rows, *others, dtype=dtype or like.dtype, device=CUDA)


def backward(results: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """`torch.autograd.backward` without its engine, which needs a driver: node by node, in this thread."""
    received: dict[Any, dict[int, Tensor]] = {}
    for result, gradient in zip(results, gradients, strict=True):
        received.setdefault(result.grad_fn, {})[result.output_nr] = gradient
    for node in _from_results([*received]):
        inputs = received.pop(node, {})
        if not inputs:
            continue
        outputs = [inputs.get(place) for place in range(max(1, len(node._input_metadata)))]
        with torch.no_grad():
            found = node.apply(*outputs) if hasattr(node, "apply") else node(*outputs)
        found = found if isinstance(found, tuple) else (found,)
        for (following, place), own in zip(node.next_functions, found, strict=False):
            if following is not None and own is not None:
                _receive(received.setdefault(following, {}), place, own, following._input_metadata[place])


@torch.no_grad()
def _receive(slot: dict[int, Tensor], place: int, gradient: Tensor, expected: Any) -> None:
    """Add a gradient to those of a node, in the shape and type that the node expects."""
    gradient = gradient.sum_to_size(expected.shape).to(expected.dtype)
    slot[place] = slot[place] + gradient if place in slot else gradient


def _from_results(results: Sequence[Any]) -> list[Any]:
    """All nodes of a graph, each before those that it passes gradients to."""
    order: list[Any] = []
    seen: set[Any] = set()
    stack = [(node, False) for node in results]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(following, False) for following, _ in node.next_functions if following is not None]
    return order[::-1]


def _place() -> str:
    """The innermost line of the project that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGES):
            return f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "no line of the project"


def _item(gpu: PretendedGPU, operator: OpOverload, args: Any, kwargs: Any) -> bool | int | float:
    gpu.wait("a number")
    gpu.copies += 1
    gpu.copied += args[0].nbytes
    return torch.ones((), dtype=args[0].dtype).item()


def _nonzero(gpu: PretendedGPU, operator: OpOverload, args: Any, kwargs: Any) -> Tensor:
    gpu.wait("the size of nonzero")
    return gpu._sized(args[0].numel(), args[0].dim(), like=args[0], dtype=torch.int64)


def _masked_select(gpu: PretendedGPU, operator: OpOverload, args: Any, kwargs: Any) -> Tensor:
    gpu.wait("the size of masked_select")
    return gpu._sized(args[1].numel(), like=args[0])


def _index(gpu: PretendedGPU, operator: OpOverload, args: Any, kwargs: Any) -> Tensor:
    masks = [index for index in args[1] if index is not None and index.dtype == torch.bool]
    if not masks:
        with gpu._fake:
            return operator(*args, **kwargs)
    assert len(args[1]) == 1
    gpu.wait("the size of a selection by mask")
    return gpu._sized(masks[0].numel(), *args[0].shape[masks[0].dim() :], like=args[0])


def _nms(gpu: PretendedGPU, operator: OpOverload, args: Any, kwargs: Any) -> Tensor:
    gpu.wait("the size of nms")
    count = min(len(args[0]), len(args[0]) if gpu._suppressed_to is None else gpu._suppressed_to)
    return gpu._sized(count, like=args[0], dtype=torch.int64)


def _repeat_interleave(gpu: PretendedGPU, operator: OpOverload, args: Any, kwargs: Any) -> Tensor:
    if kwargs.get("output_size") is None:
        gpu.wait("the size of repeat_interleave")
    return gpu._sized(kwargs.get("output_size") or args[0].numel(), like=args[0], dtype=torch.int64)


def _convolution(gpu: PretendedGPU, operator: OpOverload, args: Any, kwargs: Any) -> Tensor:
    """cuDNN's, which keeps channels last: without a driver PyTorch finds none that does."""
    with gpu._fake:
        result = operator(*args, **kwargs)
        last = any(part.is_contiguous(memory_format=torch.channels_last) for part in args[:2])
        return result.contiguous(memory_format=torch.channels_last) if last else result


def _fused_convolution(gpu: PretendedGPU, operator: OpOverload, args: Any, kwargs: Any) -> Tensor:
    """cuDNN's with what follows: maps, weight, what is added and bias have one type, and channels last."""
    maps, weight, *added, bias, stride, padding, dilation, groups = args
    settings = bias, stride, padding, dilation, False, [0, 0], groups
    result = _convolution(gpu, torch.ops.aten.convolution.default, (maps, weight, *settings), {})
    tensors = [part for part in (maps, weight, *added, bias) if isinstance(part, Tensor)]  # a factor is none
    assert {part.dtype for part in tensors} in ({torch.float16}, {torch.bfloat16})
    assert all(part.shape == result.shape for part in tensors[2:-1])
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in (*tensors[:-1], result))
    return result


_REPLACED: dict[str, Callable[[PretendedGPU, OpOverload, Any, Any], Any]] = {
    "_local_scalar_dense": _item,
    "convolution": _convolution,
    "cudnn_convolution_relu": _fused_convolution,
    "cudnn_convolution_add_relu": _fused_convolution,
    "nonzero": _nonzero,
    "masked_select": _masked_select,
    "index": _index,
    "nms": _nms,
    "repeat_interleave": _repeat_interleave,
}


def _gru(gru: nn.GRU, words: PackedSequence) -> tuple[PackedSequence, None]:
    """cuDNN's: what comes out depends on all that goes in; the sizes of the steps have to be on the CPU."""
    assert words.data.is_cuda
    assert words.data.dtype == torch.float32
    assert not words.batch_sizes.is_cuda
    touched = words.data.sum() + torch.stack([parameter.sum() for parameter in gru.parameters()]).sum()
    width = gru.hidden_size * (2 if gru.bidirectional else 1)
    return PackedSequence(touched.expand(len(words.data), width).clone(), words.batch_sizes), None


def pretend_kernel(patch: pytest.MonkeyPatch, runs: bool = True) -> None:
    """Hard assignment has its kernel, or not; it is not started, and has to be given what is on the GPU."""
    patch.setattr(hard_assignment, "_triton_runs", lambda device: runs)
    if runs:
        triton = pytest.importorskip("chan.scoring.hard_assignment_triton", exc_type=ImportError)
        patch.setattr(triton, "_best_products", _Unstarted())


class _Unstarted:
    """A kernel of Triton that only looks at its arguments."""

    def __getitem__(self, programs: tuple[int]) -> Callable[..., None]:
        assert programs[0] > 0
        return self._check

    def _check(self, *arguments: object, **settings: int) -> None:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        assert len(tensors) == 5
        assert all(tensor.is_cuda and tensor.is_contiguous() for tensor in tensors)
        assert PretendedGPU.current is not None
        written = tensors[3:5] if settings["with_winner"] else tensors[3:4]
        PretendedGPU.current.launched("best_products", *tensors[: 3 + len(written)], written=written)


class _Stream:
    device = CUDA

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, other: "_Stream") -> None: ...


class _Event:
    """Of a stream that has passed everything."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, stream: _Stream) -> None: ...

    def elapsed_time(self, later: "_Event") -> float:
        return 1.0


@contextmanager
def _without_driver(gpu: PretendedGPU) -> Iterator[None]:
    """Replace what asks the driver of a GPU."""
    empty = torch.empty

    def pinnable(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        made = empty(*args, **kwargs)
        return gpu.pin(made) if pin_memory else made

    limits = SimpleNamespace(multi_processor_count=132, shared_memory_per_multiprocessor=228 << 10)
    torch._C._ensureCUDADeviceGuardSet()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_tensor, "init_gpu_context", lambda device: None)
        patch.setattr(torch, "empty", pinnable)
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: gpu.pin(tensor))
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
        patch.setattr(torch.autograd, "backward", backward)
        patch.setattr(torch._C, "_current_graph_task_id", lambda: 1)  # else a checkpoint recomputes per tensor
        patch.setattr(torch.Tensor, "backward", lambda loss: backward([loss], [torch.ones_like(loss)]))
        patch.setattr(nn.GRU, "forward", _gru)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        patch.setattr(torch.cuda, "get_device_properties", lambda *_: limits)
        patch.setattr(torch.cuda, "manual_seed_all", lambda seed: None)
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
        patch.setattr(torch.cuda, "Stream", _Stream)
        patch.setattr(torch.cuda, "Event", _Event)
        patch.setattr(_Stream, "synchronize", lambda _: gpu.wait("the work of a stream"), raising=False)
        patch.setattr(_Event, "synchronize", lambda _: gpu.wait("an event"), raising=False)
        patch.setattr(torch.cuda, "current_stream", _Stream)
        patch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        yield
