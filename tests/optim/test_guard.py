"""What a step asks first: natively and in Python the same."""

import pytest
import torch

from ratfast import native, ops
from ratfast.optim.guard import PlainGuard, keep_table, make_guard


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


def test_subclasses_that_say_otherwise_are_believed(guard_of):
    class Other(torch.Tensor):
        @property
        def grad(self):
            return self.other

    params = [torch.ones(2).as_subclass(Other)]
    params[0].other = torch.ones(2)
    guard = guard_of(params, [False])
    assert guard.grads(params)[0] is params[0].other
    params[0].other = None
    assert guard.grads(params) is None


@pytest.fixture
def tabled(native_cpu):
    """Parameters of which the last two have gradients of their own, a guard, and a step's table over them."""
    if native.load_core() is None:
        pytest.skip("the native module is not loaded")
    params = [torch.ones(2, 3, requires_grad=True) for _ in range(3)]
    for param in params:
        param.grad = torch.ones(2, 3)
    guard = make_guard(params, [True, False, False])
    detached = [param.detach() for param in params]
    states = [torch.zeros(2, 3) for _ in range(3)]
    table = ops.step_table(detached, [param.grad for param in params], [states])
    assert keep_table(guard, table, 3, {1: 1, 2: 2}, states)
    return params, guard, table, states


def test_a_table_follows_the_gradients(tabled):
    params, guard, table, _ = tabled
    steps = torch.zeros(3)
    for value in (2.0, 3.0):
        kept = [param.grad for param in params]  # so that none of them is used again
        for param in params[1:]:
            param.grad = torch.full((2, 3), value)
        assert guard.grads(params) is not None
        ops.sgd_step_([], [], [], steps, lr=1.0, momentum=0.5, table=table)
        del kept
    assert [float(param.detach().mean()) for param in params] == [-1.5, -5.0, -5.0]


def test_a_state_in_a_table_that_moves_is_seen(tabled):
    params, guard, _, states = tabled
    assert guard.grads(params) is not None
    states[1].data = torch.zeros(2, 3)
    assert guard.grads(params) is None


def test_gradients_in_a_table_that_share_memory_are_seen(tabled):
    params, guard, _, _ = tabled
    shared = torch.ones(9)
    own = [param.grad for param in params]
    for grads in (
        [own[0], params[0].detach(), own[2]],  # a parameter's memory
        [own[0], own[0], own[2]],  # another's gradient
        [own[0], shared[:6].view(2, 3), shared[3:].view(2, 3)],
    ):
        assert guard.grads(params) is not None
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        assert guard.grads(params) is None
        for param, grad in zip(params, own, strict=True):
            param.grad = grad


def test_a_guard_in_python_keeps_tables_of_pinned_gradients_only():
    params = tensors()
    guard = PlainGuard(params, [True, True, True, False])
    assert keep_table(guard, torch.zeros(88, dtype=torch.uint8), 1, {}, [])
    assert not keep_table(guard, torch.zeros(88, dtype=torch.uint8), 1, {2: 0}, [])
