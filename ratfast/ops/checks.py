"""What the operators refuse, said in words: tensors that do not fit together, or that share memory."""

from __future__ import annotations

import itertools
from bisect import bisect_right

import torch
from torch import Tensor

from ratfast.layout import is_dense, same_order

_FLOATING = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))


def check_alike(num_tensors: int, **lists: list[Tensor]) -> None:
    """Raises unless, in lists of whole models, the tensors of each t are dense and alike in all but dtype."""
    first_name, first = next(iter(lists.items()))
    shapes = [tensor.shape for tensor in first[:num_tensors]]
    strides = [tensor.stride() for tensor in first[:num_tensors]]
    everything = [tensor for tensors in lists.values() for tensor in tensors]
    # Whole lists are compared at once, which is several times faster than tensor by tensor.
    repeats = len(everything) // num_tensors
    if (
        {tensor.layout for tensor in everything} != {torch.strided}
        or not {tensor.dtype for tensor in everything} <= _FLOATING
        or len({tensor.device for tensor in everything}) != 1
        or [tensor.shape for tensor in everything] != shapes * repeats
        or [tensor.stride() for tensor in everything] != strides * repeats
    ):
        for name, tensors in lists.items():
            for index, tensor in enumerate(tensors):
                t = index % num_tensors
                problem = _difference(tensor, first[0].device, shapes[t], strides[t])
                if problem is not None:
                    kind, words = problem
                    raise kind(f"{_place(name, index, num_tensors)} {words}")
    for t, tensor in enumerate(first[:num_tensors]):
        if not tensor.is_contiguous() and not is_dense(shapes[t], strides[t]):
            raise ValueError(
                f"{_place(first_name, t, num_tensors)} of shape {tuple(shapes[t])} and strides {strides[t]} "
                "is not dense in memory"
            )


def _difference(
    tensor: Tensor, device: torch.device, shape: torch.Size, strides: tuple[int, ...]
) -> tuple[type[Exception], str] | None:
    """What keeps a tensor from its place, in words that follow its name; None if nothing does."""
    if tensor.layout != torch.strided or tensor.dtype not in _FLOATING:
        kind = str(tensor.dtype if tensor.layout == torch.strided else tensor.layout).removeprefix("torch.")
        return TypeError, f"is {kind}, expected a dense tensor of float64, float32, bfloat16 or float16"
    if tensor.device != device:
        return ValueError, f"is on {tensor.device}, but the first tensor on {device}"
    if tensor.shape != shape:
        return ValueError, f"has shape {tuple(tensor.shape)}, expected {tuple(shape)}"
    if not same_order(shape, tensor.stride(), strides):
        words = f"has strides {tensor.stride()}, expected {strides}"
        return ValueError, f"{words}: all tensors of one place need the same memory order"
    return None


def check_memory(
    outputs: list[Tensor], sources: list[Tensor], num_tensors: int, name: str = "sources"
) -> None:
    """Raises if an output overlaps anything but, exactly, a source of the same t and element type.

    `name` is what messages call the sources.
    """
    spans = sorted(
        (start, start + tensor.nbytes, index)
        for index, tensor in enumerate(outputs)
        if tensor.nbytes and (start := tensor.data_ptr())
    )
    for before, after in itertools.pairwise(spans):
        if after[0] < before[1]:
            places = [_place("outputs", span[2], num_tensors) for span in (before, after)]
            raise ValueError(f"{places[0]} and {places[1]} share memory")
    starts = [span[0] for span in spans]
    for index, tensor in enumerate(sources):
        start, size = tensor.data_ptr(), tensor.nbytes
        # The only output that can overlap is the last one that starts before this source ends.
        nearest = bisect_right(starts, start + size - 1) - 1
        if size == 0 or nearest < 0 or spans[nearest][1] <= start:
            continue
        output = spans[nearest][2]
        same = starts[nearest] == start and (output - index) % num_tensors == 0
        if not same or outputs[output].dtype != tensor.dtype:
            raise ValueError(
                f"{_place('outputs', output, num_tensors)} overlaps "
                f"{_place(name, index, num_tensors)} without being the same tensor"
            )


def check_apart(**lists: list[Tensor]) -> None:
    """Raises if any two tensors of the lists share memory."""
    spans = sorted(
        (start, start + tensor.nbytes, f"{name}[{index}]")
        for name, tensors in lists.items()
        for index, tensor in enumerate(tensors)
        if tensor.nbytes and (start := tensor.data_ptr())
    )
    for before, after in itertools.pairwise(spans):
        if after[0] < before[1]:
            raise ValueError(f"{before[2]} and {after[2]} share memory")


def _place(name: str, index: int, num_tensors: int) -> str:
    if name in ("outputs", "sources"):
        return f"{name}[{index // num_tensors}][{index % num_tensors}]"
    return f"{name}[{index}]"
