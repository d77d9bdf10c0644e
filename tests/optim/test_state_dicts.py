"""State dicts go to torch.optim and come back, and training continues as if nothing had happened."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from ratfast.arena import Arena
from ratfast.errors import InputError
from ratfast.optim import FusedAdam, FusedAdamW, FusedSGD

PAIRS = [
    (FusedAdam, torch.optim.Adam, {"amsgrad": False}),
    (FusedAdam, torch.optim.Adam, {"amsgrad": True, "weight_decay": 0.1}),
    (FusedAdamW, torch.optim.AdamW, {"amsgrad": False}),
    (FusedAdamW, torch.optim.AdamW, {"amsgrad": True}),
    (FusedSGD, torch.optim.SGD, {}),
    (FusedSGD, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.5}),
    (FusedSGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
]
PEERS = [{"foreach": False}, {"foreach": True}, {"fused": True}]


def model():
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(20, 3)).to(
        memory_format=torch.channels_last
    )


def train(module, optimizer, seeds):
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        optimizer.zero_grad()
        inputs = torch.randn(4, 2, 4, 4, generator=generator).to(next(module.parameters()).dtype)
        module(inputs).square().mean().backward()
        optimizer.step()


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(one, other, **tolerance):
    for mine, its in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, its, **tolerance)


@pytest.mark.parametrize("on_arena", [False, True])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0].__name__} {pair[2]}")
@pytest.mark.parametrize("peer", PEERS, ids=str)
def test_torch_continues_ours(pair, peer, on_arena):
    module = model()
    arena = Arena(module) if on_arena else None
    optimizer = pair[0](module.parameters(), lr=0.01, **pair[2])
    train(module, optimizer, range(5))
    twin = model()
    twin.load_state_dict(module.state_dict())
    other = pair[1](twin.parameters(), lr=0.5, **peer)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert other.param_groups[0]["lr"] == 0.01
    train(module, optimizer, range(5, 12))
    train(twin, other, range(5, 12))
    assert_same(module, twin, rtol=2e-5, atol=1e-6)
    # Every parameter counts for itself: shared elements would have counted once per parameter.
    if pair[0] is not FusedSGD:
        assert [state["step"].item() for state in other.state.values()] == [12.0] * 4
    assert arena is None or arena.is_intact()


@pytest.mark.parametrize("on_arena", [False, True])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0].__name__} {pair[2]}")
@pytest.mark.parametrize("peer", PEERS, ids=str)
def test_we_continue_torch(pair, peer, on_arena):
    module = model()
    other = pair[1](module.parameters(), lr=0.01, **pair[2], **peer)
    train(module, other, range(5))
    twin = model()
    twin.load_state_dict(module.state_dict())
    arena = Arena(twin) if on_arena else None
    optimizer = pair[0](twin.parameters(), lr=0.5)
    optimizer.load_state_dict(through_a_file(other.state_dict()))
    train(module, other, range(5, 12))
    train(twin, optimizer, range(5, 12))
    assert_same(module, twin, rtol=2e-5, atol=1e-6)
    assert optimizer.param_groups[0]["lr"] == 0.01
    if pair[0] is not FusedSGD:
        assert [state["step"].item() for state in optimizer.state.values()] == [12.0] * 4
    assert arena is None or arena.is_intact()


EXTRAS = [{}, {"ema_decay": 0.9, "max_grad_norm": 0.5}, {"swa": True, "zero_grads": True}]


@pytest.mark.parametrize("on_arena", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("extras", EXTRAS, ids=str)
@pytest.mark.parametrize("pair", [PAIRS[1], PAIRS[2], PAIRS[5]], ids=lambda pair: pair[0].__name__)
def test_saving_and_loading_changes_nothing_to_the_bit(pair, extras, dtype, on_arena):
    extras = extras | {"master_weights": dtype == torch.bfloat16}
    module, twin = model().to(dtype), model().to(dtype)
    if on_arena:
        Arena(module)
    optimizer = pair[0](module.parameters(), lr=0.01, **pair[2], **extras)
    train(module, optimizer, range(4))
    other = pair[0](twin.parameters(), **extras)
    if on_arena:  # when half of its states are there already
        Arena(twin)
        train(twin, other, range(1))
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    twin.load_state_dict(module.state_dict())
    train(module, optimizer, range(4, 9))
    train(twin, other, range(4, 9))
    assert_same(module, twin, rtol=0, atol=0)
    mine, its = (through_a_file(o.state_dict()) for o in (optimizer, other))
    assert mine["param_groups"] == its["param_groups"]
    torch.testing.assert_close(mine["state"], its["state"], rtol=0, atol=0)
    if "ema_decay" in extras or "swa" in extras:
        averages = optimizer.averaged_state_dict(module), other.averaged_state_dict(twin)
        torch.testing.assert_close(*averages, rtol=0, atol=0)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("pair", [PAIRS[2], PAIRS[5]], ids=lambda pair: pair[0].__name__)
def test_copies_keep_what_goes_along(duplicate, pair):
    module = model().bfloat16()
    extras = {"swa": True, "master_weights": True, "max_grad_norm": 0.5, "zero_grads": True}
    optimizer = pair[0](module.parameters(), lr=0.01, **pair[2], **extras)
    train(module, optimizer, range(3))
    twin_module, twin = duplicate((module, optimizer))
    assert twin.max_grad_norm == 0.5
    for each, opt in ((module, optimizer), (twin_module, twin)):
        train(each, opt, range(3, 6))
    assert_same(module, twin_module, rtol=0, atol=0)
    averages = optimizer.averaged_state_dict(module), twin.averaged_state_dict(twin_module)
    torch.testing.assert_close(*averages, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_carries_along_what_it_does_not_know(dtype):
    module = model().to(dtype)
    optimizer = FusedAdamW(module.parameters(), ema_decay=0.9, master_weights=True)
    train(module, optimizer, range(3))
    other = torch.optim.AdamW(module.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(module, other, range(3, 5))
    state = other.state[module[0].weight]
    assert state["step"].item() == 5
    assert state["exp_avg"].dtype == dtype
    # Back again, as far as narrow types let it.
    optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
    train(module, optimizer, range(5, 7))
    assert optimizer.state[module[0].weight]["step"].item() == 7
    if dtype == torch.bfloat16:
        assert optimizer.state[module[0].weight]["exp_avg"].dtype == torch.float32
        master = optimizer.state[module[0].weight]["master_param"]
        assert torch.equal(master.to(dtype), module[0].weight)
    else:
        assert "master_param" not in optimizer.state[module[0].weight]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0].__name__} {pair[2]}")
def test_the_state_dict_has_torchs_form(pair):
    ours, theirs = model(), model()
    optimizer, other = pair[0](ours.parameters(), **pair[2]), pair[1](theirs.parameters(), **pair[2])
    train(ours, optimizer, [0])
    train(theirs, other, [0])
    mine, its = optimizer.state_dict(), other.state_dict()
    assert mine["param_groups"] == its["param_groups"]
    filled = {index: state for index, state in its["state"].items() if state}
    assert mine["state"].keys() == filled.keys()
    for index, state in filled.items():
        assert mine["state"][index].keys() == state.keys()
        for key, value in state.items():
            assert type(mine["state"][index]) is dict
            assert mine["state"][index][key].dtype == value.dtype
            assert mine["state"][index][key].shape == value.shape
            assert mine["state"][index][key].device == value.device


def test_momentum_that_no_step_has_made_is_not_saved():
    param = torch.ones(3, requires_grad=True)
    optimizer = FusedSGD([param], lr=0.5, momentum=0.9, dampening=0.5, max_grad_norm=10.0)
    param.grad = torch.full((3,), torch.nan)
    optimizer.step()
    assert "momentum_buffer" not in optimizer.state_dict()["state"].get(0, {})
    again = FusedSGD([param], lr=0.5, momentum=0.9, dampening=0.5)
    again.load_state_dict(optimizer.state_dict())
    param.grad = torch.ones(3)
    again.step()  # as a first step, without dampening
    assert torch.equal(param.detach(), torch.full((3,), 0.5))


def test_states_on_an_arena_are_stored_once():
    module = nn.Sequential(*(nn.Linear(50, 50) for _ in range(10)))
    arena = Arena(module)
    optimizer = FusedAdam(module.parameters())
    for param in module.parameters():
        param.grad.fill_(1.0)
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    assert file.tell() < 2 * arena.layout.nbytes + 30_000


def test_old_state_dicts_with_numbers_as_steps():
    param = torch.ones(3, requires_grad=True)
    other = torch.optim.Adam([param])
    param.grad = torch.ones(3)
    other.step()
    state_dict = copy.deepcopy(other.state_dict())
    state_dict["state"][0]["step"] = 1
    del state_dict["param_groups"][0]["decoupled_weight_decay"]
    optimizer = FusedAdam([param])
    optimizer.load_state_dict(state_dict)
    optimizer.step()
    assert optimizer.state[param]["step"].item() == 2
    assert optimizer.state[param]["step"].dtype == torch.float32


def test_old_state_dicts_of_sgd():
    """From before torch 1.12: fewer options, and momentum that is None."""
    param, twin = (torch.ones(3, requires_grad=True) for _ in range(2))
    old = {
        "state": {0: {"momentum_buffer": None}},
        "param_groups": [
            {
                "lr": 0.5,
                "momentum": 0.9,
                "dampening": 0.5,
                "weight_decay": 0,
                "nesterov": False,
                "params": [0],
            }
        ],
    }
    optimizer, other = FusedSGD([param]), torch.optim.SGD([twin])
    for each, opt in ((param, optimizer), (twin, other)):
        opt.load_state_dict(old)
        for step in range(3):
            each.grad = torch.full((3,), step + 1.0)
            opt.step()
    torch.testing.assert_close(param, twin)


def test_adamw_stays_decoupled_whatever_is_loaded():
    param = torch.ones(3, requires_grad=True)
    optimizer = FusedAdamW([param])
    optimizer.load_state_dict(torch.optim.Adam([param]).state_dict())
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is True


def test_a_state_of_another_shape_is_refused():
    param = torch.ones(3, requires_grad=True)
    param.grad = torch.ones(3)
    optimizer = FusedAdam([param])
    optimizer.state[param] = {
        "step": torch.tensor(1.0),
        "exp_avg": torch.zeros(4),
        "exp_avg_sq": torch.zeros(3),
    }
    with pytest.raises(
        InputError, match=r"exp_avg of parameter 0 of group 0 has shape \[4\], expected \[3\]"
    ):
        optimizer.step()


@pytest.mark.cuda
@pytest.mark.parametrize("peer", [{"capturable": True}, {"fused": True}], ids=str)
def test_steps_counted_on_the_gpu_continue_there(cuda, peer):
    param = torch.ones(3, device=cuda, requires_grad=True)
    twin = torch.ones(3, device=cuda, requires_grad=True)
    other, optimizer = torch.optim.AdamW([param], **peer), FusedAdamW([twin])
    for step in range(6):
        param.grad = torch.full_like(param, step + 1.0)
        other.step()
        if step == 2:
            twin.data.copy_(param)
            optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
        elif step > 2:
            twin.grad = param.grad.clone()
            optimizer.step()
    assert optimizer.state[twin]["step"].device.type == "cuda"
    assert optimizer.state_dict()["state"][0]["step"].device.type == "cuda"
    assert optimizer.state[twin]["step"].item() == 6
    torch.testing.assert_close(param, twin)
