"""Conversion of elements without torch, against torch, to the bit."""

import itertools

import numpy as np
import pytest
import torch

from ratfast.checkpoints.elements import converted

FLOATING = ["float64", "float32", "float16", "bfloat16"]


def samples(dtype):
    """Numbers of every kind: random bits, the neighbourhood of ties, subnormal, infinite and not a number."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20_000, dtype=torch.float64, generator=generator) * 10.0 ** torch.randint(
        -46, 40, (20_000,), generator=generator
    )
    ties = (torch.arange(1, 4000, dtype=torch.float64) * 2.0**-12 + 1) * 2.0 ** torch.randint(
        -30, 30, (3999,), generator=generator
    )
    special = torch.tensor(
        [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 65519.9, 65520.0, 3.4e38, 1e308]
    )
    return torch.cat([values, ties, special.double()]).to(getattr(torch, dtype))


@pytest.mark.parametrize(("source", "target"), list(itertools.product(FLOATING, FLOATING)))
def test_like_torch(source, target):
    numbers = samples(source)
    raw = np.concatenate([np.zeros(1, np.uint8), numbers.view(torch.uint8).numpy()])[1:]  # at an odd address
    found = torch.from_numpy(np.concatenate(list(converted(raw, source, target)))).view(
        getattr(torch, target)
    )
    expected = numbers.to(torch.float32 if source == "float64" and target != "float64" else numbers.dtype)
    expected = expected.to(getattr(torch, target))
    same = found.view(torch.uint8).reshape(len(found), -1) == expected.view(torch.uint8).reshape(
        len(found), -1
    )
    assert (same.all(1) | (found.isnan() & expected.isnan())).all()
    assert (found.isnan() == expected.isnan()).all()


def test_pieces(monkeypatch):
    monkeypatch.setattr("ratfast.checkpoints.elements._PIECE", 7)
    values = np.arange(20, dtype=np.float32)
    pieces = list(converted(values.view(np.uint8), "float32", "float64"))
    assert [piece.size for piece in pieces] == [56, 56, 48]
    assert np.concatenate(pieces).view(np.float64).tolist() == values.tolist()
