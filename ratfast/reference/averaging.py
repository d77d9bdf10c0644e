"""Weighted sums and other reductions over models, on plain torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """The type that sums over `tensors` are held in: float64 if any of them is float64, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def mix_(outputs: list[Tensor], sources: list[Tensor], weights: Tensor) -> None:
    """Writes K weighted sums of N models, each of T tensors.

    Args:
        outputs: K * T tensors, model-major; any of them may be the memory of one source.
        sources: N * T tensors, model-major; element types may differ.
        weights: (K, N) float64 on the CPU.
    """
    num_outputs, num_sources = weights.shape
    num_tensors = len(sources) // num_sources
    rows = weights.tolist()
    for t in range(num_tensors):
        models = sources[t::num_tensors]
        targets = outputs[t::num_tensors]
        # On the CPU sums are held in float64, multiplied and added apart, as the native code does to the bit.
        dtype = accumulation_dtype(*models, *targets) if models[0].is_cuda else torch.float64
        sums = [torch.zeros_like(models[0], dtype=dtype) for _ in range(num_outputs)]
        for n, model in enumerate(models):
            wide = model.to(dtype)
            for k in range(num_outputs):
                sums[k].add_(wide * rows[k][n])
        # Only now, since a target may be the memory of a source.
        for target, total in zip(targets, sums, strict=True):
            _write(target, total)


def gram(sources: list[Tensor], models: int) -> Tensor:
    """Inner products between N models, tensor by tensor, accumulated in float64.

    Args:
        sources: N * T tensors, model-major; element types may differ.
        models: N.

    Returns:
        (T, N, N) float64 on the CPU.
    """
    num_tensors = len(sources) // models
    result = torch.zeros(num_tensors, models, models, dtype=torch.float64)
    for t in range(num_tensors):
        rows = [_in_memory_order(model) for model in sources[t::num_tensors]]
        for start in range(0, rows[0].numel(), _PIECE):
            piece = torch.stack([row[start : start + _PIECE].to(torch.float64) for row in rows])
            result[t] += (piece @ piece.T).cpu()
    return result.triu() + result.triu(1).mT  # products of matrices are not quite symmetric


def combine_(
    outputs: list[Tensor],
    sources: list[Tensor],
    bases: list[Tensor],
    kind: str,
    *,
    weights: Tensor,
    thresholds: Tensor | None = None,
    densities: Tensor | None = None,
    keys: Tensor | None = None,
    streams: Tensor | None = None,
    seed: int = 0,
    scale: float = 1.0,
    normalize: bool = True,
) -> None:
    """Reduces N models to one, element by element, in float64; `ratfast.ops.combine_` has the formulas.

    Args:
        outputs: T tensors; any of them may be the memory of a source or of the base.
        sources: N * T tensors, model-major; for `fisher` 2 N * T: the models, then their Fisher diagonals.
        bases: T tensors, or none, which means zeros.
        kind: `min`, `max`, `geometric`, `fisher`, `sum` or `elect`.
        weights: (N,) float64 on the CPU.
        thresholds: (T, N) float32 on the CPU.
        densities: (N,) float64 on the CPU.
        keys: (T,) int64 on the CPU, needed with densities.
        streams: (N,) int64 on the CPU, needed with densities.
        seed: from 0 to 2^32 - 1.
        scale: factor of what is added to the base.
        normalize: whether `elect` divides by the sum of the weights that agree.
    """
    numbers = weights.tolist()
    num_tensors = len(outputs)
    for t, output in enumerate(outputs):
        models = [_in_memory_order(model).to(torch.float64) for model in sources[t::num_tensors]]
        if kind in ("min", "max"):
            result = _extreme(models, kind)
        elif kind == "geometric":
            result = _geometric(models, numbers)
        elif kind == "fisher":
            result = _fisher(models[: len(numbers)], models[len(numbers) :], numbers)
        else:
            base = _in_memory_order(bases[t]).to(torch.float64) if bases else torch.zeros_like(models[0])
            taus = [model - base for model in models]
            if thresholds is not None:
                for n, threshold in enumerate(thresholds[t].tolist()):
                    taus[n] = torch.where(taus[n].float().abs() < threshold, 0.0, taus[n])
            if densities is not None:
                assert keys is not None and streams is not None
                for n, density in enumerate(densities.tolist()):
                    if density < 1:
                        drawn = uniforms(len(base), seed, int(streams[n]), int(keys[t])).to(base.device)
                        taus[n] = torch.where(drawn < density, taus[n] / density, 0.0)
            if kind == "sum":
                result = base + scale * _weighted_sum(taus, numbers)
            else:
                result = _elect(taus, numbers, base, scale, normalize)
        _write(_in_memory_order(output), result)


def _weighted_sum(values: list[Tensor], weights: list[float]) -> Tensor:
    total = torch.zeros_like(values[0])
    for value, weight in zip(values, weights, strict=True):
        total = total + value * weight
    return total


def _extreme(models: list[Tensor], kind: str) -> Tensor:
    result = torch.full_like(models[0], math.inf if kind == "min" else -math.inf)
    for model in models:
        beyond = model < result if kind == "min" else model > result
        result = torch.where(beyond | model.isnan(), model, result)
    return result


def _geometric(models: list[Tensor], weights: list[float]) -> Tensor:
    logs = _weighted_sum([torch.where(model == 0, 0.0, model.abs().log()) for model in models], weights)
    total = _weighted_sum(models, weights)
    zero = torch.stack([model == 0 for model in models]).any(0)
    magnitude = logs.exp()
    signed = torch.where(total < 0, -magnitude, torch.where(total > 0, magnitude, total * magnitude))
    return torch.where(zero & ~logs.isnan(), 0.0, signed)


def _fisher(models: list[Tensor], diagonals: list[Tensor], weights: list[float]) -> Tensor:
    shares = [diagonal * weight for diagonal, weight in zip(diagonals, weights, strict=True)]
    ones = [1.0] * len(models)
    numerator = _weighted_sum([share * x for share, x in zip(shares, models, strict=True)], ones)
    denominator = _weighted_sum(shares, ones)
    total = 0.0
    for weight in weights:
        total += weight
    plain = _weighted_sum(models, weights) / torch.tensor(total, dtype=torch.float64)
    return torch.where(denominator == 0, plain, numerator / denominator)


def _elect(taus: list[Tensor], weights: list[float], base: Tensor, scale: float, normalize: bool) -> Tensor:
    total = _weighted_sum(taus, weights)
    agree = [((tau > 0) & (total > 0)) | ((tau < 0) & (total < 0)) for tau in taus]
    kept = [torch.where(mask, tau, 0.0) for mask, tau in zip(agree, taus, strict=True)]
    value = _weighted_sum(kept, weights)
    if normalize:
        value = value / _weighted_sum([mask.double() for mask in agree], weights)
    return torch.where(total == 0, base, torch.where(total.isnan(), total, base + scale * value))


def uniforms(count: int, seed: int, stream: int, key: int) -> Tensor:
    """The draws of `combine_` for elements 0 to `count` - 1 of a tensor: multiples of 2^-32 below 1.

    Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

    Args:
        count: number of elements.
        seed: first word of the key.
        stream: second word of the key: the number of the model.
        key: high half of the counter: the tensor.

    Returns:
        (count,) float64 on the CPU.
    """
    low = 0xFFFFFFFF
    group = torch.arange((count + 3) // 4, dtype=torch.int64)
    counter = [group & low, group >> 32, torch.full_like(group, key & low)]
    counter.append(torch.full_like(group, (key >> 32) & low))
    keys = [seed & low, stream & low]
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]  # modulo 2^64
        counter = [
            ((b >> 32) & low) ^ counter[1] ^ keys[0],
            b & low,
            ((a >> 32) & low) ^ counter[3] ^ keys[1],
            a & low,
        ]
        keys = [(keys[0] + 0x9E3779B9) & low, (keys[1] + 0xBB67AE85) & low]
    return torch.stack(counter, dim=1).reshape(-1)[:count].double() * 2.0**-32


def kth_magnitudes(sources: list[Tensor], bases: list[Tensor], counts: Tensor, together: bool) -> Tensor:
    """The counts[t]-th largest |float32(x - base)| of each tensor.

    Args:
        sources: T tensors.
        bases: T tensors, or none, which means zeros.
        counts: (T,) int64 on the CPU; (1,) if `together`.
        together: rank all elements of all tensors as one.

    Returns:
        float32 on the CPU, of the shape of `counts`: infinity for a count of 0, 0 for one of all elements.
    """
    pieces = list(_magnitudes(sources, bases))
    if together:
        pieces = [torch.cat(pieces)] if pieces else [torch.empty(0)]
    result = []
    for values, count in zip(pieces, counts.tolist(), strict=True):
        if count <= 0:
            result.append(math.inf)
        elif count >= values.numel():
            result.append(0.0)
        else:
            result.append(values.kthvalue(values.numel() - count + 1).values.item())
    return torch.tensor(result, dtype=torch.float32)


def _magnitudes(sources: list[Tensor], bases: list[Tensor]) -> Iterator[Tensor]:
    for t, source in enumerate(sources):
        difference = _in_memory_order(source).double()
        if bases:
            difference = difference - _in_memory_order(bases[t]).double()
        yield difference.float().abs()


_PIECE = 1 << 20  # elements that are widened at a time


def _in_memory_order(tensor: Tensor) -> Tensor:
    """A dense tensor's elements as they lie in memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def _write(target: Tensor, value: Tensor) -> None:
    # As the native code rounds: a short type is reached from float64 by way of float32.
    if value.dtype == torch.float64 and target.dtype in (torch.float16, torch.bfloat16):
        value = value.float()
    target.copy_(value)
