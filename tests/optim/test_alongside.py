"""What goes along with a step: against torch's optimizers, `clip_grad_norm_` and the formulas of the averages."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn

from ratfast import InputError
from ratfast.arena import Arena
from ratfast.averaging import SWAD
from ratfast.ema import ModelEma
from ratfast.optim import FusedAdam, FusedAdamW, FusedSGD

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

KINDS = {FusedAdam: torch.optim.Adam, FusedAdamW: torch.optim.AdamW, FusedSGD: torch.optim.SGD}


def network(dtype=torch.float32, device="cpu"):
    torch.manual_seed(4)
    layers = [
        nn.Conv2d(2, 5, 3),
        nn.BatchNorm2d(5),
        nn.Flatten(),
        nn.Linear(20, 3),
        nn.Linear(3, 1, bias=False),
    ]
    return nn.Sequential(*layers).to(device, dtype).to(memory_format=torch.channels_last)


def gradients(model, step, scale=1.0):
    """The same random gradients for every model of the shape, of a norm that changes from step to step."""
    generator = torch.Generator().manual_seed(step)
    for param in model.parameters():
        value = (
            torch.randn(param.shape, generator=generator, dtype=torch.float64) * scale * 3.0 ** (step % 4 - 2)
        )
        value = value.to(param.device, param.dtype)
        if param.grad is None:
            param.grad = value
        else:
            param.grad.copy_(value)


def kept(model):
    return [param.detach().clone() for param in model.parameters()]


def assert_close(ours, theirs, **tolerance):
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.detach().to(its.dtype), its.detach(), **tolerance)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(data=st.data())
def test_any_combination_is_the_separate_passes(data):
    """One step of ours against unscaling, clipping, torch's step, and an average after it, each by itself."""
    kind = data.draw(st.sampled_from(list(KINDS)))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    options = {
        "lr": data.draw(st.sampled_from([1e-3, 0.03])),
        "weight_decay": data.draw(st.sampled_from([0.0, 0.1])),
        "maximize": data.draw(st.booleans()),
    }
    if kind is FusedSGD:
        options["momentum"] = data.draw(st.sampled_from([0.0, 0.8]))
        options["nesterov"] = options["momentum"] > 0 and data.draw(st.booleans())
        options["dampening"] = 0.0 if options["nesterov"] else data.draw(st.sampled_from([0.0, 0.3]))
    else:
        options["amsgrad"] = data.draw(st.booleans())
        options["betas"] = data.draw(st.sampled_from([(0.9, 0.999), (0.5, 0.9)]))
        options["eps"] = 1e-5  # rounding of tiny gradients is not what is tested here
    limit = data.draw(st.sampled_from([None, 0.5, 1e6, math.inf]))
    average = data.draw(st.sampled_from([None, "ema", "swa"]))
    scale = data.draw(st.sampled_from([None, 1024.0, 3.0]))
    zero = data.draw(st.booleans())
    broken = data.draw(st.sampled_from([None, 0, 2])) if limit is not None else None

    ours, theirs = network(dtype), network(dtype)
    if data.draw(st.booleans()):
        Arena(ours)
    groups = [list(theirs[:2].parameters()), list(theirs[2:].parameters())]
    other = KINDS[kind]([{"params": groups[0], "lr": 2e-3}, {"params": groups[1]}], **options, foreach=False)
    optimizer = kind(
        [{"params": ours[:2].parameters(), "lr": 2e-3}, {"params": ours[2:].parameters()}],
        **options,
        max_grad_norm=limit,
        ema_decay=0.7 if average == "ema" else None,
        swa=average == "swa",
        zero_grads=zero,
    )
    means = [param.detach().double().clone() for param in theirs.parameters()]
    averaged = 0
    for step in range(5):
        gradients(ours, step, 1.0 if scale is None else scale)
        gradients(theirs, step)
        if step == broken:
            ours[0].weight.grad[1, 0, 2] = math.inf
        else:
            if limit is not None:
                nn.utils.clip_grad_norm_(theirs.parameters(), limit)
            other.step()
            rate = {"ema": 0.3, "swa": 1 / (averaged + 1), None: 0.0}[average]
            means = [
                mean + rate * (p.double() - mean) for mean, p in zip(means, theirs.parameters(), strict=True)
            ]
            averaged += 1
        if scale is not None:
            optimizer.grad_scale = torch.tensor(scale)
            if limit is None:
                optimizer.found_inf = torch.tensor(0.0)
        optimizer.step()
        assert all((param.grad == 0).all() for param in ours.parameters()) == zero
    tolerance = {"rtol": 1e-10, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-5}
    assert_close(ours.parameters(), theirs.parameters(), **tolerance)
    if average is not None:
        assert_close([optimizer.state[p]["averaged_param"] for p in ours.parameters()], means, **tolerance)
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        for key, value in other.state[its].items():
            torch.testing.assert_close(optimizer.state[mine].get(key, value), value, **tolerance)


@pytest.mark.parametrize("on_arena", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masters(kind, on_arena, dtype, device):
    """The model's weights are its masters, rounded; the masters are those that torch steps in float32."""
    ours, theirs = network(dtype, device), network(dtype, device).float()
    arena = Arena(ours) if on_arena else None
    options = {"momentum": 0.9} if kind is FusedSGD else {"eps": 1e-4}
    optimizer = kind(ours.parameters(), lr=1e-3, **options, master_weights=True, ema_decay=0.9)
    other = KINDS[kind](theirs.parameters(), lr=1e-3, **options)
    means = [param.detach().clone() for param in theirs.parameters()]
    for step in range(40):
        gradients(ours, step)
        for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
            its.grad = mine.grad.float()
        optimizer.step()
        other.step()
        means = [0.9 * mean + 0.1 * p.detach() for mean, p in zip(means, theirs.parameters(), strict=True)]
    masters = [optimizer.state[param]["master_param"] for param in ours.parameters()]
    assert all(master.dtype == torch.float32 for master in masters)
    assert_close(masters, theirs.parameters(), rtol=1e-4, atol=1e-6)
    for param, master in zip(ours.parameters(), masters, strict=True):
        assert torch.equal(param, master.to(dtype))
    assert_close(
        [optimizer.state[p]["averaged_param"] for p in ours.parameters()], means, rtol=1e-4, atol=1e-6
    )
    assert arena is None or arena.is_intact()
    # Without masters the small steps round away.
    assert any(not torch.equal(master, master.to(dtype).float()) for master in masters)


def test_masters_follow_weights_changed_from_outside():
    ours = network(torch.bfloat16)
    optimizer = FusedSGD(ours.parameters(), lr=1e-4, master_weights=True)
    gradients(ours, 0)
    optimizer.step()
    weight, other = ours[3].weight, ours[0].weight
    before = optimizer.state[other]["master_param"].clone()
    with torch.no_grad():
        weight.fill_(7.0)
        other.copy_(other.clone())  # changed to what it was: the master keeps its digits
    gradients(ours, 1)
    optimizer.step()
    expected = 7.0 - 1e-4 * weight.grad.float()
    torch.testing.assert_close(optimizer.state[weight]["master_param"], expected)
    expected = before - 1e-4 * other.grad.float()
    torch.testing.assert_close(optimizer.state[other]["master_param"], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("on_arena", [False, True])
def test_the_fused_ema_is_that_of_model_ema(on_arena):
    model = network()
    if on_arena:
        Arena(model)
    optimizer = FusedAdamW(model.parameters(), lr=0.01, ema_decay=0.9)
    ema = ModelEma(model, decay=0.9)
    for step in range(10):
        gradients(model, step)
        if step == 4:
            ema.decay = optimizer.ema_decay = 0.5
        if step == 6:
            model[3].weight.grad = None  # it stands still, its average goes on
        optimizer.step()
        ema.update(model)
    found = optimizer.averaged_state_dict(model)
    expected = ema.module.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7, msg=name)


def test_the_fused_mean_is_that_of_averaged_model():
    model = network()
    optimizer = FusedSGD(model.parameters(), lr=0.01, swa=True)
    for start in (0, 4):
        optimizer.restart_average()
        averaged = AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())
        for step in range(start, start + 7):
            gradients(model, step)
            optimizer.step()
            averaged.update_parameters(model)
        found = optimizer.averaged_state_dict(model)
        for name, param in averaged.module.named_parameters():
            torch.testing.assert_close(found[name], param.detach(), rtol=1e-6, atol=1e-7)
        count = optimizer.state[model[0].weight]["n_averaged"]
        assert count.item() == averaged.n_averaged.item() == 7


def test_swad_takes_the_means_between_evaluations():
    losses = [2.0, 1.5, 1.0, 1.1, 1.2, 1.25, 1.5, 1.6, 1.7, 1.8, 1.9]
    model = network()
    optimizer = FusedSGD(model.parameters(), lr=0.01, swa=True)
    dense, fused = SWAD(n_end=3), SWAD(n_end=3)
    for evaluation, loss in enumerate(losses):
        for step in range(5):
            gradients(model, 5 * evaluation + step)
            optimizer.step()
            dense.update(model, val_loss=loss if step == 4 else None)
        fused.update(optimizer.averaged_state_dict(model), val_loss=loss)
        optimizer.restart_average()
    assert dense.ended and fused.ended
    assert dense.span[2] == 5 * fused.span[2]
    expected, found = dense.average(), fused.average()
    for name, _ in model.named_parameters():
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_averages_reach_the_model_and_leave_it():
    model = network()
    arena = Arena(model)
    optimizer = FusedAdam(model.parameters(), lr=0.1, ema_decay=0.5)
    with pytest.raises(InputError, match="no average yet"), optimizer.averaged_parameters():
        pass
    with pytest.raises(InputError, match="has an average yet"):
        optimizer.averaged_state_dict(model)
    for step in range(3):
        gradients(model, step)
        optimizer.step()
    before = kept(model)
    averages = optimizer.averaged_state_dict(model)
    with optimizer.averaged_parameters():
        for name, param in model.named_parameters():
            assert torch.equal(param, averages[name])
        assert arena.is_intact()
        with pytest.raises(InputError, match="the parameters hold their averages"):
            optimizer.step()
    for mine, its in zip(before, model.parameters(), strict=True):
        assert torch.equal(mine, its)
    other = network()
    other.load_state_dict(averages)
    optimizer.restart_average()
    for param in model.parameters():
        assert torch.equal(optimizer.state[param]["averaged_param"], param)


def test_the_norm_is_at_hand_and_gradients_are_left():
    model = network()
    optimizer = FusedAdamW(model.parameters(), max_grad_norm=0.1)
    assert optimizer.grad_norm is None
    gradients(model, 0)
    before = [param.grad.clone() for param in model.parameters()]
    expected = nn.utils.get_total_norm(before)
    optimizer.step()
    assert optimizer.grad_norm.item() == pytest.approx(expected.item(), rel=1e-5)
    for param, grad in zip(model.parameters(), before, strict=True):
        assert torch.equal(param.grad, grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on_arena", [False, True])
def test_what_is_not_finite_changes_nothing(kind, on_arena):
    model = network()
    if on_arena:
        Arena(model)
    options = {"momentum": 0.9, "dampening": 0.5} if kind is FusedSGD else {"amsgrad": True}
    optimizer = kind(model.parameters(), lr=0.1, **options, max_grad_norm=1.0, swa=True, zero_grads=True)
    twin_model = copy.deepcopy(model)
    twin = kind(twin_model.parameters(), lr=0.1, **options, max_grad_norm=1.0, swa=True)
    for step in range(6):
        gradients(model, step)
        if step in (0, 3):
            before = kept(model)
            model[3].bias.grad[1] = math.nan
            optimizer.step()
            for mine, its in zip(before, model.parameters(), strict=True):
                assert torch.equal(mine, its)
            assert math.isnan(optimizer.grad_norm)
            optimizer.zero_grad()
        else:
            gradients(twin_model, step)
            optimizer.step()
            twin.step()
    for mine, its in zip(model.parameters(), twin_model.parameters(), strict=True):
        assert torch.equal(mine, its)
        for key, value in twin.state[its].items():
            assert torch.equal(optimizer.state[mine][key], value), key


def test_zeros_are_found_and_not_written_again(monkeypatch):
    model = network()
    arena = Arena(model)
    optimizer = FusedSGD(model.parameters(), lr=0.1, zero_grads=True)
    gradients(model, 0)
    optimizer.step()
    version = arena.grads_row()._version
    optimizer.zero_grad()
    assert arena.grads_row()._version == version
    model[3].weight.grad.add_(1.0)
    optimizer.zero_grad()
    assert bool((arena.grads_row() == 0).all())

    model = network()
    optimizer = FusedSGD(model.parameters(), lr=0.1, zero_grads=True)
    gradients(model, 0)
    model[0].weight.grad = model[0].weight.grad.contiguous()  # not as the parameter lies
    grads = [param.grad for param in model.parameters()]
    optimizer.step()
    optimizer.zero_grad()
    for param, grad in zip(model.parameters(), grads, strict=True):
        assert param.grad is grad
        assert bool((grad == 0).all())
    grads[0].add_(1.0)
    optimizer.zero_grad()
    assert model[0].weight.grad is None
    assert model[3].weight.grad is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_grad_norm": 0.0}, "Invalid max_grad_norm value: 0.0"),
        ({"max_grad_norm": math.nan}, "Invalid max_grad_norm value: nan"),
        ({"ema_decay": 1.5}, "Invalid ema_decay value: 1.5"),
        ({"ema_decay": math.nan}, "Invalid ema_decay value: nan"),
        ({"ema_decay": 0.9, "swa": True}, "ema_decay and swa are both given"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_options(kind, options, message):
    param = torch.zeros(2, requires_grad=True)
    with pytest.raises(ValueError, match=message):
        kind([param], **options)
    optimizer = kind([param], swa="ema_decay" in options and "swa" in options)
    for name, value in options.items():
        if name != "swa":
            with pytest.raises(ValueError, match="Invalid" if "swa" not in options else "both"):
                setattr(optimizer, name, value)
            assert getattr(optimizer, name) is None
    with pytest.raises(ValueError, match="max_grad_norm is for all groups together"):
        kind([{"params": [param], "max_grad_norm": 1.0}])
