"""The operator adam_: against torch.optim and, in short types, against the reference."""

import itertools

import pytest
import torch

from ratfast import ops, reference

SHAPES = ((1,), (3, 5), (64,), (257,), (2, 3, 4, 5), (1023,), ())
FLAGS = list(itertools.product([False, True], repeat=3))


def step(params, states, step_number, *, decoupled, amsgrad, maximize, **options):
    ops.adam_(
        [p.detach() for p in params],
        [p.grad for p in params],
        *states[:2],
        states[2] if amsgrad else [],
        torch.full((len(params),), float(step_number)),
        decoupled=decoupled,
        amsgrad=amsgrad,
        maximize=maximize,
        **options,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("decoupled", "amsgrad", "maximize"), FLAGS)
@pytest.mark.parametrize(
    ("betas", "weight_decay"), [((0.9, 0.999), 0.01), ((0.0, 0.5), 0.0), ((0.3, 0.99), 0.3)]
)
def test_follows_torch_optim(dtype, decoupled, amsgrad, maximize, betas, weight_decay, device):
    generator = torch.Generator().manual_seed(0)
    mine = [torch.randn(shape, generator=generator).to(device, dtype) for shape in SHAPES]
    theirs = [p.clone().requires_grad_() for p in mine]
    states = [[torch.zeros_like(p) for p in mine] for _ in range(3)]
    options = {"lr": 0.01, "betas": betas, "weight_decay": weight_decay, "eps": 1e-6}
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizer = kind(theirs, **options, amsgrad=amsgrad, maximize=maximize, foreach=False, fused=False)
    for number in range(1, 6):
        for a, b in zip(mine, theirs, strict=True):
            b.grad = torch.randn(b.shape, generator=generator).to(device, dtype)
            a.grad = b.grad.clone()
        step(mine, states, number, decoupled=decoupled, amsgrad=amsgrad, maximize=maximize, **options)
        optimizer.step()
    tolerance = {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-6}
    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 if amsgrad else 2]
    for t, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        torch.testing.assert_close(a, b.detach(), **tolerance)
        for state, name in zip(states, names, strict=False):
            torch.testing.assert_close(state[t], optimizer.state[b][name], **tolerance)


@pytest.mark.parametrize("param", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("grad", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16, torch.float64])
def test_every_mix_of_element_types(param, grad, state, device):
    generator = torch.Generator().manual_seed(1)
    size = 1000 + 7
    params = [torch.randn(size, generator=generator).to(device, param)]
    grads = [torch.randn(size, generator=generator).to(device, grad)]
    states = [[torch.rand(size, generator=generator).to(device, state)] for _ in range(3)]
    copies = [[x.clone() for x in tensors] for tensors in (params, grads, *states)]
    options = {
        "lr": 0.01,
        "weight_decay": 0.1,
        "eps": 1e-8,
        "decoupled": False,
        "amsgrad": True,
        "maximize": False,
    }
    ops.adam_(params, grads, *states, [3.0], betas=(0.9, 0.99), **options)
    reference.adam_(*copies, torch.tensor([3.0]), beta1=0.9, beta2=0.99, **options)
    for got, wanted in zip((params, grads, *states), copies, strict=True):
        # The two may round a last bit differently: one unit of the stored type.
        unit = torch.finfo(wanted[0].dtype).eps
        torch.testing.assert_close(got[0], wanted[0], rtol=2 * max(unit, 2**-22), atol=1e-6)


@pytest.mark.parametrize("skip", [0, 1, 3])
def test_unaligned_memory_and_its_surroundings(skip, device):
    size = 1500
    rows = [torch.rand(size + 16, device=device) for _ in range(4)]
    parts = [row[skip : skip + size] for row in rows]
    wanted = [part.clone() for part in parts]
    edges = [torch.cat([row[:skip], row[skip + size :]]).clone() for row in rows]
    ops.adam_(*[[part] for part in parts], [], [2], lr=0.1)
    reference.adam_(
        *[[x] for x in wanted],
        [],
        torch.tensor([2.0]),
        lr=0.1,
        beta1=0.9,
        beta2=0.999,
        weight_decay=0.0,
        eps=1e-8,
        decoupled=False,
        amsgrad=False,
        maximize=False,
    )
    for part, want, row, edge in zip(parts, wanted, rows, edges, strict=True):
        torch.testing.assert_close(part, want, rtol=1e-5, atol=1e-6)
        assert torch.equal(torch.cat([row[:skip], row[skip + size :]]), edge)


def test_each_tensor_has_its_own_step(device):
    params = [torch.ones(70, device=device) for _ in range(4)]
    grads = [torch.ones(70, device=device) for _ in range(4)]
    first = [torch.zeros(70, device=device) for _ in range(4)]
    second = [torch.zeros(70, device=device) for _ in range(4)]
    ops.adam_(params, grads, first, second, [], [1, 1, 10, 2], lr=0.1, eps=0.0)
    for param, number in zip(params, (1, 1, 10, 2), strict=True):
        wanted = 1 - 0.1 / (1 - 0.9**number) * 0.1 / (0.001**0.5 / (1 - 0.999**number) ** 0.5)
        torch.testing.assert_close(param, torch.full_like(param, wanted), rtol=1e-4, atol=1e-6)


def test_largest_second_moment_keeps_nan():
    param, grad, first, second = (torch.ones(40) for _ in range(4))
    largest = torch.full((40,), torch.nan)
    ops.adam_([param], [grad], [first], [second], [largest], [1], lr=0.1, amsgrad=True)
    assert largest.isnan().all()
    assert param.isnan().all()


def test_result_does_not_depend_on_threads():
    start = [torch.rand(300_001) for _ in range(4)]
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            copy = [[x.clone()] for x in start]
            ops.adam_(*copy, [], [1], lr=0.1)
            results.append(copy)
    finally:
        torch.set_num_threads(threads)
    assert all(
        torch.equal(a[0], b[0]) for other in results[1:] for a, b in zip(results[0], other, strict=True)
    )


def test_no_parameters_is_nothing_to_do():
    ops.adam_([], [], [], [], [], [], lr=0.1)
