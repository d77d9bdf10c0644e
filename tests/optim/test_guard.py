"""What a step asks first: natively and in Python the same."""

import pytest
import torch

from ratfast import native
from ratfast.optim.guard import PlainGuard, make_guard


@pytest.fixture(params=["native", "plain"])
def guard_of(request):
    if request.param == "plain":
        return PlainGuard
    if native.load_core() is None:
        pytest.skip("the native module is not loaded")
    return make_guard


def tensors():
    params = [torch.ones(2, 3, requires_grad=True) for _ in range(4)]
    for param in params[:3]:
        param.grad = torch.zeros(2, 3)
    return params  # two pinned gradients, one of its own, none


def replace(tensor, value):
    tensor.data = value


CHANGES = {
    "memory of a parameter": lambda p: replace(p[0], torch.ones(2, 3)),
    "order of a parameter": lambda p: replace(p[2], p[2].data.view(3, 2).t()),
    "a parameter": lambda p: p.__setitem__(1, torch.ones(2, 3, requires_grad=True)),
    "number of parameters": lambda p: p.pop(),
    "a pinned gradient": lambda p: setattr(p[0], "grad", torch.zeros(2, 3)),
    "memory of a pinned gradient": lambda p: replace(p[1].grad, torch.zeros(2, 3)),
    "a gradient gone": lambda p: setattr(p[2], "grad", None),
    "a gradient come": lambda p: setattr(p[3], "grad", torch.zeros(2, 3)),
    "order of a gradient": lambda p: setattr(p[2], "grad", torch.zeros(3, 2).t()),
    "type of a gradient": lambda p: replace(p[2].grad, torch.zeros(2, 3, dtype=torch.float64)),
    "layout of a gradient": lambda p: setattr(p[2], "grad", torch.zeros(2, 3).to_sparse()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(guard_of, change):
    params = tensors()
    guard = guard_of(params, [True, True, False, False])
    for _ in range(2):
        found = guard.grads(params)
        assert all(grad is param.grad for grad, param in zip(found, params, strict=True))
    assert len(found) == 4
    CHANGES[change](params)
    assert guard.grads(params) is None


def test_values_and_new_gradients_of_the_kind_are_no_change(guard_of):
    params = tensors()
    guard = guard_of(params, [True, True, False, False])
    with torch.no_grad():
        params[0].add_(1.0)
        params[1].grad.add_(1.0)
    params[2].grad = torch.ones(2, 3)
    assert guard.grads(params)[2] is params[2].grad
