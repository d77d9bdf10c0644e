"""Loss scaling: torch's GradScaler and ours, by hand and fused, against torch.optim."""

import math

import pytest
import torch
from torch import nn

from ratfast.arena import Arena
from ratfast.optim import FusedAdam, FusedAdamW, FusedSGD, GradScaler

PAIRS = [(FusedAdam, torch.optim.Adam), (FusedAdamW, torch.optim.AdamW), (FusedSGD, torch.optim.SGD)]


def network(device):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 2)).to(device)


def scale_of(scaler):
    return scaler.get_scale(), scaler._get_growth_tracker()


def train(model, optimizer, scaler, *, by_hand=None, steps=10, broken=(4, 7)):
    """Trains with a gradient that is not finite at some steps; returns whether each step changed anything."""
    changed = []
    device = next(model.parameters()).device
    for seed in range(steps):
        inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed)).to(device)
        if seed in broken:
            inputs[0, 0] = math.inf
        before = [param.detach().clone() for param in model.parameters()]
        optimizer.zero_grad()
        scaler.scale(model[2](model[0](inputs)).square().mean()).backward()
        if by_hand is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), by_hand)
        scaler.step(optimizer)
        scaler.update()
        changed.append(not all(map(torch.equal, before, model.parameters())))
    return changed


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
@pytest.mark.parametrize("scaler_kind", [torch.amp.GradScaler, GradScaler])
@pytest.mark.parametrize("way", ["plain", "unscale and clip by hand", "clip in the step"])
@pytest.mark.parametrize("on_arena", [False, True])
def test_the_same_training_as_torchs(pair, scaler_kind, way, on_arena, device):
    ours, theirs = network(device), network(device)
    if on_arena:
        Arena(ours)
    fused = {"max_grad_norm": 0.05} if way == "clip in the step" else {}
    optimizer, other = pair[0](ours.parameters(), lr=0.01, **fused), pair[1](theirs.parameters(), lr=0.01)
    settings = {"init_scale": 2.0**8, "growth_interval": 3}
    scalers = scaler_kind(device.type, **settings), torch.amp.GradScaler(device.type, **settings)
    by_hand = 0.05 if way == "unscale and clip by hand" else None
    changed = train(ours, optimizer, scalers[0], by_hand=by_hand)
    train(theirs, other, scalers[1], by_hand=None if way == "plain" else 0.05)
    assert changed == [seed not in (4, 7) for seed in range(10)]
    assert scale_of(scalers[0]) == scale_of(scalers[1])
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)
        if "step" in other.state[its]:
            assert optimizer.state[mine]["step"].item() == other.state[its]["step"].item() == 8
    assert not hasattr(optimizer, "grad_scale")


def test_our_scaler_looks_at_the_gradients_once(monkeypatch):
    model = network("cpu")
    optimizer, scaler = FusedAdam(model.parameters()), GradScaler("cpu")

    def refused(*args):
        raise AssertionError("a pass of its own")

    monkeypatch.setattr(torch, "_amp_foreach_non_finite_check_and_unscale_", refused)
    train(model, optimizer, scaler, steps=3, broken=(1,))
    assert optimizer.grad_norm.item() > 0


def test_our_scaler_is_torchs_for_other_optimizers_and_when_disabled():
    for enabled in (True, False):
        ours, theirs = network("cpu"), network("cpu")
        for model, kind in ((ours, GradScaler), (theirs, torch.amp.GradScaler)):
            scaler = kind("cpu", init_scale=16.0, enabled=enabled)
            train(model, torch.optim.SGD(model.parameters(), lr=0.1), scaler, broken=())
        for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(mine, its)
    model = network("cpu")
    train(model, FusedSGD(model.parameters(), lr=0.1), GradScaler("cpu", enabled=False), broken=())


def test_misuse_is_refused_as_in_torch():
    model = network("cpu")
    optimizer, scaler = FusedAdam(model.parameters()), GradScaler("cpu")
    with pytest.raises(AssertionError, match="_scale is None"):
        scaler.step(optimizer)
    scaler.scale(model(torch.ones(1, 6)).sum()).backward()
    with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
        scaler.step(optimizer, closure=lambda: None)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="already been called since the last update"):
        scaler.step(optimizer)
    scaler.update()


def test_two_optimizers_under_one_scaler():
    model = network("cpu")
    optimizers = [FusedAdam(model[0].parameters()), FusedSGD(model[2].parameters())]
    scaler = GradScaler("cpu", init_scale=64.0)
    for broken in (False, True):
        scaler.scale(model(torch.ones(1, 6)).sum()).backward()
        if broken:
            model[2].bias.grad[0] = math.nan
        before = [param.detach().clone() for param in model.parameters()]
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        same = list(map(torch.equal, before, model.parameters()))
        assert same == [False, False, broken, broken]
    assert scaler.get_scale() == 32.0
