"""On an arena the step is one row operation, with the results of the list of tensors."""

import copy

import pytest
import torch
from torch import nn

from ratfast import ops
from ratfast.arena import Arena
from ratfast.optim import FusedAdam, FusedAdamW


def cnn(device="cpu"):
    torch.manual_seed(3)
    module = nn.Sequential(
        # A bias before batch norm has no gradient but rounding noise, which Adam would amplify.
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 13, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(13, 5),
    )
    return module.to(device).to(memory_format=torch.channels_last)


def backward(module, seed):
    device = next(module.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 3, 8, 8, generator=generator).to(device)
    labels = torch.randint(5, (4,), generator=generator).to(device)
    nn.functional.cross_entropy(module(images), labels).backward()


def train(module, optimizer, seeds):
    for seed in seeds:
        optimizer.zero_grad()
        backward(module, seed)
        optimizer.step()


@pytest.fixture
def stepped(monkeypatch):
    """Numbers of tensors of the calls of the operation."""
    calls = []
    original = ops.adam_step_

    def spy(params, *args, **kwargs):
        calls.append([param.numel() for param in params])
        return original(params, *args, **kwargs)

    monkeypatch.setattr(ops, "adam_step_", spy)
    return calls


def test_training_is_the_same_to_the_bit_as_without_arena():
    plain, module = cnn(), cnn()
    arena = Arena(module)
    train(plain, FusedAdamW(plain.parameters(), lr=0.01), range(25))
    train(module, FusedAdamW(module.parameters(), lr=0.01), range(25))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name
    assert arena.is_intact()


def test_follows_torch(device):
    plain, module = cnn(device), cnn(device)
    Arena(module)
    other = torch.optim.AdamW(plain.parameters(), lr=1e-3, foreach=False)
    optimizer = FusedAdamW(module.parameters(), lr=1e-3)
    for step in range(100):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        for mine, its in zip(module.parameters(), plain.parameters(), strict=True):
            mine.grad.copy_(torch.randn(mine.shape, generator=generator))
            its.grad = mine.grad.clone()
        optimizer.step()
        other.step()
    for mine, its in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=2e-5, atol=2e-6)


def test_one_row_is_stepped_and_its_gradients_stay(stepped, device):
    module = cnn(device)
    arena = Arena(module)
    optimizer = FusedAdam(module.parameters())
    grads = [parameter.grad for parameter in module.parameters()]
    train(module, optimizer, range(3))
    assert stepped == [[arena.parameters_row().numel()]] * 3
    assert all(parameter.grad is grad for parameter, grad in zip(module.parameters(), grads, strict=True))
    optimizer.zero_grad()
    assert bool((arena.grads_row() == 0).all())


def test_states_are_rows_with_views():
    module = cnn()
    arena = Arena(module)
    optimizer = FusedAdam(module.parameters(), amsgrad=True)
    train(module, optimizer, range(2))
    for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        storages = {state[key].untyped_storage().data_ptr() for state in optimizer.state.values()}
        assert len(storages) == 1
        for parameter, state in optimizer.state.items():
            assert state[key].shape == parameter.shape
            assert state[key].stride() == parameter.stride()
    assert len({state["step"].data_ptr() for state in optimizer.state.values()}) == 1
    steps = [state["step"] for state in optimizer.state_dict()["state"].values()]
    assert len({step.data_ptr() for step in steps}) == len(optimizer.state)
    assert arena.is_intact()


def test_frozen_parameters_split_the_row_and_stay(stepped):
    module, plain = cnn(), cnn()
    for model in (module, plain):
        model[3].weight.requires_grad_(False)
    Arena(module)
    frozen = module[3].weight.clone()
    train(module, FusedAdamW(module.parameters(), lr=0.01), range(10))
    assert len(stepped[-1]) <= 2
    train(plain, FusedAdamW(plain.parameters(), lr=0.01), range(10))
    assert torch.equal(module[3].weight, frozen)
    for mine, its in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_thawed_parameters_join_later(stepped):
    module, plain = cnn(), cnn()
    for model in (module, plain):
        model[3].weight.requires_grad_(False)
    arena = Arena(module)
    optimizer = FusedAdamW(module.parameters(), lr=0.01)
    other = torch.optim.AdamW(plain.parameters(), lr=0.01)
    train(module, optimizer, range(4))
    train(plain, other, range(4))
    for model in (module, plain):
        model[3].weight.requires_grad_(True)
    arena.zero_grad()
    train(module, optimizer, range(4, 12))
    train(plain, other, range(4, 12))
    assert optimizer.state[module[3].weight]["step"].item() == 8
    for mine, its in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


def test_only_the_head(stepped):
    module, plain = cnn(), cnn()
    arena = Arena(module)
    optimizer = FusedAdam(module[7].parameters(), lr=0.1)
    train(module, optimizer, range(5))
    train(plain, FusedAdam(plain[7].parameters(), lr=0.1), range(5))
    for mine, its in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, its)
    # The rest has collected its gradients, which are not this optimizer's to clear.
    optimizer.zero_grad()
    assert bool((module[7].weight.grad == 0).all())
    assert arena.grads_row().norm() > 0


def test_groups_over_one_arena():
    module, plain = cnn(), cnn()
    arena = Arena(module)

    def groups(model):
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim <= 1]
        return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]

    optimizer = FusedAdamW(groups(module), lr=0.01)
    train(module, optimizer, range(10))
    train(plain, FusedAdamW(groups(plain), lr=0.01), range(10))
    for mine, its in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, its)
    optimizer.zero_grad()
    assert bool((arena.grads_row() == 0).all())


@pytest.mark.parametrize("breakage", ["set to none", "cast", "data", "grad data"])
def test_broken_views_are_stepped_one_by_one_never_mispaired(breakage):
    module, plain = cnn(), cnn()
    arena = Arena(module)
    optimizer = FusedAdamW(module.parameters(), lr=0.01)
    other = torch.optim.AdamW(plain.parameters(), lr=0.01, foreach=False)
    train(module, optimizer, range(3))
    train(plain, other, range(3))
    for model in (module, plain):
        if breakage == "cast":
            model.double().float()
        elif breakage == "data":
            model[7].weight.data = model[7].weight.data.clone()
    for seed in range(3, 8):
        for model, opt in ((module, optimizer), (plain, other)):
            if breakage == "set to none":
                model.zero_grad(set_to_none=True)
            opt.zero_grad()
            backward(model, seed)
            if breakage == "grad data":
                model[0].weight.grad.data = model[0].weight.grad.data.clone().mul_(2)
            opt.step()
    assert arena.is_intact() == (breakage in ("set to none", "grad data"))
    for mine, its in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attribute", ["grad", "data"])
def test_memory_viewed_otherwise_is_paired_by_index(attribute):
    """The same memory read in another order: the row operation would pair it wrongly."""
    module, plain = (nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)) for _ in range(2))
    plain.load_state_dict(module.state_dict())
    Arena(module)
    optimizer = FusedAdam(module.parameters(), lr=0.1)
    other = torch.optim.Adam(plain.parameters(), lr=0.1)
    for step in range(4):
        for mine, its in zip(module.parameters(), plain.parameters(), strict=True):
            grad = torch.randn(mine.shape, generator=torch.Generator().manual_seed(step))
            mine.grad.copy_(grad)
            its.grad = grad
        if step == 2:
            for model in (module, plain):
                setattr(model[0].weight, attribute, getattr(model[0].weight, attribute).t())
        optimizer.step()
        other.step()
    for mine, its in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, its)


def test_a_changed_step_number_counts():
    module, plain = cnn(), cnn()
    Arena(module)
    optimizer = FusedAdam(module.parameters(), lr=0.01)
    other = torch.optim.Adam(plain.parameters(), lr=0.01)
    for seeds in (range(2), range(2, 4)):
        train(module, optimizer, seeds)
        train(plain, other, seeds)
        optimizer.state[module[7].weight]["step"] = torch.tensor(50.0)
        other.state[plain[7].weight]["step"] = torch.tensor(50.0)
    train(module, optimizer, [5])
    train(plain, other, [5])
    assert optimizer.state[module[7].weight]["step"] == 51
    assert optimizer.state[module[7].bias]["step"] == 5
    for mine, its in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)
    # In place it is that of all parameters of the row.
    optimizer.state[module[0].weight]["step"].fill_(70)
    train(module, optimizer, [6])
    assert optimizer.state[module[0].weight]["step"] == 71


def test_autograd_sees_the_row_step_in_every_parameter():
    for index in (0, 1, 3, 7):
        module = cnn()
        Arena(module)
        optimizer = FusedAdam(module.parameters())
        train(module, optimizer, [0])
        weight = module[index].weight
        loss = (weight * weight).sum()
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_copy_of_the_optimizer_is_independent():
    module = cnn()
    Arena(module)
    optimizer = FusedAdam(module.parameters(), lr=0.1)
    train(module, optimizer, range(2))
    twin_module, twin = copy.deepcopy((module, optimizer))
    params = list(module.parameters())
    train(module, optimizer, range(2, 4))
    before = [param.clone() for param in params]
    train(twin_module, twin, range(2, 4))
    for param, kept, its in zip(params, before, twin_module.parameters(), strict=True):
        assert torch.equal(param, kept)
        torch.testing.assert_close(param, its)


def test_gradient_clipping_between_backward_and_step(stepped):
    module, plain = cnn(), cnn()
    arena = Arena(module)
    optimizer = FusedAdamW(module.parameters(), lr=0.01)
    other = torch.optim.AdamW(plain.parameters(), lr=0.01)
    for seed in range(5):
        for model, opt in ((module, optimizer), (plain, other)):
            opt.zero_grad()
            backward(model, seed)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            opt.step()
    assert stepped[-1] == [arena.parameters_row().numel()]
    for mine, its in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)
