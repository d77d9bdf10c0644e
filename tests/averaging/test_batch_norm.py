"""Batch-norm statistics against those of the concatenated data in float64."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import ratfast
from ratfast import InputError
from ratfast.averaging.batch_norm import load_and_recompute, recompute_batch_norm, statistics_of
from ratfast.averaging.file_pool import FilePool
from ratfast.averaging.statistics import statistics_difference, warn_if_statistics_differ


def network():
    return nn.Sequential(
        nn.BatchNorm2d(3, momentum=0.3),
        nn.Conv2d(3, 4, 3),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.LazyLinear(5),
        nn.BatchNorm1d(5),
    )


def batches(sizes=(6, 2, 5, 1)):
    """Batches of very different means, and sizes that differ."""
    return [torch.randn(size, 3, 6, 6) * (k + 1) + 10 * k for k, size in enumerate(sizes)]


def test_statistics_of_the_concatenated_data(device):
    model = network()
    data = batches((6, 2, 5, 3))
    model(data[0])
    model = model.to(device).train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    parameters = copy.deepcopy(list(model.parameters()))
    assert recompute_batch_norm(model, [(x, None) for x in data]) == 4
    assert [module.training for module in model.modules()] == modes
    assert model[0].momentum == 0.3 and not model[0]._forward_pre_hooks
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), parameters, strict=True))

    model = model.cpu()
    everything = torch.cat(data).double()
    mean, var = everything.mean((0, 2, 3)), everything.var((0, 2, 3), unbiased=True)
    torch.testing.assert_close(model[0].running_mean.double(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model[0].running_var.double(), var, rtol=1e-6, atol=1e-6)
    # The second layer sees what the first makes of each batch by the batch's own statistics; no dropout.
    inner = copy.deepcopy(model).double()
    inner.eval()
    inner[0].train()
    entered = torch.cat([inner[:5](x.double()) for x in data])
    torch.testing.assert_close(model[5].running_mean.double(), entered.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model[5].running_var.double(), entered.var(0), rtol=1e-5, atol=1e-5)
    assert model[0].num_batches_tracked == model[5].num_batches_tracked == 4


def test_one_batch_is_what_torch_does():
    ours, data = network(), batches((8,))
    ours(data[0])
    theirs = copy.deepcopy(ours)
    theirs[2] = nn.Identity()  # torch leaves dropout on
    recompute_batch_norm(ours, data)
    update_bn(data, theirs)
    torch.testing.assert_close(ours[5].running_var, theirs[5].running_var)
    torch.testing.assert_close(ours[5].running_mean, theirs[5].running_mean, rtol=1e-5, atol=1e-5)


def test_first_batches_only():
    one, two, data = nn.BatchNorm2d(3), nn.BatchNorm2d(3), batches()
    assert recompute_batch_norm(one, iter(data), batches=2) == 2
    recompute_batch_norm(two, data[:2])
    assert torch.equal(one.running_var, two.running_var)


def test_half_precision_and_frozen_models():
    """Float16 inputs of mean 1000 and deviation 2: their squares would overflow."""
    layer = nn.BatchNorm2d(2).half().eval()
    data = [(torch.randn(64, 2, 4, 4) * 2 + 1000).half() for _ in range(3)]
    recompute_batch_norm(layer, data)
    everything = torch.cat(data).double()
    torch.testing.assert_close(layer.running_var.double(), everything.var((0, 2, 3)), rtol=1e-3, atol=0)
    assert not layer.training


def test_what_has_no_statistics_stays():
    assert recompute_batch_norm(nn.Linear(2, 2), []) == 0
    assert recompute_batch_norm(nn.BatchNorm1d(2, track_running_stats=False), []) == 0

    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x):
            return self.used(x)

    model = Partly()
    model.unused.running_mean.fill_(3)
    recompute_batch_norm(model, [torch.randn(4, 2)])
    assert model.unused.running_mean.tolist() == [3, 3] and model.unused.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "no batch"),
        ([{"x": 1}], "gave a dict"),
        ([torch.randn(0, 3, 2, 2)], "reached no"),
        ([torch.zeros(1, 3, 1, 1)], None),
    ],
)
def test_failures_leave_the_model_alone(loader, message):
    model = nn.Sequential(nn.BatchNorm2d(3)).eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((InputError, ValueError), match=message):  # torch refuses a batch of one value itself
        recompute_batch_norm(model, loader)
    torch.testing.assert_close(model.state_dict(), before)
    assert not model[0].training and model[0].momentum == 0.1


def test_average_with_statistics_of_its_own():
    members, data = [nn.Sequential(nn.BatchNorm2d(3)) for _ in range(2)], batches()
    recompute_batch_norm(members[0], data[:1])
    recompute_batch_norm(members[1], data[1:2])
    assert statistics_difference([statistics_of(member.state_dict()) for member in members])
    module = nn.Sequential(nn.BatchNorm2d(3))
    state = load_and_recompute(module, ratfast.average(members, buffers="keep"), data)
    everything = torch.cat(data).double()
    torch.testing.assert_close(
        state["0.running_mean"].double(), everything.mean((0, 2, 3)), rtol=1e-6, atol=1e-6
    )
    assert state["0.running_var"].data_ptr() == module[0].running_var.data_ptr()
    with pytest.raises(InputError, match="does not fit the module"):
        load_and_recompute(nn.BatchNorm2d(4), state, data)


def test_difference():
    states = [network()[0].state_dict() for _ in range(3)]

    def worst():
        return statistics_difference([statistics_of(state) for state in states])

    assert worst() is None
    states[2]["num_batches_tracked"] += 5
    assert worst() is None
    states[1]["running_mean"][0] = 0.5
    states[2]["running_var"][1] = 4.0
    states[1]["running_var"][1] = 2.0
    found = worst()
    assert (found.name, found.model, found.count, found.distance) == ("running_mean", 1, 2, math.inf)
    for state in states:
        state["running_mean"] += 2
    found = worst()
    assert (found.name, found.model, found.distance) == ("running_var", 2, 3.0)
    states[1]["running_mean"][2] = math.nan
    assert worst().distance == math.inf
    for state in states:
        state["running_mean"][2] = math.nan
    assert worst().name == "running_var" and worst().count == 2


def test_warning_names_the_worst():
    states = [{"bn.running_var": np.ones(2) * k, "bn.running_mean": np.ones(2)} for k in (1, 1, 3)]
    with pytest.warns(UserWarning, match="statistics") as caught:
        warn_if_statistics_differ(states, ["a.pt", "b.pt", "c.pt"])
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "'bn.running_var', by up to 2 of its largest value in c.pt" in message and "of a.pt" in message
    states[0]["bn.running_mean"] = np.zeros(2)
    with pytest.warns(UserWarning, match=r"'bn.running_mean' and 1 more, most in b\.pt; "):
        warn_if_statistics_differ(states, ["a.pt", "b.pt", "c.pt"])


def test_no_warning_where_all_agree(recwarn):
    warn_if_statistics_differ([{"bn.running_var": np.array([1.0, math.nan])}] * 2, ["a", "b"])
    warn_if_statistics_differ([{"w": np.ones(2)}, {"w": np.zeros(2)}], ["a", "b"])
    assert not recwarn


def kept(models, how, folder):
    if how == "average":
        ratfast.average(models, buffers="keep")
    elif how == "pool":
        ratfast.Pool.open(models, buffers="keep")
    else:
        paths = [folder / f"{index}.safetensors" for index in range(len(models))]
        for model, path in zip(models, paths, strict=True):
            ratfast.checkpoints.save(model.state_dict(), path)
        FilePool([ratfast.checkpoints.open_checkpoint(path) for path in paths], None, buffers="keep")


@pytest.mark.parametrize("how", ["average", "pool", "files"])
def test_averages_that_keep_what_differs_warn_once(tmp_path, how, recwarn):
    models = [nn.BatchNorm1d(2) for _ in range(3)]
    models[1].num_batches_tracked += 1
    kept(models, how, tmp_path)
    assert not recwarn
    models[2].running_var.fill_(4)
    kept(models, how, tmp_path)
    assert len(recwarn) == 1 and "'running_var', by up to 3" in str(recwarn[0].message)


def test_average_recomputes(device):
    data = batches((4, 5, 6))
    models = [network() for _ in range(3)]
    for model in models:
        model(data[0])
    models = [model.to(device).eval() for model in models]
    expected = copy.deepcopy(models[0])
    load_and_recompute(expected, ratfast.average(models, buffers="average"), data)
    out = copy.deepcopy(models[1])
    result = ratfast.average(models, buffers="recompute", out=out, loader=data)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(result[name], value)
        torch.testing.assert_close(out.state_dict()[name], value)


@pytest.mark.parametrize("arguments", [{}, {"loader": []}, {"out": {}}])
def test_recompute_needs_a_module_and_data(arguments):
    with pytest.raises(InputError, match="needs out, a module, and loader"):
        ratfast.average([network()], buffers="recompute", **arguments)
