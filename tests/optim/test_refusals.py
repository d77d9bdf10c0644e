"""Bad input: one sentence that names the parameter, and nothing has changed."""

import copy
import math

import pytest
import torch

from ratfast import InputError
from ratfast.optim import FusedAdam, FusedAdamW, FusedSGD
from ratfast.optim.checks import check_gradients

KINDS = [FusedAdam, FusedAdamW, FusedSGD]


def two_groups(kind, **options):
    """Two groups of named parameters that have made a step, and have gradients."""
    params = [torch.ones(3, requires_grad=True) for _ in range(4)]
    for param in params:
        param.grad = torch.ones(3)
    momentum = {"momentum": 0.9} if kind is FusedSGD else {}
    groups = [
        {"params": [("a", params[0]), ("b", params[1])]},
        {"params": [("c", params[2]), ("d", params[3])], "lr": 0.5},
    ]
    optimizer = kind(groups, **momentum, **options)
    return params, optimizer


def everything(params, optimizer):
    return copy.deepcopy(([param.detach() for param in params], optimizer.state_dict()))


def assert_unchanged(before, params, optimizer):
    """The same tensors to the bit, and the same of everything else."""
    after = everything(params, optimizer)
    places = [[], []]
    for leaves, tree in zip(places, (before, after), strict=True):
        for path, leaf in torch.utils._pytree.tree_leaves_with_path(tree):
            leaves.append((str(path), leaf.tolist() if isinstance(leaf, torch.Tensor) else leaf))
    assert places[0] == places[1]


def sparse(param):
    param.grad = torch.sparse_coo_tensor([[0]], [1.0], (3,), check_invariants=True)


def of_another_type(param):
    param.grad.data = torch.ones(3, dtype=torch.float64)


def complex_gradient(param):
    param.grad_dtype = None
    param.grad = torch.ones(3, dtype=torch.complex64)


def of_another_shape(param):
    param.grad.data = torch.ones(4)


def integers(param):
    param.grad_dtype = None
    param.grad = torch.ones(3, dtype=torch.int32)


GRADIENTS = [
    (sparse, r"the gradient of c is sparse; the fused optimizers step dense gradients only"),
    (of_another_type, r"the gradient of c is float64, expected float32 as the parameter"),
    (complex_gradient, r"the gradient of c is complex64, expected float32 as the parameter"),
    (of_another_shape, r"the gradient of c has shape \[4\], expected \[3\]"),
    (integers, r"the gradient of c is int32, expected float32 as the parameter"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("spoil", "message"), GRADIENTS, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("first", [True, False], ids=["at once", "later"])
def test_gradients(kind, spoil, message, first):
    params, optimizer = two_groups(kind, max_grad_norm=1.0, swa=True)
    if not first:
        optimizer.step()
    before = everything(params, optimizer)
    spoil(params[2])
    with pytest.raises(InputError, match=message):
        optimizer.step()
    assert_unchanged(before, params, optimizer)
    params[2].grad = None
    params[2].grad_dtype = torch.float32
    params[2].grad = torch.ones(3)
    optimizer.step()


def test_a_gradient_on_another_device_as_the_check_sees_it():
    with pytest.raises(InputError, match="the gradient of c is on meta, expected cpu as the parameter"):
        check_gradients([torch.ones(3)], [torch.ones(3, device="meta")], lambda index: "c")


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_on_another_device(kind, cuda):
    params, optimizer = two_groups(kind)
    before = everything(params, optimizer)
    params[2].grad.data = torch.ones(3, device=cuda)
    with pytest.raises(InputError, match="the gradient of c is on cuda:0, expected cpu as the parameter"):
        optimizer.step()
    assert_unchanged(before, params, optimizer)


def test_a_gradient_of_the_type_that_the_parameter_asks_for():
    param = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    param.grad_dtype = torch.float32
    param.grad = torch.tensor([1.0, 2.0, 3.0])
    FusedSGD([param], lr=0.25).step()
    assert torch.equal(param.detach(), torch.tensor([0.75, 0.5, 0.25], dtype=torch.bfloat16))


@pytest.mark.parametrize("kind", KINDS)
def test_parameters(kind):
    other = torch.ones(2, requires_grad=True)
    other.grad = torch.ones(2)
    cases = [
        (torch.zeros(2, dtype=torch.complex64, requires_grad=True), r"parameter 1 of group 0 is complex64"),
        (
            torch.zeros(1).expand(2).detach().requires_grad_(),
            r"is an expanded tensor, whose elements share memory",
        ),
    ]
    for param, message in cases:
        param.grad = torch.ones_like(param)
        with pytest.raises(InputError, match=message):
            kind([other, param]).step()
        assert bool((other == 1).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_in_two_groups_or_twice_in_one(kind):
    param, other = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    optimizer = kind([param])
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        optimizer.add_param_group({"params": [param]})
    with pytest.raises(ValueError, match="parameter 2 of the group is parameter 0 too: it appears twice"):
        optimizer.add_param_group({"params": [other, torch.zeros(1), other]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_hyperparameters_changed_to_nan(kind, name):
    params, optimizer = two_groups(kind)
    optimizer.step()
    before = everything(params, optimizer)
    kept = optimizer.param_groups[1][name]
    for value in (math.nan, -1.0, torch.tensor(math.nan)):
        optimizer.param_groups[1][name] = value
        with pytest.raises(InputError, match="the step is not made: Invalid"):
            optimizer.step()
        optimizer.param_groups[1][name] = kept
        assert_unchanged(before, params, optimizer)


def spoiled(change):
    """A state dict of the optimizer after a step, changed."""

    def make(optimizer):
        state_dict = copy.deepcopy(optimizer.state_dict())
        change(state_dict)
        return state_dict

    return make


def sgd_with_momentum(optimizer):
    _, other = two_groups(FusedSGD)
    other.step()
    return other.state_dict()


def adam(optimizer):
    _, other = two_groups(FusedAdam)
    other.step()
    return other.state_dict()


def adagrad_named_adam(optimizer):
    state_dict = copy.deepcopy(optimizer.state_dict())
    state_dict["state"] = {0: {"step": torch.tensor(1.0), "sum": torch.ones(3)}}
    return state_dict


def filled_with(value):
    """Makes all states of all parameters, but the steps, something else."""

    def change(state_dict):
        for state in state_dict["state"].values():
            state.update({key: value for key in state if key != "step"})

    return spoiled(change)


def fewer_groups(state_dict):
    state_dict["param_groups"].pop()


def fewer_parameters(state_dict):
    state_dict["param_groups"][0]["params"].pop()


def without_a_rate(state_dict):
    state_dict["param_groups"][1]["lr"] = math.nan


LOADED = [
    (KINDS[:2], sgd_with_momentum, "of another optimizer than .*: its group 0 lacks eps, betas"),
    (KINDS[2:], adam, "of another optimizer than FusedSGD: its group 0 lacks momentum"),
    (KINDS, adagrad_named_adam, "of another optimizer than .*: the state of a has step, sum, expected"),
    (KINDS, lambda _: {"epoch": 3}, "no state dict of an optimizer: it lacks 'state'"),
    (KINDS, spoiled(fewer_groups), "different number of parameter groups"),
    (KINDS, spoiled(fewer_parameters), "doesn't match the size of optimizer's group"),
    (KINDS, spoiled(without_a_rate), "group 1 .* Invalid learning rate: nan"),
    (KINDS, filled_with(torch.ones(2, 2)), r"the optimizer state .* of a has shape \[2, 2\], expected \[3\]"),
    (KINDS, filled_with("x"), "the optimizer state .* of a is no dense floating-point tensor"),
]


@pytest.mark.parametrize(
    ("kind", "make", "message"), [(kind, make, message) for kinds, make, message in LOADED for kind in kinds]
)
def test_state_dicts(kind, make, message):
    params, optimizer = two_groups(kind)
    optimizer.step()
    before = everything(params, optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(make(optimizer))
    assert_unchanged(before, params, optimizer)
    optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_what_other_implementations_can(kind):
    param = torch.zeros(2, requires_grad=True)
    for name, value in (("foreach", True), ("differentiable", True), ("fused", False)):
        with pytest.raises(ValueError, match=f"{kind.__name__} does not support {name}={value}, expected"):
            kind([param], **{name: value})
    with pytest.raises(ValueError, match="can't optimize a non-leaf Tensor"):
        kind([param * 2])


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS[:2])
def test_capture_unasked(kind, cuda):
    param = torch.zeros(8, device=cuda, requires_grad=True)
    param.grad = torch.ones_like(param)
    optimizer = kind([param])
    optimizer.step()
    torch.cuda.synchronize()
    with (
        pytest.raises(InputError, match="cannot be captured into a CUDA graph with capturable=False"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        optimizer.step()


@pytest.mark.cuda
def test_capture_of_the_first_step(cuda):
    param = torch.zeros(8, device=cuda, requires_grad=True)
    param.grad = torch.ones_like(param)
    optimizer = FusedAdam([param], capturable=True)
    torch.cuda.synchronize()
    with (
        pytest.raises(InputError, match="has to make a step with the same parameters and gradients before"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        optimizer.step()
