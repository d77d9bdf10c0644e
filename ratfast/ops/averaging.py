"""Weighted sums and other reductions over models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ratfast import reference
from ratfast.ops.checks import check_alike, check_memory
from ratfast.ops.registration import call, check_cuda, define, increment_versions

# What one call of the CUDA library can mix or multiply, and combine: kMaxSources, kMaxCombined of csrc/cuda/launch.h.
_MOST_CUDA_SOURCES = 1024
_MOST_CUDA_COMBINED = 512


def _fake_mix_(outputs: list[Tensor], sources: list[Tensor], weights: Tensor) -> None:
    check_cuda(outputs)


def _fake_gram(sources: list[Tensor], models: int) -> Tensor:
    check_cuda(sources)
    return torch.empty(len(sources) // models, models, models, dtype=torch.float64, device="cpu")


def _fake_combine_(
    outputs: list[Tensor], sources: list[Tensor], bases: list[Tensor], kind: str, **options: object
) -> None:
    check_cuda(outputs)


def _fake_kth_magnitudes(
    sources: list[Tensor], bases: list[Tensor], counts: Tensor, together: bool
) -> Tensor:
    return torch.empty(counts.shape, dtype=torch.float32, device="cpu")


define("mix_(Tensor(a!)[] outputs, Tensor[] sources, Tensor weights) -> ()", reference.mix_, _fake_mix_)
define("gram(Tensor[] sources, int models) -> Tensor", reference.gram, _fake_gram)
define(
    "combine_(Tensor(a!)[] outputs, Tensor[] sources, Tensor[] bases, str kind, *, Tensor weights, "
    "Tensor? thresholds, Tensor? densities, Tensor? keys, Tensor? streams, int seed, float scale, "
    "bool normalize) -> ()",
    reference.combine_,
    _fake_combine_,
)
define(
    "kth_magnitudes(Tensor[] sources, Tensor[] bases, Tensor counts, bool together) -> Tensor",
    reference.kth_magnitudes,
    _fake_kth_magnitudes,
    on_cuda=False,
)


def mix_(
    outputs: Sequence[Sequence[Tensor]],
    sources: Sequence[Sequence[Tensor]],
    weights: Tensor | Sequence[Sequence[float]],
) -> None:
    """Writes K weighted sums of N models: `outputs[k][t] = sum over n of weights[k, n] * sources[n][t]`.

    All K sums are made in one pass over the sources, models added in order. On the CPU sums are held in
    float64, and multiplied and added apart, so that the result is the same to the bit for every number of
    threads, every instruction set, and on plain torch. On a CUDA device they are held in float32, or in float64
    where a source or an output of that t is float64, and more than 1,024 models are summed by plain torch.

    Args:
        outputs: K models of T tensors. A tensor may be the memory of a source of the same t (in place); any
            other overlap is refused.
        sources: N models of T tensors; N >= 1. The tensors of one t must agree in shape and strides and be
            dense; their element types (float64, float32, bfloat16, float16) may differ.
        weights: (K, N).

    Raises:
        ValueError: lists, shapes, strides, devices or memory do not fit together.
        TypeError: an element type or a kind of tensor that cannot be averaged.
    """
    num_outputs, num_sources = len(outputs), len(sources)
    if num_outputs == 0:
        return
    num_tensors = len(outputs[0])
    _check_lengths("outputs", outputs, num_tensors, "outputs[0]")
    _check_lengths("sources", sources, num_tensors, "outputs[0]")
    if num_sources == 0:
        raise ValueError("sources is empty, so there is nothing to average")
    matrix = torch.as_tensor(weights, dtype=torch.float64, device="cpu")
    if matrix.shape != (num_outputs, num_sources):
        raise ValueError(
            f"weights have shape {tuple(matrix.shape)}, but {num_outputs} outputs of {num_sources} sources "
            f"need ({num_outputs}, {num_sources})"
        )
    if num_tensors == 0:
        return
    flat_outputs = [tensor for model in outputs for tensor in model]
    flat_sources = [tensor for model in sources for tensor in model]

    def check() -> None:
        check_alike(num_tensors, outputs=flat_outputs, sources=flat_sources)
        if not torch.compiler.is_compiling():
            check_memory(flat_outputs, flat_sources, num_tensors)

    arguments = (flat_outputs, flat_sources, matrix.detach().contiguous())
    if num_sources > _MOST_CUDA_SOURCES and flat_outputs[0].is_cuda:
        check()
        with torch.no_grad():
            reference.mix_(*arguments)
    else:
        call(torch.ops.ratfast.mix_, arguments, {}, [*flat_outputs, *flat_sources], check)
    increment_versions(flat_outputs)


COMBINE_KINDS = ("min", "max", "geometric", "fisher", "sum", "elect")


def gram(sources: Sequence[Sequence[Tensor]]) -> Tensor:
    """Inner products between N models, tensor by tensor: `[t, i, j] = sources[i][t] . sources[j][t]`.

    Accumulated in float64 in an order that depends on the number of elements alone, so that the result is the
    same for every number of threads and every instruction set. More than 1,024 models on a CUDA device are multiplied
    by plain torch.

    Args:
        sources: N models of T tensors; N >= 1. The tensors of one t must agree in shape and strides and be
            dense; their element types (float64, float32, bfloat16, float16) may differ.

    Returns:
        (T, N, N) float64 on the CPU.

    Raises:
        ValueError: lists, shapes, strides or devices do not fit together.
        TypeError: an element type or a kind of tensor that cannot be averaged.
    """
    if len(sources) == 0:
        raise ValueError("sources is empty, so there are no inner products")
    num_tensors = len(sources[0])
    _check_lengths("sources", sources, num_tensors, "sources[0]")
    if num_tensors == 0:
        return torch.zeros(0, len(sources), len(sources), dtype=torch.float64)
    flat = [tensor for model in sources for tensor in model]
    check_alike(num_tensors, sources=flat)
    if not torch.compiler.is_compiling():
        check_cuda(flat[:1])
    beyond = flat[0].is_cuda and len(sources) > _MOST_CUDA_SOURCES
    with torch.no_grad():
        return (reference.gram if beyond else torch.ops.ratfast.gram)(flat, len(sources))


def combine_(
    outputs: Sequence[Tensor],
    sources: Sequence[Sequence[Tensor]],
    bases: Sequence[Tensor] | None,
    kind: str,
    *,
    weights: Tensor | Sequence[float] | None = None,
    thresholds: Tensor | Sequence[Sequence[float]] | None = None,
    densities: Tensor | Sequence[float] | None = None,
    keys: Sequence[int] | None = None,
    streams: Sequence[int] | None = None,
    seed: int = 0,
    scale: float = 1.0,
    normalize: bool = True,
) -> None:
    """Reduces N models x_n to one, element by element, in float64 on every device; more than 512 models on a CUDA
    device by plain torch.

    - `min`, `max`: over the models; NaN wins. Weights are ignored.
    - `geometric`: `exp(sum w_n ln |x_n|)` with the sign of `sum w_n x_n`; 0 where an x_n is 0 and none is NaN.
    - `fisher` (arXiv 2111.09832): `sum w_n f_n x_n / sum w_n f_n`; where the divisor is 0, `sum w_n x_n / sum w_n`.
    - `sum`: `base + scale * sum w_n tau_n`, with `tau_n = drop(x_n - base)`.
    - `elect` (TIES, arXiv 2306.01708): with `s = sign(sum w_n tau_n)`,
      `base + scale * sum over n with sign(tau_n) = s of w_n tau_n`, divided by the sum of these w_n if
      `normalize`; the base where s is 0; NaN where a tau_n is.

    `drop(tau)` is 0 where `|float32(tau)| < thresholds[t, n]`, and (DARE, arXiv 2311.03099), where
    `densities[n] < 1`, 0 unless `u < densities[n]`, else `tau / densities[n]`. The draw u of element i in memory
    order is word `i mod 4` times 2^-32 of Philox4x32-10 with the key `(seed mod 2^32, streams[n])` and the counter
    `(i // 4, keys[t])`, each of two words, the low one first.

    Args:
        outputs: T tensors. One may be the memory of a source, or of the base, of the same t; any other overlap is
            refused.
        sources: N models of T tensors; N >= 1. For `fisher` 2 N: first the models, then their Fisher diagonals
            f_n. The tensors of one t must agree in shape and strides and be dense; their element types
            (float64, float32, bfloat16, float16) may differ.
        bases: T tensors for `sum` and `elect`, or None for zeros.
        kind: one of COMBINE_KINDS.
        weights: (N,); by default ones.
        thresholds: (T, N) numbers, taken as float32, for `sum` and `elect`.
        densities: (N,), for `sum` and `elect`.
        keys: T integers below 2^64 that name the tensors in the draws; by default their places.
        streams: N integers below 2^32 that name the models in the draws; by default their places.
        seed: of the draws.
        scale: for `sum` and `elect`.
        normalize: for `elect`.

    Raises:
        ValueError: lists, shapes, strides, devices or memory do not fit together, or an unknown kind.
        TypeError: an element type or a kind of tensor that cannot be averaged.
    """
    if kind not in COMBINE_KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(COMBINE_KINDS)}")
    num_tensors = len(outputs)
    _check_lengths("sources", sources, num_tensors, "outputs")
    num_models = len(sources) // 2 if kind == "fisher" else len(sources)
    if num_models == 0:
        raise ValueError("sources is empty, so there is nothing to combine")
    if kind == "fisher" and len(sources) % 2 != 0:
        raise ValueError(f"sources holds {len(sources)} models, expected as many Fisher diagonals as models")
    if kind not in ("sum", "elect"):
        for name, value in (("bases", bases), ("thresholds", thresholds), ("densities", densities)):
            if value is not None:
                raise ValueError(f"{name} go with the kinds sum and elect, not with {kind}")
    if bases is not None and len(bases) != num_tensors:
        raise ValueError(f"bases has {len(bases)} tensors, but outputs has {num_tensors}")
    options = {
        "weights": _numbers("weights", [1.0] * num_models if weights is None else weights, (num_models,)),
        "thresholds": _numbers("thresholds", thresholds, (num_tensors, num_models), torch.float32),
        "densities": _numbers("densities", densities, (num_models,)),
        "keys": _words("keys", range(num_tensors) if keys is None else keys, num_tensors, 64),
        "streams": _words("streams", range(num_models) if streams is None else streams, num_models, 32),
        "seed": int(seed) % 2**32,
        "scale": float(scale),
        "normalize": bool(normalize),
    }
    if num_tensors == 0:
        return
    flat_outputs, flat_bases = list(outputs), list(bases or ())
    flat_sources = [tensor for model in sources for tensor in model]
    check_alike(num_tensors, outputs=flat_outputs, sources=flat_sources, bases=flat_bases)
    if not torch.compiler.is_compiling():
        check_memory(flat_outputs, flat_sources, num_tensors)
        check_memory(flat_outputs, flat_bases, num_tensors, "bases")
        check_cuda(flat_outputs[:1])
    beyond = flat_outputs[0].is_cuda and num_models > _MOST_CUDA_COMBINED
    with torch.no_grad():
        operator = reference.combine_ if beyond else torch.ops.ratfast.combine_
        operator(flat_outputs, flat_sources, flat_bases, kind, **options)
    increment_versions(flat_outputs)


def kth_magnitudes(
    sources: Sequence[Tensor],
    bases: Sequence[Tensor] | None,
    counts: Sequence[int] | int,
    *,
    together: bool = False,
) -> Tensor:
    """The exact `counts[t]`-th largest `|float32(x - base)|` of each tensor, x - base taken in float64.

    As a threshold of `combine_` it keeps the counts[t] largest differences, and those that equal the smallest of
    them. NaN ranks above everything.

    Args:
        sources: T dense tensors.
        bases: T tensors alike but for the element type, or None for zeros.
        counts: T integers; one integer if `together`.
        together: rank the elements of all tensors as one.

    Returns:
        (T,) float32 on the CPU, () if `together`: infinity for a count of 0, 0 for one of all elements.

    Raises:
        ValueError: lists, shapes, strides or devices do not fit together.
        TypeError: an element type or a kind of tensor that cannot be averaged.
    """
    num_tensors = len(sources)
    if bases is not None and len(bases) != num_tensors:
        raise ValueError(f"bases has {len(bases)} tensors, but sources has {num_tensors}")
    numbers = torch.as_tensor(counts, dtype=torch.int64, device="cpu")
    if numbers.shape != (() if together else (num_tensors,)):
        expected = "one integer" if together else f"{num_tensors} integers"
        raise ValueError(f"counts has shape {tuple(numbers.shape)}, expected {expected}")
    if (numbers < 0).any():
        raise ValueError("counts must not be negative")
    flat_sources, flat_bases = list(sources), list(bases or ())
    if num_tensors == 0:
        return torch.where(numbers > 0, 0.0, torch.inf).float()
    check_alike(num_tensors, sources=flat_sources, bases=flat_bases)
    with torch.no_grad():
        found = torch.ops.ratfast.kth_magnitudes(flat_sources, flat_bases, numbers.reshape(-1), together)
    return found.reshape(numbers.shape)


def _check_lengths(kind: str, models: Sequence[Sequence[Tensor]], num_tensors: int, measure: str) -> None:
    for index, model in enumerate(models):
        if len(model) != num_tensors:
            raise ValueError(f"{kind}[{index}] has {len(model)} tensors, but {measure} has {num_tensors}")


def _numbers(
    name: str, values: object, shape: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> Tensor | None:
    """Numbers as a contiguous tensor on the CPU, or None if there are none."""
    if values is None:
        return None
    tensor = torch.as_tensor(values, dtype=dtype, device="cpu")
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    return tensor.detach().contiguous()


def _words(name: str, values: Sequence[int], count: int, bits: int) -> Tensor:
    """Unsigned integers of so many bits, in int64 (modulo 2^64)."""
    numbers = [int(value) for value in values]
    if len(numbers) != count:
        raise ValueError(f"{name} has {len(numbers)} numbers, expected {count}")
    if any(not 0 <= number < 2**bits for number in numbers):
        raise ValueError(f"{name} must lie from 0 to 2^{bits} - 1")
    return torch.tensor([number - (number >> 63 << 64) for number in numbers], dtype=torch.int64)
