"""Parameters and gradients of any shape that lie in memory in any way."""

import math

import pytest
import torch

from ratfast.optim import FusedAdamW

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")


def layouts(shape):
    """Tensors of one shape that lie in memory in different ways."""
    size = math.prod(shape)
    yield lambda: torch.arange(size, dtype=torch.float32).reshape(shape)
    if shape:
        wide = (*shape[:-1], shape[-1] * 2)
        yield lambda: torch.arange(math.prod(wide), dtype=torch.float32).reshape(wide)[..., ::2]
        yield (
            lambda: (
                torch.arange(size, dtype=torch.float32)
                .reshape(shape[::-1])
                .permute(*reversed(range(len(shape))))
            )
        )
    if len(shape) == 4:
        yield (
            lambda: (
                torch.arange(size, dtype=torch.float32).reshape(shape).to(memory_format=torch.channels_last)
            )
        )


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(data=st.data())
def test_any_shapes_and_strides(data):
    """Parameters and gradients may lie in memory in any way; the result is torch's."""
    shapes = data.draw(st.lists(st.lists(st.integers(0, 5), max_size=4).map(tuple), min_size=1, max_size=4))
    ours, theirs = [], []
    for shape in shapes:
        options = list(layouts(shape))
        make = options[data.draw(st.integers(0, len(options) - 1))]
        ours.append(make().requires_grad_())
        theirs.append(make().requires_grad_())
    optimizer = FusedAdamW(ours, lr=0.1)
    other = torch.optim.AdamW(theirs, lr=0.1, foreach=False)
    for _ in range(3):
        for shape, mine, its in zip(shapes, ours, theirs, strict=True):
            options = list(layouts(shape))
            grad = options[data.draw(st.integers(0, len(options) - 1))]()
            mine.grad, its.grad = grad / 7, grad / 7
        optimizer.step()
        other.step()
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)
