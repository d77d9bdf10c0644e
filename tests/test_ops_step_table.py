"""Steps and norms that read their tensors from a table: the same to the bit as with the lists it was made of."""

import itertools

import pytest
import torch

from ratfast import native, ops

OPTIONS = {
    "adam": [{"weight_decay": 0.1}, {"decoupled": True, "amsgrad": True, "maximize": True}],
    "sgd": [{}, {"momentum": 0.9, "nesterov": True}],
}
STATES = {"adam": [2, 3], "sgd": [0, 1]}
KINDS = (torch.float32, torch.float64, torch.bfloat16)


def lists(states, device):
    """Parameters, gradients, states, averages, copies: of several types and sizes, also empty."""
    generator = torch.Generator().manual_seed(0)

    def draw(kinds):
        drawn = []
        for size, kind in zip((5, 0, 1000, 77), itertools.cycle(kinds), strict=False):
            drawn.append(torch.rand(size, generator=generator).to(device, kind))
        return drawn

    kept = [draw(KINDS) for _ in range(states)]
    return draw(KINDS), draw(KINDS), kept, draw([torch.float32]), draw([torch.bfloat16])


def step(rule, tensors, steps, options, numbers, table=None):
    params, grads, states, averages, copies = tensors
    workspace = ops.step_workspace(steps.device) if steps.is_cuda else None
    extras = ops.StepExtras(averages, 0.1, copies, True, *numbers, workspace)
    if rule == "adam":
        ops.adam_step_(
            params, grads, *[*states, []][:3], steps, lr=0.1, extras=extras, table=table, **options
        )
    else:
        ops.sgd_step_(params, grads, *(states or [[]]), steps, lr=0.1, extras=extras, table=table, **options)


@pytest.mark.parametrize("rule", OPTIONS)
@pytest.mark.parametrize("case", [0, 1])
def test_a_table_stands_for_its_lists(rule, case, device, native_cpu):
    options, states = OPTIONS[rule][case], STATES[rule][case]
    one, other = lists(states, device), lists(states, device)
    table = ops.step_table(other[0], other[1], other[2], ops.StepExtras(averages=other[3], copies=other[4]))
    kinds = (torch.float64, torch.float64, torch.float32)
    counted = [torch.tensor([0.0, 3.0, 0.0, 1.0], device=device) for _ in range(2)]
    for _ in range(3):
        for steps, tensors, tables in ((counted[0], one, ()), (counted[1], other, (table,))):
            for grad in tensors[1]:
                grad.fill_(0.5)
            numbers = [torch.zeros((), dtype=kind, device=device) for kind in kinds]
            workspace = ops.step_workspace(device) if device.type == "cuda" else None
            ops.gradient_norm_(
                () if tables else tensors[1], *numbers, max_norm=3.0, workspace=workspace, tables=tables
            )
            assert numbers[0] > 16 and not numbers[2]
            step(rule, tensors, steps, options, numbers[1:], *tables)
    assert torch.equal(*counted)
    for mine, its in zip(one, other, strict=True):
        for a, b in zip(itertools.chain(mine), itertools.chain(its), strict=True):
            pairs = zip(a, b, strict=True) if isinstance(a, list) else [(a, b)]
            assert all(torch.equal(x, y) for x, y in pairs)
    assert all((grad == 0).all() for grad in other[1])


def test_a_norm_of_tables_and_lists(native_cpu):
    tensors = lists(0, torch.device("cpu"))
    table = ops.step_table(*tensors[:2], [])
    numbers = [torch.zeros((), dtype=kind) for kind in (torch.float64, torch.float64, torch.float32)]
    ops.gradient_norm_([torch.full((3,), 2.0)], *numbers, tables=[table, table])
    wanted = sum(float(grad.double().square().sum()) for grad in tensors[1]) * 2 + 12
    torch.testing.assert_close(float(numbers[0]), wanted**0.5)


def test_a_table_is_of_its_step_only(native_cpu):
    tensors = lists(1, torch.device("cpu"))
    table = ops.step_table(*tensors[:3])
    before = [param.clone() for param in tensors[0]]
    for options, steps, given, words in [
        ({}, torch.zeros(4), table, "other states"),
        ({"momentum": 0.9}, torch.zeros(3), table, "one contiguous float32 number per parameter"),
        ({"momentum": 0.9}, torch.zeros(4), table[:-1].clone(), "must come from step_table"),
        ({"momentum": 0.9}, torch.zeros(4), table.int(), "must come from step_table"),
    ]:
        with pytest.raises(RuntimeError, match=words):
            ops.sgd_step_([], [], [], steps, lr=0.1, table=given, **options)
    assert all(torch.equal(a, b) for a, b in zip(tensors[0], before, strict=True))


def test_lists_that_cannot_be_stepped_have_no_table(native_cpu):
    base = torch.ones(10)
    with pytest.raises(RuntimeError, match="share memory"):
        ops.step_table([base[:6]], [base[4:]], [])
    with pytest.raises(RuntimeError, match="sizes or strides"):
        ops.step_table([base[:6]], [torch.ones(5)], [])
    assert ops.step_table([], [], []) is None


def test_there_is_none_where_nothing_native_reads_it():
    meta = [torch.empty(3, device="meta")]
    assert not native.covers("meta")
    assert ops.step_table(meta, meta, []) is None
