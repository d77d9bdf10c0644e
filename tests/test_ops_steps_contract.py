"""What the steps refuse, and how they behave towards autograd and the compiler."""

import pytest
import torch
from torch.library import opcheck

from ratfast import native, ops

ADAM = torch.ops.ratfast.adam_step_.default
SGD = torch.ops.ratfast.sgd_step_.default
NORM = torch.ops.ratfast.gradient_norm_.default
NUMBERS = {
    "workspace": None, "multiplier": None, "found_inf": None, "lr_tensor": None, "average_weight_tensor": None,
    "lr": 0.1, "average_weight": 0.1, "zero_grads": False, "weight_decay": 0.1, "maximize": False,
}  # fmt: skip
ADAM_OPTIONS = NUMBERS | {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "decoupled": True, "amsgrad": False}
SGD_OPTIONS = NUMBERS | {"momentum": 0.9, "dampening": 0.0, "nesterov": True}
BASE = torch.ones(100)


def ones(*shape, **kwargs):
    return torch.ones(*shape, **kwargs)


REFUSED = [
    ({"grads": []}, ValueError, "grads has 0 tensors"),
    ({"steps": [1]}, TypeError, "steps is a list"),
    ({"steps": torch.zeros(2)}, ValueError, "steps has shape"),
    ({"steps": torch.zeros(1, dtype=torch.int64)}, TypeError, "steps is torch.int64"),
    ({"steps": torch.zeros(1, device="meta")}, ValueError, "steps are on meta"),
    ({"grads": [ones(3, 2)]}, ValueError, "has shape"),
    ({"grads": [ones(3, 2).t()]}, ValueError, "has strides"),
    ({"grads": [ones(2, 3).to_sparse()]}, TypeError, r"grads\[0\] is sparse"),
    ({"grads": [ones(2, 3, dtype=torch.complex64)]}, TypeError, r"grads\[0\] is complex64"),
    ({"grads": [ones(2, 3, device="meta")]}, ValueError, "is on meta"),
    ({"params": [ones(2, 6)[:, ::2]], "grads": [ones(2, 6)[:, ::2]]}, ValueError, "has strides|not dense"),
    ({"states": [ones(2, 3, dtype=torch.int32)]}, TypeError, r"\[0\] is int32"),
    ({"states": [ones(2, 3, device="meta")]}, ValueError, "is on meta"),
    ({"averages": [ones(2, 3), ones(2, 3)]}, ValueError, "averages has 2 tensors"),
    ({"averages": [ones(2, 3, dtype=torch.int64)]}, TypeError, r"averages\[0\] is int64"),
    ({"copies": [ones(3, 2).t()]}, ValueError, r"copies\[0\] has strides"),
    ({"multiplier": ones(2)}, ValueError, "multiplier has shape"),
    ({"multiplier": ones((), dtype=torch.int64)}, TypeError, "multiplier is int64"),
    ({"found_inf": ones((), device="meta")}, ValueError, "found_inf is on meta"),
    ({"average_weight": ones(3)}, ValueError, "average_weight has shape"),
    ({"lr": ones(3)}, ValueError, "lr has shape"),
    ({"params": [BASE[:6].view(2, 3)], "grads": [BASE[5:11].view(2, 3)]}, ValueError, "share memory"),
    ({"params": [BASE[:6].view(2, 3)], "averages": [BASE[:6].view(2, 3)]}, ValueError, "share memory"),
    (
        {"states": [BASE[:6].view(2, 3)], "copies": [BASE[2:5].view(torch.bfloat16).view(2, 3)]},
        ValueError,
        "share",
    ),
]


@pytest.mark.parametrize("rule", ["adam", "sgd"])
@pytest.mark.parametrize(("changes", "error", "words"), REFUSED)
def test_refuses_and_changes_nothing(rule, changes, error, words):
    arguments = {
        "params": [ones(2, 3)],
        "grads": [ones(2, 3)],
        "states": [ones(2, 3)],
        "steps": torch.zeros(1),
    }
    arguments |= {"lr": 0.1} | changes
    extras = {name: arguments.pop(name) for name in list(arguments) if hasattr(ops.StepExtras(), name)}
    params, grads, states, steps = (arguments.pop(name) for name in ("params", "grads", "states", "steps"))
    before = [x.clone() for x in (*params, *grads, *states, *extras.get("averages", ())) if not x.is_meta]
    arguments["extras"] = ops.StepExtras(**extras)
    given = [params, grads, states]
    if rule == "adam":
        operator, given = ops.adam_step_, [*given, [ones(2, 3, dtype=states[0].dtype)], []]
    else:
        operator, arguments = ops.sgd_step_, arguments | {"momentum": 0.9}
    with pytest.raises(error, match=words):
        operator(*given, steps, **arguments)
    after = [x for x in (*params, *grads, *states, *extras.get("averages", ())) if not x.is_meta]
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a.to_dense(), b.to_dense())
    assert not isinstance(steps, torch.Tensor) or steps.is_meta or (steps == 0).all()


@pytest.mark.parametrize(
    ("rule", "states", "options", "error", "words"),
    [
        ("adam", [[ones(3)], [ones(3)], [ones(3)]], {}, ValueError, "must be empty unless amsgrad"),
        ("adam", [[ones(3)], [ones(3)], []], {"amsgrad": True}, ValueError, "max_exp_avg_sqs has 0 tensors"),
        ("adam", [[ones(3)], [ones(3).double()], []], {}, TypeError, "differ in element type"),
        ("sgd", [[ones(3)]], {}, ValueError, "must be empty unless there is momentum"),
        ("sgd", [[]], {"momentum": 0.9}, ValueError, "momentum_buffers has 0 tensors"),
    ],
)
def test_refuses_states_that_do_not_go_with_the_options(rule, states, options, error, words):
    operator = ops.adam_step_ if rule == "adam" else ops.sgd_step_
    param = ones(3)
    with pytest.raises(error, match=words):
        operator([param], [ones(3)], *states, torch.zeros(1), lr=0.1, **options)
    assert (param == 1).all()


def test_the_operators_themselves_refuse(native_cpu):
    def lists(count):
        return [[ones(3)] for _ in range(count)]

    with pytest.raises(RuntimeError, match="ratfast"):
        ADAM(*lists(3), [ones(4)], [], [], [], torch.zeros(1), **ADAM_OPTIONS)
    with pytest.raises(RuntimeError, match="ratfast"):
        ADAM(*lists(4), [], [], [], torch.zeros(2), **ADAM_OPTIONS)
    with pytest.raises(RuntimeError, match="share memory"):
        SGD([BASE[:3]], [BASE[2:5]], [ones(3)], [], [], torch.zeros(1), **SGD_OPTIONS)
    options = SGD_OPTIONS | {"multiplier": ones((), dtype=torch.bfloat16)}
    with pytest.raises(RuntimeError, match="float32 or float64"):
        SGD(*lists(3), [], [], torch.zeros(1), **options)
    with pytest.raises(RuntimeError, match="float64"):
        NORM([ones(3)], ones(()), ones(()), ones(()), workspace=None, grad_scale=None, max_norm=1.0)


def test_autograd_learns_of_what_was_overwritten():
    lists = [[ones(3)] for _ in range(7)]
    params, grads, *states, averages, copies = lists
    steps = torch.zeros(1)
    ops.adam_step_(
        params, grads, *states, steps, lr=0.1, amsgrad=True, extras=ops.StepExtras(averages, 0.1, copies)
    )
    assert [tensors[0]._version > 0 for tensors in lists] == [True, False, True, True, True, True, True]
    assert steps._version > 0
    ops.sgd_step_(params, grads, [], steps, lr=0.1, extras=ops.StepExtras(zero_grads=True))
    assert grads[0]._version > 0

    leaf = torch.ones(3, requires_grad=True)
    saved = (leaf**2).sum()
    ops.sgd_step_([leaf], grads, [], steps, lr=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


def test_inference_tensors_are_accepted():
    with torch.inference_mode():
        param, grad = torch.ones(3), torch.ones(3)
        ops.sgd_step_([param], [grad], [], torch.zeros(1), lr=0.5)
    assert (param == 0.5).all()


def test_opcheck(device):
    def tensors(count):
        return [torch.rand(2, 3, device=device) for _ in range(count)]

    workspace = ops.step_workspace(device) if device.type == "cuda" else None
    there = {"workspace": workspace, "multiplier": torch.full((), 0.5, dtype=torch.float64, device=device)}
    there |= {"found_inf": torch.zeros((), device=device), "lr_tensor": torch.full((), 0.1, device=device)}
    there |= {"average_weight_tensor": torch.full((), 0.1, device=device), "zero_grads": True}
    for extra in ({}, there):
        count = 1 if extra else 0
        steps = torch.ones(1, device=device)
        along = [tensors(count), [x.bfloat16() for x in tensors(count)], steps]
        options = ADAM_OPTIONS | {"workspace": workspace} | extra
        opcheck(ADAM, (*[tensors(1) for _ in range(4)], [], *along), options)
        opcheck(ADAM, (*[tensors(1) for _ in range(5)], *along), options | {"amsgrad": True})
        options = SGD_OPTIONS | {"workspace": workspace} | extra
        opcheck(SGD, (*[tensors(1) for _ in range(3)], *along), options)
        opcheck(SGD, (*[tensors(1) for _ in range(2)], [], *along), options | {"momentum": 0.0})
    numbers = [
        torch.zeros((), dtype=kind, device=device) for kind in (torch.float64, torch.float64, torch.float32)
    ]
    options = {"workspace": workspace, "grad_scale": torch.full((), 2.0, device=device), "max_norm": 1.0}
    opcheck(NORM, (tensors(2), *numbers), options)


def test_compiles_without_graph_breaks(device):
    def step(params, grads, first, second, buffers, averages, steps, numbers):
        ops.gradient_norm_(grads, *numbers, max_norm=0.5)
        extras = ops.StepExtras(averages, 0.1, multiplier=numbers[1], found_inf=numbers[2])
        ops.adam_step_(params, grads, first, second, [], steps, lr=0.1, extras=extras)
        ops.sgd_step_(params, grads, buffers, steps, lr=0.1, momentum=0.9)
        return params[0].sum()

    def arguments():
        generator = torch.Generator().manual_seed(0)
        lists = [[torch.rand(10, generator=generator).to(device)] for _ in range(6)]
        kinds = (torch.float64, torch.float64, torch.float32)
        return (
            *lists,
            torch.zeros(1, device=device),
            [torch.zeros((), dtype=kind, device=device) for kind in kinds],
        )

    eager, compiled = arguments(), arguments()
    wanted = step(*eager)
    got = torch.compile(step, backend="aot_eager", fullgraph=True)(*compiled)
    torch.testing.assert_close(got, wanted)
    for a, b in zip(eager[:6], compiled[:6], strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(compiled[6], eager[6])


def test_runs_on_plain_torch_on_devices_without_native_code():
    """On the meta device nothing is computed, but everything is accepted that would be."""
    tensors = [torch.empty(3, device="meta") for _ in range(3)]
    ops.sgd_step_([tensors[0]], [tensors[1]], [tensors[2]], torch.zeros(1), lr=0.1, momentum=0.9)
    assert not native.covers("meta")
