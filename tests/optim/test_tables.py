"""Steps on lists, whose tensors are found in a table from the second step on: as torch's, wherever tensors move."""

import copy

import pytest
import torch
from torch import nn

from ratfast import native
from ratfast.optim import FusedAdamW, FusedSGD

pytestmark = pytest.mark.skipif(native.load_core() is None, reason="the native module is not loaded")
PAIRS = {
    "adamw": (FusedAdamW, torch.optim.AdamW, {"lr": 0.01, "amsgrad": True}),
    "sgd": (FusedSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
}


def in_tables(optimizer):
    return [part.table is not None for plan in optimizer._plans._plans for part in plan.parts]


def pair(rule, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 2))
    other = copy.deepcopy(model)
    ours, theirs, common = PAIRS[rule]
    return [
        (model, ours(model.parameters(), **common, **options)),
        (other, theirs(other.parameters(), **common)),
    ]


def backward(model, seed):
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
    model(inputs).square().mean().backward()


def assert_close(pairs):
    for mine, its in zip(*(model.parameters() for model, _ in pairs), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-7)


def nothing(model, optimizer):
    pass


def new_memory(model, optimizer):
    model[0].weight.data = model[0].weight.data.clone()


def states_elsewhere(model, optimizer):
    for state in optimizer.state.values():
        for name, value in state.items():
            if name != "step":
                value.data = value.data.clone()


def states_loaded(model, optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def frozen(model, optimizer):
    model[2].bias.requires_grad_(False)
    model[2].bias.grad = None


def own_gradients(model, optimizer):
    for param in model.parameters():
        if param.requires_grad:
            param.grad = param.detach() * 0.1


@pytest.mark.parametrize("rule", PAIRS)
@pytest.mark.parametrize(
    "between", [nothing, new_memory, states_elsewhere, states_loaded, frozen, own_gradients]
)
def test_follows_torch_whatever_moves(rule, between):
    pairs, old = pair(rule), []
    for seed in range(12):
        for model, optimizer in pairs:
            optimizer.zero_grad()
            backward(model, seed)
            if seed % 4 == 3:
                between(model, optimizer)
            optimizer.step()
            old += [param.grad for param in model.parameters()]  # so that gradients are new memory each time
        assert_close(pairs)
    assert all(in_tables(pairs[0][1])) and in_tables(pairs[0][1])


def test_gradients_on_a_parameters_memory_are_refused():
    (model, optimizer), _ = pair("adamw")
    for seed in range(2):
        backward(model, seed)
        optimizer.step()
    assert in_tables(optimizer) == [True]
    before = copy.deepcopy(model.state_dict())
    model[0].weight.grad = model[0].weight.detach()
    with pytest.raises(ValueError, match="share memory"):
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_not_dense_is_not_in_a_table():
    param = nn.Parameter(torch.ones(4, 6)[:, ::2])
    optimizer = FusedSGD([param], lr=0.5)
    for _ in range(2):
        param.grad = torch.ones(4, 3)
        optimizer.step()
    assert in_tables(optimizer) == [False] and (param == 0).all()


def test_everything_along_with_a_step_on_new_gradients():
    pairs = pair("adamw", max_grad_norm=0.1, ema_decay=0.9, zero_grads=True)
    (model, optimizer), (other, theirs) = pairs
    average, kept = copy.deepcopy(other), []
    for seed in range(10):
        for trained in (model, other):
            trained.zero_grad(set_to_none=True)
            backward(trained, seed)
            kept += [param.grad for param in trained.parameters()]
        optimizer.step()
        assert all(param.grad.abs().max() == 0 and param.grad._version > 0 for param in model.parameters())
        nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        theirs.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(other.parameters()), 0.1)
    assert_close(pairs)
    for name, value in optimizer.averaged_state_dict(model).items():
        torch.testing.assert_close(value, average.state_dict()[name], rtol=1e-5, atol=1e-7)


def test_autograd_is_told_of_every_step():
    (model, optimizer), _ = pair("adamw")
    weight = model[0].weight
    for seed in range(3):
        backward(model, seed)
        saved = [(weight**2).sum()]
        if seed:
            saved.append((weight.detach().requires_grad_() * optimizer.state[weight]["exp_avg"]).sum())
        optimizer.step()
        for value in saved:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                value.backward()
