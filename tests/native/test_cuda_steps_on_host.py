"""The CUDA kernels of optimizer steps and of the norm, compiled for the host: indexing, arithmetic, tickets."""

import ctypes
import math
from itertools import chain

import pytest
import torch

from ratfast import ops, reference

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
ADAM = {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1, "eps": 1e-8}
SGD = {"momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1}


class Step:
    """Lists of tensors and numbers of one step; `alongside` adds an average, a copy, and numbers in memory."""

    def __init__(self, sizes, param, grad, state, *, average=None, copy=None, states=3, skip=0):
        def draw(kind):
            return [torch.rand(size + skip).to(kind)[skip:] for size in sizes]

        self.sizes = sizes
        self.params, self.grads = draw(param), draw(grad)
        self.states = [draw(state) for _ in range(states)]
        self.averages = draw(average) if average is not None else []
        self.copies = draw(copy) if copy is not None else []
        self.lists = [self.params, self.grads, *self.states, self.averages, self.copies]

    def clones(self):
        return [[x.clone() for x in tensors] for tensors in self.lists]

    def arguments(self, codes):
        """What the C functions take first."""
        count = len(self.sizes)
        states = [*self.states, *[[None] * count] * (3 - len(self.states))]
        lists = [
            self.params,
            self.grads,
            *states,
            self.averages or [None] * count,
            self.copies or [None] * count,
        ]
        pointers = [None if x[t] is None else x[t].data_ptr() for t in range(count) for x in lists]
        kinds = [lists[i][t] for t in range(count) for i in (0, 1, 2, 5, 6)]
        return (
            count,
            (ctypes.c_longlong * count)(*self.sizes),
            (ctypes.c_void_p * len(pointers))(*pointers),
            (ctypes.c_ubyte * len(kinds))(*[1 if x is None else codes[x.dtype] for x in kinds]),
        )

    def compare(self, wanted):
        for got, want in zip(chain(*self.lists), chain(*wanted), strict=True):
            unit = torch.finfo(want.dtype).eps
            torch.testing.assert_close(got, want, rtol=2 * max(unit, 2**-22), atol=4e-6)


def number(value):
    return None if value is None else ctypes.byref(ctypes.c_double(value))


def workspace(kernels):
    return (ctypes.c_double * kernels.workspace_size())()


def run_adam(kernels, codes, step, steps, *, there, lr=0.01, multiplier=None, found_inf=None, weight=None, zero=False,
             amsgrad=True, maximize=True, room=None):  # fmt: skip
    status = kernels.adam(
        *step.arguments(codes),
        ctypes.c_void_p(steps.data_ptr()),
        int(there),
        room if room is not None else workspace(kernels),
        *map(number, (lr, multiplier, found_inf, weight)),
        int(zero),
        *[ctypes.c_double(value) for value in ADAM.values()],
        0,
        int(amsgrad),
        int(maximize),
    )
    assert status == 0
    assert not kernels.saw_misaligned()


def reference_adam(wanted, steps, *, amsgrad=True, maximize=True, lr=0.01, **extras):
    params, grads, first, second, largest, averages, copies = wanted
    reference.adam_step_(
        params, grads, first, second, largest if amsgrad else [], averages, copies, steps,
        lr=lr, **ADAM, decoupled=False, amsgrad=amsgrad, maximize=maximize, **extras,
    )  # fmt: skip


SGD_DTYPES = [
    (torch.float32, torch.float32, torch.float32),
    (torch.float64, torch.float32, torch.float64),
    (torch.float32, torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16, torch.bfloat16),
]
SIZES = [1, 1000, 5000, 1024, 0, 77]
STEPS = [1.0, 1, 3, 3, 3, 9]


@pytest.mark.parametrize("param", DTYPES)
@pytest.mark.parametrize("grad", DTYPES)
@pytest.mark.parametrize("state", DTYPES)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_adam_alone(kernels, codes, param, grad, state, amsgrad):
    step = Step(SIZES, param, grad, state)
    wanted = step.clones()
    steps = torch.tensor(STEPS)
    expected = steps.clone()
    reference_adam(wanted, expected, amsgrad=amsgrad)
    run_adam(kernels, codes, step, steps, there=False, amsgrad=amsgrad)
    assert torch.equal(steps, expected)
    step.compare(wanted)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("param", DTYPES)
@pytest.mark.parametrize("grad", DTYPES)
@pytest.mark.parametrize(
    ("average", "copy"), [(torch.float32, torch.bfloat16), (torch.float64, torch.float16)]
)
@pytest.mark.parametrize("skip", [0, 1])
def test_adam_with_everything(kernels, codes, param, grad, average, copy, skip, there):
    step = Step(SIZES, param, grad, torch.float32, average=average, copy=copy, skip=skip)
    wanted = step.clones()
    steps = torch.tensor(STEPS)
    expected = steps.clone()
    extras = {"multiplier": 0.3, "zero_grads": True}
    reference_adam(wanted, expected, average_weight=0.25, **extras)
    run_adam(kernels, codes, step, steps, there=there, multiplier=0.3, weight=0.25, zero=True)
    assert torch.equal(steps, expected)
    step.compare(wanted)
    assert all((x == 0).all() for x in step.grads)


@pytest.mark.parametrize("there", [False, True])
def test_many_tensors_of_two_arithmetics_and_step_numbers(kernels, codes, there):
    step = Step([1 + i % 9 for i in range(700)], torch.float32, torch.float32, torch.float32)
    for t in range(50, 60):
        step.grads[t] = step.grads[t].double()
    wanted = step.clones()
    steps = torch.tensor([1.0] * 350 + [2.0] * 350)
    expected = steps.clone()
    reference_adam(wanted, expected)
    before, room = kernels.launch_count(), workspace(kernels)
    run_adam(kernels, codes, step, steps, there=there, room=room)
    # 690 in float32 of 300 a launch, from the host in two parts of 340 and 350; 10 in float64.
    assert kernels.launch_count() - before == (4 if there else 5)
    assert room[0] == 0.0  # the counter
    assert torch.equal(steps, expected)
    step.compare(wanted)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("grad", DTYPES)
def test_a_skipped_step_changes_nothing(kernels, codes, grad, zero):
    step = Step(SIZES, torch.float32, grad, torch.float32, average=torch.float32, copy=torch.bfloat16)
    wanted = step.clones()
    steps = torch.full((len(SIZES),), 3.0)
    run_adam(
        kernels, codes, step, steps, there=True, multiplier=math.nan, found_inf=1.0, weight=0.5, zero=zero
    )
    if zero:
        wanted[1] = [torch.zeros_like(x) for x in wanted[1]]
    assert all(torch.equal(a, b) for a, b in zip(chain(*step.lists), chain(*wanted), strict=True))
    assert (steps == 3).all()


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("dtypes", SGD_DTYPES)
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd(kernels, codes, dtypes, nesterov, momentum, there):
    step = Step(SIZES, *dtypes, average=torch.float32, copy=torch.float16, states=1 if momentum else 0)
    for buffer in chain(*step.states):
        buffer[::2] = math.nan  # of a first step, overwritten unread
    wanted = step.clones()
    steps = torch.zeros(len(SIZES))
    expected = steps.clone()
    options = SGD | {"momentum": momentum, "nesterov": nesterov, "maximize": False}
    params, grads, *states, averages, copies = wanted
    for _ in range(2):
        extras = {"multiplier": 0.5, "average_weight": 0.75, "zero_grads": False}
        buffers = states[0] if states else []
        reference.sgd_step_(params, grads, buffers, averages, copies, expected, lr=0.1, **options, **extras)
        status = kernels.sgd(
            *step.arguments(codes), ctypes.c_void_p(steps.data_ptr()), int(there), workspace(kernels),
            ctypes.c_double(0.1), number(0.5), None, ctypes.c_double(0.75), 0,
            ctypes.c_double(momentum), ctypes.c_double(0.2), ctypes.c_double(0.1), int(nesterov), 0,
        )  # fmt: skip
        assert status == 0
        assert not kernels.saw_misaligned()
    assert torch.equal(steps, expected)
    step.compare(wanted)


def run_norm(kernels, codes, grads, *, scale=None, max_norm=math.inf):
    count = len(grads)
    norm, multiplier = ctypes.c_double(-1), ctypes.c_double(-1)
    found_inf = ctypes.c_float(-1)
    room = workspace(kernels)
    for i in range(2, len(room)):
        room[i] = math.nan  # what a sum forgets to write is not to pass for zero
    status = kernels.norm(
        count,
        (ctypes.c_longlong * count)(*[x.numel() for x in grads]),
        (ctypes.c_void_p * count)(*[x.data_ptr() for x in grads]),
        (ctypes.c_ubyte * count)(*[codes[x.dtype] for x in grads]),
        room,
        number(scale),
        ctypes.c_double(max_norm),
        *map(ctypes.byref, (norm, multiplier, found_inf)),
    )
    assert status == 0
    assert not kernels.saw_misaligned()
    assert room[0] == 0.0
    return norm.value, multiplier.value, found_inf.value


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("sizes", [[1], [0], [4096, 5000, 0, 7], [70_001], [3] * 2000])
@pytest.mark.parametrize(("scale", "max_norm"), [(None, math.inf), (1024.0, 0.01), (4.0, 1e9)])
def test_norm(kernels, codes, sizes, scale, max_norm, skip):
    grads = [torch.randn(n + skip).to(DTYPES[t % 4])[skip:] for t, n in enumerate(sizes)]
    length = math.sqrt(sum(x.double().square().sum().item() for x in grads)) / (scale or 1)
    norm, multiplier, found_inf = run_norm(kernels, codes, grads, scale=scale, max_norm=max_norm)
    assert norm == pytest.approx(length, rel=1e-12)
    wanted = (1 if math.isinf(max_norm) else min(1, max_norm / (length + 1e-6))) / (scale or 1)
    assert multiplier == pytest.approx(wanted, rel=1e-12)
    assert found_inf == 0


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", [0, 4999, 5002])
def test_norm_finds_what_is_not_finite(kernels, codes, bad, place):
    grads = [torch.randn(5000), torch.randn(7)]
    grads[place // 5000][place % 5000] = bad
    assert run_norm(kernels, codes, grads, max_norm=1.0)[2] == 1


def test_workspace_is_as_large_as_the_kernels_need(kernels):
    assert ops.step_workspace("cpu").numel() == kernels.workspace_size()
