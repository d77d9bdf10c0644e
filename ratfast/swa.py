"""Update rules for `torch.optim.swa_utils.AveragedModel`, in one pass over the averaged model.

Pass one as `multi_avg_fn`; the results are those of torch's functions of the same names, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import swa_utils

from ratfast import ops
from ratfast.dtypes import BY_NAME
from ratfast.layout import is_dense
from ratfast.rows import dtype_name

MultiAvgFn = Callable[[Sequence[Tensor], Sequence[Tensor], "Tensor | int"], None]


def get_ema_multi_avg_fn(decay: float = 0.999) -> MultiAvgFn:
    """The exponential moving average: `averaged = decay * averaged + (1 - decay) * current`.

    Args:
        decay: from 0 to 1.

    Returns:
        A function of the lists of averaged and current tensors (of one device and element type each) and the
        number of models averaged so far, which updates the former in place.

    Raises:
        ValueError: `decay` is out of range.
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay is {decay}, expected a number from 0 to 1")
    fallback = swa_utils.get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def ema_update(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        _update(averaged, current, lambda: 1.0 - decay, lambda a, c: fallback(a, c, num_averaged))

    return ema_update


def get_swa_multi_avg_fn() -> MultiAvgFn:
    """The running mean: `averaged += (current - averaged) / (num_averaged + 1)`.

    The step is computed in float64; torch's own function takes it in float32 where the number is a tensor, so
    that averages in float64 agree with it to float32's precision only.

    Returns:
        A function of the lists of averaged and current tensors (of one device and element type each) and the
        number of models averaged so far, which updates the former in place.
    """
    fallback = swa_utils.get_swa_multi_avg_fn()

    @torch.no_grad()
    def swa_update(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        _update(
            averaged,
            current,
            lambda: 1.0 / (float(num_averaged) + 1.0),
            lambda a, c: fallback(a, c, num_averaged),
        )

    return swa_update


def _update(
    averaged: Sequence[Tensor],
    current: Sequence[Tensor],
    rate: Callable[[], float],
    fallback: Callable[[list[Tensor], list[Tensor]], None],
) -> None:
    """Moves `averaged` towards `current` by `rate()`; what no kernel of ours takes goes to `fallback`."""
    targets, values, others = [], [], []
    for target, value in zip(averaged, current, strict=True):
        if _is_fusible(target) and _is_fusible(value) and target.device == value.device:
            # The two were laid out independently: one may be channels-last and the other not.
            alike = target.stride() == value.stride()
            values.append(value if alike else torch.empty_like(target, dtype=value.dtype).copy_(value))
            targets.append(target)
        else:
            others.append((target, value))
    if targets:
        step = rate()
        ops.mix_([targets], [targets, values], [[1.0 - step, step]])
    if others:
        fallback([target for target, _ in others], [value for _, value in others])


def _is_fusible(tensor: Tensor) -> bool:
    name = dtype_name(tensor.dtype)
    known = name in BY_NAME and BY_NAME[name].is_floating and tensor.layout == torch.strided
    return known and (tensor.is_contiguous() or is_dense(tensor.shape, tensor.stride()))
