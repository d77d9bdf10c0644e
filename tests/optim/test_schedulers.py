"""Every learning-rate scheduler of torch drives our optimizers as it drives torch's."""

import copy

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from ratfast.optim import FusedAdamW, FusedSGD

SCHEDULERS = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o: schedulers.StepLR(o, 3),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, total_iters=4),
    "LinearLR": lambda o: schedulers.LinearLR(o),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 8, 2.0),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 4),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.001, 0.1, 3),  # cycles momentum or the first beta too
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=12),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=1),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.1, 2), schedulers.ExponentialLR(o, 0.9)]
    ),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, 1.0, 3), schedulers.ExponentialLR(o, 0.9)], [3]
    ),
}
PAIRS = [(FusedAdamW, torch.optim.AdamW, {}), (FusedSGD, torch.optim.SGD, {"momentum": 0.9})]


def test_none_is_forgotten():
    known = {name for name in dir(schedulers) if isinstance(getattr(schedulers, name), type)}
    kinds = {
        name
        for name in known
        if issubclass(getattr(schedulers, name), schedulers.LRScheduler) and name[0] != "_"
    }
    assert kinds - {"LRScheduler", "SWALR"} <= SCHEDULERS.keys()


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
@pytest.mark.parametrize("name", [*SCHEDULERS, "SWALR"])
def test_scheduler(name, pair, tensor_lr):
    make = SCHEDULERS.get(name, lambda o: torch.optim.swa_utils.SWALR(o, 0.05, 3))
    ours, theirs = ([torch.ones(5, requires_grad=True), torch.ones(3, requires_grad=True)] for _ in range(2))

    def optimizer_of(kind, params):
        lr = torch.tensor(0.01) if tensor_lr else 0.01
        groups = [{"params": params[:1]}, {"params": params[1:]}]
        return kind(groups, lr=lr, **pair[2])

    optimizers = [optimizer_of(pair[0], ours), optimizer_of(pair[1], theirs)]
    drivers = [make(optimizer) for optimizer in optimizers]
    for step in range(10):
        if step == 5:  # saved, and loaded into new ones
            pairs = zip(optimizers, drivers, strict=True)
            states = [
                copy.deepcopy((optimizer.state_dict(), driver.state_dict())) for optimizer, driver in pairs
            ]
            optimizers = [optimizer_of(pair[0], ours), optimizer_of(pair[1], theirs)]
            drivers = [make(optimizer) for optimizer in optimizers]
            for optimizer, driver, (state, driver_state) in zip(optimizers, drivers, states, strict=True):
                driver.load_state_dict(driver_state)
                optimizer.load_state_dict(state)
        for params, optimizer, driver in zip((ours, theirs), optimizers, drivers, strict=True):
            for param in params:
                param.grad = torch.linspace(-1, 1, len(param)) * (step + 1)
            optimizer.step()
            driver.step(1.0) if name == "ReduceLROnPlateau" else driver.step()
        rates = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in optimizers]
        assert rates[0] == pytest.approx(rates[1])
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)
