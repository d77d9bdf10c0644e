"""What torch.optim.Optimizer promises: groups, closures, schedulers, hooks, scaling, copies, refusals."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ratfast.errors import InputError
from ratfast.optim import FusedAdam, FusedAdamW


def pair_of_models():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 2))
    return model, copy.deepcopy(model)


def train_step(model, optimizer, seed):
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    loss = model(inputs).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def assert_models_close(one, other):
    for mine, its in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-7)


def test_groups_with_options_of_their_own():
    ours, theirs = pair_of_models()

    def groups(model):
        return [
            {"params": model[0].parameters(), "lr": 0.1, "betas": (0.5, 0.6)},
            {"params": model[2].parameters()},
        ]

    optimizer, other = FusedAdamW(groups(ours), lr=0.01), torch.optim.AdamW(groups(theirs), lr=0.01)
    for seed in range(10):
        train_step(ours, optimizer, seed)
        train_step(theirs, other, seed)
    assert_models_close(ours, theirs)


def test_add_param_group_between_steps():
    ours, theirs = pair_of_models()
    optimizer = FusedAdam(ours[2].parameters(), lr=0.01)
    other = torch.optim.Adam(theirs[2].parameters(), lr=0.01)
    for seed in range(10):
        if seed == 5:
            optimizer.add_param_group({"params": list(ours[0].parameters()), "lr": 0.1})
            other.add_param_group({"params": list(theirs[0].parameters()), "lr": 0.1})
        train_step(ours, optimizer, seed)
        train_step(theirs, other, seed)
    assert_models_close(ours, theirs)


def test_closure():
    model, _ = pair_of_models()
    optimizer = FusedAdam(model.parameters())
    inputs = torch.randn(8, 6)

    def closure():
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(5)]
    assert losses[-1] < losses[0]
    assert optimizer.step() is None


def test_learning_rate_schedulers():
    ours, theirs = pair_of_models()
    optimizer, other = FusedAdamW(ours.parameters(), lr=0.1), torch.optim.AdamW(theirs.parameters(), lr=0.1)
    schedules = [torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20) for o in (optimizer, other)]
    for seed in range(20):
        train_step(ours, optimizer, seed)
        train_step(theirs, other, seed)
        if seed < 19:
            for schedule in schedules:
                schedule.step()
    assert_models_close(ours, theirs)


def test_tensor_learning_rate_is_read_at_each_step():
    param = torch.zeros(3, requires_grad=True)
    lr = torch.tensor(0.5)
    optimizer = FusedAdam([param], lr=lr, eps=0)
    param.grad = torch.ones(3)
    optimizer.step()
    lr.fill_(0.0)
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((3,), -0.5))


def test_hooks_run_in_order():
    param = torch.zeros(3, requires_grad=True)
    param.grad = torch.ones(3)
    optimizer = FusedAdam([param])
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append(("pre", param[0].item())))
    optimizer.register_step_post_hook(lambda *_: calls.append(("post", param[0].item())))
    optimizer.step()
    assert [name for name, _ in calls] == ["pre", "post"]
    assert calls[0][1] == 0.0
    assert calls[1][1] != 0.0


def test_hooks_of_all_optimizers_and_profiles_see_a_step():
    model, _ = pair_of_models()
    optimizer, seen = FusedAdamW(model.parameters()), []
    handle = register_optimizer_step_post_hook(lambda *args: seen.append(args[0]))
    try:
        train_step(model, optimizer, 0)
    finally:
        handle.remove()
    train_step(model, optimizer, 1)
    assert seen == [optimizer]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train_step(model, optimizer, 2)
    names = {event.name for event in profile.events()}
    assert {"Optimizer.step#FusedAdamW.step", "ratfast::adam_step_"} <= names


def test_parameters_without_gradient_are_skipped():
    ours = [torch.ones(3, requires_grad=True) for _ in range(3)]
    theirs = [torch.ones(3, requires_grad=True) for _ in range(3)]
    optimizer, other = FusedAdamW(ours, lr=0.1), torch.optim.AdamW(theirs, lr=0.1)
    for present in ([0], [0, 1], [1], [0, 1, 2]):  # so the numbers of steps come to differ
        for index in range(3):
            for params in (ours, theirs):
                params[index].grad = torch.full((3,), float(index + 1)) if index in present else None
        optimizer.step()
        other.step()
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its)
        assert optimizer.state[mine]["step"] == other.state[its]["step"]
    FusedAdam(ours).state_dict()
    optimizer.zero_grad()
    before = [param.clone() for param in ours]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, before, strict=True))


def test_grad_scaler_unscales_and_skips():
    ours, theirs = pair_of_models()
    optimizer, other = FusedAdam(ours.parameters(), lr=0.01), torch.optim.Adam(theirs.parameters(), lr=0.01)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=3) for _ in range(2)]
    for seed in range(10):
        inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
        if seed == 4:
            inputs[0, 0] = float("inf")
        for model, opt, scaler in ((ours, optimizer, scalers[0]), (theirs, other, scalers[1])):
            before = [param.clone() for param in model.parameters()]
            opt.zero_grad()
            scaler.scale(model[2](model[0](inputs)).square().mean()).backward()
            scaler.step(opt)
            scaler.update()
            unchanged = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
            assert unchanged == (seed == 4)
    assert scalers[0].get_scale() == scalers[1].get_scale()
    assert_models_close(ours, theirs)
    assert optimizer.state[ours[0].weight]["step"].item() == 9


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_continue_alike_and_apart(duplicate):
    model, _ = pair_of_models()
    optimizer = FusedAdamW(model.parameters(), lr=0.01)
    for seed in range(3):
        train_step(model, optimizer, seed)
    twin = duplicate(optimizer)
    assert type(twin) is FusedAdamW
    params, others = list(model.parameters()), twin.param_groups[0]["params"]
    for step in range(3):
        for mine, its in zip(params, others, strict=True):
            mine.grad = torch.full_like(mine, step + 1.0)
            its.grad = torch.full_like(mine, step + 1.0)
        optimizer.step()
        twin.step()
    for mine, its in zip(params, others, strict=True):
        assert mine is not its
        assert torch.equal(mine, its)
        assert twin.state[its]["step"].item() == 6


def test_autograd_sees_the_step():
    weight = torch.ones(3, requires_grad=True)
    loss = (weight * weight).sum()
    weight.grad = torch.ones(3)
    FusedAdam([weight]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("extras", [{}, {"max_grad_norm": 1.0, "ema_decay": 0.9}], ids=str)
def test_gradients_are_not_kept_alive(extras):
    params = [
        torch.ones(3, requires_grad=True),
        torch.ones(3, 4).t().requires_grad_(),
        torch.ones(8)[::2].detach(),
    ]
    optimizer = FusedAdam([param.requires_grad_() for param in params], **extras)
    for _ in range(2):
        for param in params:
            param.grad = torch.ones(param.shape)
        alive = [weakref.ref(param.grad) for param in params]
        optimizer.step()
        optimizer.zero_grad()
        gc.collect()
        assert [ref() for ref in alive] == [None] * 3


def test_data_replaced_between_steps_is_stepped():
    ours, theirs = pair_of_models()
    optimizer, other = FusedAdam(ours.parameters(), lr=0.1), torch.optim.Adam(theirs.parameters(), lr=0.1)
    for seed in range(6):
        if seed == 3:
            for model in (ours, theirs):
                model[0].weight.data = model[0].weight.data.t().contiguous().t() * 0.5
        train_step(ours, optimizer, seed)
        train_step(theirs, other, seed)
    assert_models_close(ours, theirs)


def test_states_replaced_or_cleared_from_outside():
    ours, theirs = pair_of_models()
    optimizer, other = FusedAdam(ours.parameters(), lr=0.1), torch.optim.Adam(theirs.parameters(), lr=0.1)
    for seed in range(9):
        for model, opt in ((ours, optimizer), (theirs, other)):
            if seed == 3:
                opt.state[model[0].weight]["exp_avg"] = torch.full_like(model[0].weight, 0.1)
            if seed == 5:
                opt.state.clear()
            if seed == 7:
                opt.state[model[0].weight]["step"] = torch.tensor(40.0)
            train_step(model, opt, seed)
    assert_models_close(ours, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"lr": torch.zeros(2)}, "Tensor lr must be 1-element"),
        ({"eps": -1e-8}, "Invalid epsilon value"),
        ({"betas": (1.0, 0.0)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, float("nan"))}, "Invalid beta parameter at index 1: nan"),
        ({"weight_decay": -1}, "Invalid weight_decay value: -1"),
        ({"foreach": True}, "does not support foreach=True, expected None or False"),
        ({"fused": False}, "does not support fused=False, expected None or True"),
        ({"differentiable": True}, "does not support differentiable=True, expected False"),
    ],
)
@pytest.mark.parametrize("kind", [FusedAdam, FusedAdamW])
def test_arguments_are_refused_by_name(kind, options, message):
    param = torch.zeros(2, requires_grad=True)
    with pytest.raises(ValueError, match=message):
        kind([param], **options)
    optimizer = kind([torch.zeros(1, requires_grad=True)])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [param], **options})
    assert len(optimizer.param_groups) == 1


def test_the_switches_that_make_sense_are_accepted():
    FusedAdamW([torch.zeros(2)], foreach=False, fused=True, capturable=True, differentiable=False)


def test_sparse_gradients_are_refused_by_name():
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = FusedAdam([("table.weight", embedding.weight)])
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match=r"the gradient of table\.weight is sparse"):
        optimizer.step()
    embedding.weight.grad = embedding.weight.grad.to_dense()
    optimizer.step()
    optimizer.zero_grad()
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match=r"the gradient of table\.weight is sparse"):
        optimizer.step()


@pytest.mark.cuda
def test_capture_is_refused(cuda):
    param = torch.zeros(8, device=cuda, requires_grad=True)
    param.grad = torch.ones_like(param)
    optimizer = FusedAdam([param])
    optimizer.step()
    torch.cuda.synchronize()
    with pytest.raises(InputError, match="cannot be captured"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


def test_complex_parameters_are_refused_by_name():
    param = torch.zeros(2, dtype=torch.complex64, requires_grad=True)
    param.grad = torch.ones_like(param)
    with pytest.raises(InputError, match="parameter 1 of group 0 is complex64"):
        FusedAdam([torch.zeros(1, requires_grad=True), param]).step()
