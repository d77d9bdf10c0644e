"""The operators adam_step_ and sgd_step_: against the formulas in float64, torch.optim and plain torch."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ratfast import native, ops, reference

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((1,), (3, 5), (64,), (257,), (2, 3, 4, 5), (1023,), ())
FLAGS = list(itertools.product([False, True], repeat=3))
ADAM = {
    "lr": 0.01, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1, "eps": 1e-8, "decoupled": False, "amsgrad": True,
    "maximize": False,
}  # fmt: skip
SGD = {
    "lr": 0.01, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1, "nesterov": False, "maximize": False,
}  # fmt: skip


def number(value, device="cpu", dtype=torch.float64):
    return torch.tensor(value, dtype=dtype, device=device)


def step(rule, params, grads, states, steps, extras=None, **changes):
    """One checked step with the options above."""
    extras = extras or ops.StepExtras()
    if rule == "adam":
        options = ADAM | changes
        betas = options.pop("beta1"), options.pop("beta2")
        ops.adam_step_(params, grads, *states, steps, betas=betas, extras=extras, **options)
    else:
        ops.sgd_step_(params, grads, *states, steps, extras=extras, **(SGD | changes))


def plain_step(rule, params, grads, states, steps, averages, copies, **changes):
    """The same on plain torch."""
    operator, options = (reference.adam_step_, ADAM) if rule == "adam" else (reference.sgd_step_, SGD)
    operator(params, grads, *states, averages, copies, steps, **(options | changes))


def in_numpy(rule, p, g, states, count, **changes):
    """One step by the published formulas, float64."""
    o = (ADAM if rule == "adam" else SGD) | changes
    g = -g if o["maximize"] else g
    if o.get("decoupled"):
        p = p * (1 - o["lr"] * o["weight_decay"])
    else:
        g = g + o["weight_decay"] * p
    if rule == "sgd":
        buffer = g if count == 1 else o["momentum"] * states[0] + (1 - o["dampening"]) * g
        return p - o["lr"] * (g + o["momentum"] * buffer if o["nesterov"] else buffer), [buffer]
    m = o["beta1"] * states[0] + (1 - o["beta1"]) * g
    v = o["beta2"] * states[1] + (1 - o["beta2"]) * g * g
    largest = np.maximum(states[2], v)
    second = (largest if o["amsgrad"] else v) / (1 - o["beta2"] ** count)
    return p - o["lr"] * m / (1 - o["beta1"] ** count) / (np.sqrt(second) + o["eps"]), [m, v, largest]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("adam", {"amsgrad": True}),
        ("adam", {"decoupled": True, "beta2": 0.999, "amsgrad": False}),
        ("sgd", {"nesterov": True, "dampening": 0.0}),
        ("sgd", {"maximize": True}),
    ],
)
def test_thousands_of_steps_follow_the_formulas(rule, changes, dtype, device):
    """Gradients of a bowl with noise, so that a wrong step is not forgotten; drift stays below the tolerance."""
    rng = np.random.default_rng(0)
    p = rng.normal(size=70)
    mine = torch.tensor(p, dtype=dtype, device=device)
    count = (3 if changes.get("amsgrad", True) else 2) if rule == "adam" else 1
    states = [[torch.zeros_like(mine)] for _ in range(count)]
    expected = [np.zeros(70) for _ in range(3 if rule == "adam" else 1)]
    given = [*states, []] if count == 2 else states
    steps, average, followed = torch.zeros(1), mine.double().clone(), p.copy()
    for i in range(1, 3001):
        noise = rng.normal(size=70)
        sign = -1 if changes.get("maximize") else 1
        grad = (sign * mine.double().cpu().numpy() + noise).astype(np.float32)
        extras = ops.StepExtras(averages=[average], average_weight=0.01)
        step(rule, [mine], [torch.tensor(grad, dtype=dtype, device=device)], given, steps, extras, **changes)
        p, expected = in_numpy(rule, p, grad.astype(np.float64), expected, i, **changes)
        followed += 0.01 * (p - followed)
    assert steps.item() == 3000
    tolerance = 1e-9 if dtype == torch.float64 else 2e-4
    for got, want in zip([mine, average, *(x[0] for x in states)], [p, followed, *expected], strict=False):
        np.testing.assert_allclose(got.double().cpu().numpy(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("decoupled", "amsgrad", "maximize"), FLAGS)
@pytest.mark.parametrize(
    ("betas", "weight_decay"), [((0.9, 0.999), 0.01), ((0.0, 0.5), 0.0), ((0.3, 0.99), 0.3)]
)
def test_adam_follows_torch_optim(dtype, decoupled, amsgrad, maximize, betas, weight_decay, device):
    options = {
        "lr": 0.01,
        "weight_decay": weight_decay,
        "eps": 1e-6,
        "amsgrad": amsgrad,
        "maximize": maximize,
    }
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 if amsgrad else 2]

    def mine(params, grads, states, steps):
        given = states if amsgrad else [*states, []]
        ops.adam_step_(params, grads, *given, steps, betas=betas, decoupled=decoupled, **options)

    compare(mine, lambda p: kind(p, **options, betas=betas, foreach=False, fused=False), names, dtype, device)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"), [(0.0, 0.0, False), (0.9, 0.0, True), (0.9, 0.5, False)]
)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_follows_torch_optim(dtype, maximize, momentum, dampening, nesterov, weight_decay, device):
    options = {
        "lr": 0.01, "momentum": momentum, "dampening": dampening, "nesterov": nesterov, "maximize": maximize,
        "weight_decay": weight_decay,
    }  # fmt: skip
    names = ("momentum_buffer",) if momentum else ()

    def mine(params, grads, states, steps):
        ops.sgd_step_(params, grads, *(states or [[]]), steps, **options)

    compare(mine, lambda p: torch.optim.SGD(p, **options, foreach=False, fused=False), names, dtype, device)


def compare(mine, make, names, dtype, device):
    """Five steps of both over the same gradients."""
    params = [torch.randn(shape).to(device, dtype) for shape in SHAPES]
    theirs = [p.clone().requires_grad_() for p in params]
    states = [[torch.zeros_like(p) for p in params] for _ in names]
    steps = torch.zeros(len(params))
    optimizer = make(theirs)
    for _ in range(5):
        for b in theirs:
            b.grad = torch.randn(b.shape).to(device, dtype)
        mine(params, [b.grad.clone() for b in theirs], states, steps)
        optimizer.step()
    assert (steps == 5).all()
    tolerance = {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-6}
    for t, (a, b) in enumerate(zip(params, theirs, strict=True)):
        torch.testing.assert_close(a, b.detach(), **tolerance)
        for state, name in zip(states, names, strict=True):
            torch.testing.assert_close(state[t], optimizer.state[b][name], **tolerance)


class Lists:
    """Random lists for one step, any of which may lie `skip` elements into a storage that must stay as it is."""

    def __init__(
        self, rule, sizes, param, grad, state, average=None, copy=None, skip=0, device="cpu", order=None
    ):
        self.storages = []

        def draw(kind):
            tensors = []
            for size in sizes:
                numel = math.prod(size) if isinstance(size, tuple) else size
                storage = torch.rand(numel + skip + 5).to(device, kind)
                self.storages.append((storage, storage.clone(), skip, numel))
                flat = storage[skip : skip + numel]
                tensors.append(flat.view(size).to(memory_format=order) if order else flat)
            return tensors

        self.params, self.grads = draw(param), draw(grad)
        self.states = [draw(state) for _ in range(3 if rule == "adam" else 1)]
        self.averages = draw(average) if average is not None else []
        self.copies = draw(copy) if copy is not None else []
        self.everything = [self.params, self.grads, *self.states, self.averages, self.copies]

    def clones(self):
        params, grads, *rest = [[x.clone() for x in tensors] for tensors in self.everything]
        return params, grads, rest[:-2], *rest[-2:]

    def check(self, params, grads, states, averages, copies):
        wanted = [params, grads, *states, averages, copies]
        for got, want in zip(itertools.chain(*self.everything), itertools.chain(*wanted), strict=True):
            # The two may round a last bit differently: one unit of the stored type.
            unit = torch.finfo(want.dtype).eps
            torch.testing.assert_close(got, want, rtol=2 * max(unit, 2**-22), atol=2e-6)
        for storage, before, skip, numel in self.storages:
            storage, before = storage.clone(), before.clone()
            storage[skip : skip + numel] = before[skip : skip + numel] = 0
            assert torch.equal(storage, before), "wrote beside a tensor"


def run_both(rule, lists, steps, device, *, multiplier=None, weight=0.25, zero=False, **changes):
    params, grads, states, averages, copies = lists.clones()
    expected = steps.cpu().clone()
    plain_step(
        rule, params, grads, states, expected, averages, copies,
        multiplier=multiplier, average_weight=weight, zero_grads=zero, **changes,
    )  # fmt: skip
    extras = ops.StepExtras(
        averages=lists.averages,
        average_weight=weight,
        copies=lists.copies,
        zero_grads=zero,
        multiplier=None if multiplier is None else number(multiplier, device),
    )
    step(rule, lists.params, lists.grads, lists.states, steps, extras, **changes)
    assert torch.equal(steps.cpu(), expected)
    lists.check(params, grads, states, averages, copies)


@pytest.mark.parametrize("rule", ["adam", "sgd"])
@pytest.mark.parametrize("param", DTYPES)
@pytest.mark.parametrize("grad", DTYPES)
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("alongside", [False, True])
def test_every_mix_of_element_types(rule, param, grad, state, alongside, device):
    average, copy = (torch.float32, torch.bfloat16) if alongside else (None, None)
    lists = Lists(rule, [1007, 16], param, grad, state, average, copy, device=device)
    multiplier = 0.5 if alongside else None
    run_both(rule, lists, torch.tensor([2.0, 7.0]), device, multiplier=multiplier, zero=alongside)


@given(st.data())
@settings(max_examples=60)
def test_any_shapes_and_options(data):
    """Any sizes, offsets, element types and options; nothing beside the tensors is written."""
    rule = data.draw(st.sampled_from(["adam", "sgd"]))
    kind = st.sampled_from(DTYPES)
    sizes = data.draw(st.lists(st.sampled_from([0, 1, 2, 7, 31, 64, 65, 1000, 4097]), min_size=1, max_size=6))
    optional = st.one_of(st.none(), kind)
    lists = Lists(
        rule, sizes, *(data.draw(kind) for _ in range(3)), data.draw(optional), data.draw(optional),
        data.draw(st.integers(0, 3)),
    )  # fmt: skip
    changes = {"maximize": data.draw(st.booleans()), "weight_decay": data.draw(st.sampled_from([0.0, 0.1]))}
    changes |= (
        {"decoupled": data.draw(st.booleans())} if rule == "adam" else {"nesterov": data.draw(st.booleans())}
    )
    steps = torch.tensor([float(data.draw(st.integers(0, 3))) for _ in sizes])
    run_both(
        rule, lists, steps, "cpu", multiplier=data.draw(st.sampled_from([None, 0.3])),
        weight=data.draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])), zero=data.draw(st.booleans()), **changes,
    )  # fmt: skip


@pytest.mark.parametrize("rule", ["adam", "sgd"])
@pytest.mark.parametrize("skip", [0, 1])
def test_large_tensors_on_any_number_of_threads(rule, skip):
    """The same to the bit on any number of threads, the norm too."""
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            lists = Lists(rule, [300_001, 5, 70_000], *[torch.float32] * 4, torch.bfloat16, skip=skip)
            norm, multiplier, found = number(0.0), number(0.0), number(0.0, dtype=torch.float32)
            ops.gradient_norm_(lists.grads, norm, multiplier, found, max_norm=3.0)
            extras = ops.StepExtras(lists.averages, 0.1, lists.copies, multiplier=multiplier, found_inf=found)
            step(rule, lists.params, lists.grads, lists.states, torch.zeros(3), extras)
            results.append([norm.reshape(1), *itertools.chain(*lists.everything)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_channels_last_stays(device):
    shape = (4, 8, 5, 5)
    lists = Lists(
        "adam", [shape], *[torch.float32] * 4, torch.bfloat16, device=device, order=torch.channels_last
    )
    lists.storages.clear()  # the tensors are copies
    before = [x.stride() for x in itertools.chain(*lists.everything)]
    run_both("adam", lists, torch.zeros(1), device)
    assert [x.stride() for x in itertools.chain(*lists.everything)] == before
    assert not lists.params[0].is_contiguous()


@pytest.mark.parametrize("rule", ["adam", "sgd"])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("grad", DTYPES)
def test_a_skipped_step_changes_no_byte(rule, zero, grad, device):
    lists = Lists(
        rule, [100, 3000], torch.float32, grad, torch.float32, torch.float32, torch.bfloat16, device=device
    )
    params, grads, states, averages, copies = lists.clones()
    lists.grads[1][-1] = grads[1][-1] = math.inf
    steps = torch.full((2,), 4.0, device=device)
    norm, multiplier, found = number(0.0, device), number(0.0, device), number(0.0, device, torch.float32)
    ops.gradient_norm_(lists.grads, norm, multiplier, found, max_norm=1.0)
    extras = ops.StepExtras(lists.averages, 0.1, lists.copies, zero, multiplier, found)
    step(rule, lists.params, lists.grads, lists.states, steps, extras)
    assert found.item() == 1
    assert (steps == 4).all()
    if zero:  # or the next ones would be added to them
        grads = [torch.zeros_like(x) for x in grads]
    wanted = itertools.chain(params, grads, *states, averages, copies)
    for got, want in zip(itertools.chain(*lists.everything), wanted, strict=True):
        assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))


@pytest.mark.parametrize("rule", ["adam", "sgd"])
def test_counts_on_the_device_take_part_in_a_skip(rule, device):
    """A tensor's first step is the first one that is not skipped."""
    lists = Lists(rule, [77], *[torch.float32] * 3, device=device)
    steps = torch.zeros(1, device=device)
    params, grads, states, averages, copies = lists.clones()
    for skipped in (1.0, 0.0, 0.0):
        found = number(skipped, device, torch.float32)
        step(rule, lists.params, lists.grads, lists.states, steps, ops.StepExtras(found_inf=found))
    expected = torch.zeros(1)
    for _ in range(2):
        plain_step(rule, params, grads, states, expected, averages, copies)
    assert steps.item() == 2
    lists.check(params, grads, states, averages, copies)


@pytest.mark.parametrize("weight", [0.001, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_averages_are_those_of_lerp(weight, dtype, device):
    p, g, average = (torch.randn(5000, dtype=dtype, device=device) for _ in range(3))
    wanted = average.clone()
    steps = torch.zeros(1)
    ops.sgd_step_([p], [g], [], steps, lr=0.1, extras=ops.StepExtras([average], weight))
    torch._foreach_lerp_([wanted], [p], weight)
    fused = native.status().cpu_capability in ("avx2", "avx512") and native.covers("cpu")
    exact = fused and device.type == "cpu"
    torch.testing.assert_close(average, wanted, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-6)


def test_running_mean_of_weights_in_bfloat16(device):
    """The average is of the parameters as they are stored, and kept in float32."""
    p = torch.randn(333, device=device).bfloat16()
    average = torch.full((333,), math.nan, device=device)  # a weight of 1 overwrites it unread
    seen, steps = [], torch.zeros(1)
    for n in range(20):
        weight = number(1 / (n + 1), device, torch.float32)
        extras = ops.StepExtras([average], weight)
        ops.sgd_step_([p], [torch.randn_like(p)], [], steps, lr=0.1, extras=extras)
        seen.append(p.double())
    torch.testing.assert_close(average.double(), torch.stack(seen).mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("copy", [torch.bfloat16, torch.float16])
def test_copies_are_the_rounded_parameters(copy, device):
    lists = Lists("adam", [5000, 3], *[torch.float32] * 3, copy=copy, device=device)
    step("adam", lists.params, lists.grads, lists.states, torch.zeros(2), ops.StepExtras(copies=lists.copies))
    for param, low in zip(lists.params, lists.copies, strict=True):
        assert torch.equal(param.to(copy), low)


@pytest.mark.parametrize("rule", ["adam", "sgd"])
@pytest.mark.parametrize("place", ["same", "cpu"])
def test_learning_rate_as_a_tensor(rule, place, device):
    first, second = (Lists(rule, [100], *[torch.float32] * 3, device=device) for _ in range(2))
    for a, b in zip(itertools.chain(*first.everything), itertools.chain(*second.everything), strict=True):
        b.copy_(a)
    rate = torch.tensor(0.25, device=device if place == "same" else "cpu")
    step(rule, first.params, first.grads, first.states, torch.zeros(1), lr=rate)
    step(rule, second.params, second.grads, second.states, torch.zeros(1), lr=0.25)
    torch.testing.assert_close(first.params[0], second.params[0], rtol=1e-6, atol=1e-7)


def test_largest_second_moment_keeps_nan():
    param, grad, first, second = (torch.ones(40) for _ in range(4))
    largest = torch.full((40,), torch.nan)
    ops.adam_step_([param], [grad], [first], [second], [largest], torch.zeros(1), lr=0.1, amsgrad=True)
    assert largest.isnan().all()
    assert param.isnan().all()


def test_no_parameters_is_nothing_to_do():
    ops.adam_step_([], [], [], [], [], torch.zeros(0), lr=0.1)
    ops.sgd_step_([], [], [], torch.zeros(0), lr=0.1)


@pytest.mark.cuda
@pytest.mark.parametrize("rule", ["adam", "sgd"])
def test_steps_in_a_cuda_graph(rule, cuda):
    """Norm and step are captured; replays count, clip, and read the learning rate."""
    first, second = (
        Lists(rule, [1000, 33], *[torch.float32] * 4, torch.bfloat16, device=cuda) for _ in range(2)
    )
    for a, b in zip(itertools.chain(*first.everything), itertools.chain(*second.everything), strict=True):
        b.copy_(a)
    rate = torch.tensor(0.1, device=cuda)
    workspace = ops.step_workspace(cuda)

    def run(lists, steps, numbers):
        ops.gradient_norm_(lists.grads, *numbers, max_norm=1.0, workspace=workspace)
        extras = ops.StepExtras(lists.averages, 0.1, lists.copies, False, *numbers[1:], workspace)
        step(rule, lists.params, lists.grads, lists.states, steps, extras, lr=rate)

    def fresh():
        numbers = number(0.0, cuda), number(0.0, cuda), number(0.0, cuda, torch.float32)
        return torch.zeros(2, device=cuda), numbers

    here, there = fresh(), fresh()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(first, *here)
    for value in (0.1, 0.2, 0.05):
        rate.fill_(value)
        graph.replay()
        run(second, *there)
    assert (here[0] == 3).all()
    for a, b in zip(itertools.chain(*first.everything), itertools.chain(*second.everything), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("param", DTYPES)
def test_a_copy_of_any_type_of_parameters_of_any_type(param, kind):
    generator = torch.Generator().manual_seed(5)
    sizes = (1, 7, 16, 37)
    tensors = [[torch.rand(size, generator=generator).to(param) for size in sizes] for _ in range(4)]
    guarded = [torch.full((size + 64,), 7.0, dtype=kind) for size in sizes]
    copies = [tensor[32 : 32 + size] for tensor, size in zip(guarded, sizes, strict=True)]
    expected = [[tensor.to(torch.float64, copy=True) for tensor in row] for row in tensors]
    ops.adam_step_(*tensors, [], torch.zeros(len(sizes)), lr=0.1, extras=ops.StepExtras(copies=copies))
    ops.adam_step_(*expected, [], torch.zeros(len(sizes)), lr=0.1)
    for copy, exact, around in zip(copies, expected[0], guarded, strict=True):
        eps = max(
            torch.finfo(kind).eps, torch.finfo(torch.float32).eps if torch.float64 not in (param, kind) else 0
        )
        torch.testing.assert_close(copy.double(), exact, rtol=4 * eps, atol=4 * eps)
        assert (around[:32] == 7).all() and (around[32 + len(copy) :] == 7).all()
