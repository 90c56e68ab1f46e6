"""A GPU that is not there: tensors in the CPU's memory that say they are on cuda:0 and refuse to meet others.

Inside `with pretend_cuda():` whatever is made on, or moved to, "cuda" is computed on the CPU, with the CPU's numbers to
the last bit, but an operation raises as CUDA would if it mixes devices, draws with the other device's generator, or
hands a CUDA tensor to numpy. Each storage remembers where it pretends to be; a tensor made by autograd's own code has
no such mark until an operation gives it one, and may meet any.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
_MOVES = {Tensor.to, Tensor.cuda, Tensor.cpu}
_INDEXING = {Tensor.__getitem__, Tensor.__setitem__}
_ANY_DEVICE = {
    torch._has_compatible_shallow_copy_type,  # how a module asks whether a moved parameter fits into the old one
    torch.autograd.backward,
    Tensor.backward,
    Tensor.copy_,
    Tensor.set_,
    Tensor.data.__set__,  # type: ignore[attr-defined]
    Tensor.grad.__set__,  # type: ignore[attr-defined]
}
_TO_NUMPY = {Tensor.numpy, Tensor.__array__}
_DEVICE_GETTERS: dict[object, Callable[[torch.device], object]] = {
    Tensor.device.__get__: lambda device: device,  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__: lambda device: device.type == "cuda",  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: lambda device: device.type == "cpu",  # type: ignore[attr-defined]
    Tensor.get_device: lambda device: -1 if device.type == "cpu" else 0,
}
_Generator = torch.Generator


class PretendGenerator(_Generator):
    """A generator of the CPU that says it is on cuda:0."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA


def _generator(device: object = "cpu") -> torch.Generator:
    return PretendGenerator() if torch.device(str(device)).type == "cuda" else _Generator()


class _GeneratorClass(type):
    """`torch.Generator` is both called and asked for instances."""

    def __call__(cls, device: object = "cpu") -> torch.Generator:
        return _generator(device)

    def __instancecheck__(cls, found: object) -> bool:
        return isinstance(found, _Generator)


class _PretendedGenerators(metaclass=_GeneratorClass):
    pass


def _known(tensor: Tensor) -> torch.device | None:
    """Where a tensor was put, None if no operation that was seen made it."""
    try:
        return getattr(tensor.untyped_storage(), "pretended", None)
    except (NotImplementedError, RuntimeError):  # a tensor without storage
        return None


def _put(found: object, device: torch.device) -> None:
    for tensor in tree_leaves(found):
        if isinstance(tensor, Tensor) and _known(tensor) is None:
            try:
                tensor.untyped_storage().pretended = device  # type: ignore[attr-defined]
            except (NotImplementedError, RuntimeError):
                continue


def _device_of(tensor: Tensor) -> torch.device:
    made_by_autograd = CUDA if torch._C._current_graph_task_id() != -1 else CPU
    return _known(tensor) or made_by_autograd


def _named(device: object) -> torch.device:
    named = torch.device(device)  # type: ignore[arg-type]
    return CUDA if named.type == "cuda" else named


class PretendCuda(TorchFunctionMode):
    """What every call of torch from Python goes through; the torch calls in here do not."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in _DEVICE_GETTERS:
            return _DEVICE_GETTERS[func](_device_of(args[0]))
        if func in _MOVES:
            return _moved(func, args, kwargs)
        if func is torch.autograd.grad:  # a graph may cross devices; each gradient is where its tensor is
            found = func(*args, **kwargs)
            wanted = tree_leaves(args[1] if len(args) > 1 else kwargs["inputs"])
            for gradient, tensor in zip(found, wanted, strict=True):
                _put(gradient, _device_of(tensor))
            return found
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func in _TO_NUMPY and _known(args[0]) == CUDA:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if func not in _ANY_DEVICE:
            _check(func, args, tensors)
        target = _target(args, kwargs, tensors)
        if (generator := kwargs.get("generator")) is not None and generator.device != target:
            raise RuntimeError(
                f"Expected a '{target.type}' device type for generator but found '{generator.device.type}'"
            )
        if kwargs.get("device") is not None:
            kwargs["device"] = CPU if target == CUDA else target
        found = func(*args, **kwargs)
        _put(found, target)
        return found


def _target(args: tuple, kwargs: dict, tensors: list[Tensor]) -> torch.device:
    """Where a result goes: where it was asked for, else where the arguments are."""
    if kwargs.get("device") is not None:
        return _named(kwargs["device"])
    return CUDA if any(_device_of(tensor) == CUDA for tensor in tensors) else CPU


def _check(func: object, args: tuple, tensors: list[Tensor]) -> None:
    """CUDA's own rule: one device, but for scalars and indices of the CPU."""
    on = [(tensor, _known(tensor)) for tensor in tensors]
    if func in _INDEXING and _known(args[0]) == CUDA:
        values = [leaf for leaf in tree_leaves(args[2:]) if isinstance(leaf, Tensor)]
        # A slice is filled by copy_, which takes any device; what a tensor of indices names is not.
        by_slice = not any(isinstance(leaf, Tensor) for leaf in tree_leaves(args[1]))
        on = [] if by_slice else [(args[0], CUDA), *((value, _known(value)) for value in values)]
    scalars = func not in (torch.stack, torch.cat, torch.matmul)
    cpu = [tensor for tensor, device in on if device == CPU and not (scalars and tensor.ndim == 0)]
    if cpu and any(device == CUDA for _, device in on):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({func})"
        )


def _moved(func: object, args: tuple, kwargs: dict) -> Tensor:
    """`to`, `cpu` or `cuda`: a copy where the device is another, with the dtype that was asked for."""
    tensor, *rest = args
    here, there, given = _device_of(tensor), kwargs.pop("device", None), []
    if func is not Tensor.to:
        there, rest = ("cpu" if func is Tensor.cpu else "cuda"), []
    for value in rest:
        if isinstance(value, Tensor):
            there = _device_of(value)
            given.append(value.dtype)
        elif isinstance(value, str | torch.device | int) and not isinstance(value, bool):
            there = "cuda" if isinstance(value, int) else value
        elif value is not None:
            given.append(value)
    if isinstance(other := kwargs.pop("other", None), Tensor):
        there, given = _device_of(other), [other.dtype]
    target = here if there is None else _named(there)
    if target.type == "meta":
        return tensor.to("meta", *given, **kwargs)
    dtype = next((value for value in given if isinstance(value, torch.dtype)), kwargs.get("dtype") or tensor.dtype)
    found = tensor.to(dtype, copy=target != here or bool(kwargs.get("copy", False)))
    _put(found, target)
    return found


@contextmanager
def pretend_cuda() -> Iterator[torch.device]:
    """In the block "cuda" can be used: its device."""
    from_numpy = torch.from_numpy

    def on_cpu(array: object) -> Tensor:
        found = from_numpy(array)  # type: ignore[arg-type]
        _put(found, CPU)
        return found

    of_torch = {"Generator": _PretendedGenerators, "from_numpy": on_cpu}
    of_cuda = {
        "synchronize": lambda device=None: None,
        "get_device_name": lambda device=None: "a pretended GPU",
        "memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "mem_get_info": lambda device=None: (2**36, 2**36),
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
    }
    with mock.patch.multiple(torch, **of_torch), mock.patch.multiple(torch.cuda, **of_cuda), PretendCuda():
        yield CUDA
