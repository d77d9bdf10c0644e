"""State dicts go to torch.optim and come back, and training continues as if nothing had happened."""

import copy
import io

import pytest
import torch
from torch import nn

from ratfast.arena import Arena
from ratfast.errors import InputError
from ratfast.optim import FusedAdam, FusedAdamW

PAIRS = [(FusedAdam, torch.optim.Adam), (FusedAdamW, torch.optim.AdamW)]


def model():
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(20, 3)).to(
        memory_format=torch.channels_last
    )


def train(module, optimizer, seeds):
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        optimizer.zero_grad()
        module(torch.randn(4, 2, 4, 4, generator=generator)).square().mean().backward()
        optimizer.step()


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(one, other, **tolerance):
    for mine, its in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, its, **tolerance)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("on_arena", [False, True])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
@pytest.mark.parametrize("peer", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_torch_continues_ours(pair, peer, on_arena, amsgrad):
    module = model()
    arena = Arena(module) if on_arena else None
    optimizer = pair[0](module.parameters(), lr=0.01, amsgrad=amsgrad)
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
    assert [state["step"].item() for state in other.state.values()] == [12.0] * 4
    assert arena is None or arena.is_intact()


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("on_arena", [False, True])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
@pytest.mark.parametrize("peer", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_we_continue_torch(pair, peer, on_arena, amsgrad):
    module = model()
    other = pair[1](module.parameters(), lr=0.01, amsgrad=amsgrad, **peer)
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
    assert [state["step"].item() for state in optimizer.state.values()] == [12.0] * 4
    assert arena is None or arena.is_intact()


def test_saving_and_loading_changes_nothing_to_the_bit():
    module = model()
    Arena(module)
    optimizer = FusedAdamW(module.parameters(), lr=0.01)
    train(module, optimizer, range(4))
    twin = model()
    twin.load_state_dict(module.state_dict())
    Arena(twin)
    other = FusedAdamW(twin.parameters())
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    train(module, optimizer, range(4, 9))
    train(twin, other, range(4, 9))
    assert_same(module, twin, rtol=0, atol=0)


def test_the_state_dict_has_torchs_form():
    ours, theirs = model(), model()
    optimizer, other = FusedAdamW(ours.parameters()), torch.optim.AdamW(theirs.parameters())
    train(ours, optimizer, [0])
    train(theirs, other, [0])
    mine, its = optimizer.state_dict(), other.state_dict()
    assert mine["param_groups"] == its["param_groups"]
    assert mine["state"].keys() == its["state"].keys()
    for index, state in its["state"].items():
        assert mine["state"][index].keys() == state.keys()
        for key, value in state.items():
            assert mine["state"][index][key].dtype == value.dtype
            assert mine["state"][index][key].shape == value.shape
            assert mine["state"][index][key].device == value.device


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
    with pytest.raises(InputError, match=r"exp_avg of parameter 0 of group 0 has shape \[4\], expected \[3\]"):
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
