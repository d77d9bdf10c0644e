"""What the operators refuse, and how they behave towards autograd and the compiler."""

import pytest
import torch
from torch.library import opcheck

from ratfast import ops

MIX = torch.ops.ratfast.mix_.default
ADAM = torch.ops.ratfast.adam_.default
ADAM_OPTIONS = {
    "lr": 0.1,
    "beta1": 0.9,
    "beta2": 0.99,
    "weight_decay": 0.1,
    "eps": 1e-8,
    "decoupled": True,
    "amsgrad": False,
    "maximize": False,
}
HALF = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
BASE = torch.arange(100.0)  # of which any view in another type is a number: NaN equals nothing


def ones(*shape, **kwargs):
    return torch.ones(*shape, **kwargs)


@pytest.mark.parametrize(
    ("outputs", "sources", "weights", "error", "words"),
    [
        ([[ones(3)]], [], torch.empty(1, 0), ValueError, "sources is empty"),
        ([[ones(3)]], [[ones(3)], []], HALF, ValueError, r"sources\[1\] has 0 tensors"),
        ([[ones(3)], []], [[ones(3)]], HALF, ValueError, r"outputs\[1\] has 0 tensors"),
        ([[ones(3)]], [[ones(3)]], HALF, ValueError, "weights have shape"),
        ([[ones(3)]], [[ones(3)], [ones(4)]], HALF, ValueError, r"sources\[1\]\[0\] has shape \(4,\)"),
        ([[ones(2, 3)]], [[ones(3, 2)], [ones(2, 3)]], HALF, ValueError, "has shape"),
        ([[ones(2, 3)]], [[ones(2, 3)], [ones(3, 2).t()]], HALF, ValueError, "has strides"),
        (
            [[ones(2, 3, 4, 4)]],
            [[ones(2, 3, 4, 4)], [ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)]],
            HALF,
            ValueError,
            "same memory order",
        ),
        ([[ones(8)[::2]]], [[ones(8)[::2]], [ones(8)[::2]]], HALF, ValueError, "not dense"),
        ([[ones(1).expand(4)]], [[ones(1).expand(4)]] * 2, HALF, ValueError, "not dense"),
        ([[ones(3)]], [[ones(3)], [ones(3, dtype=torch.int64)]], HALF, TypeError, "int64"),
        ([[ones(3)]], [[ones(3)], [ones(3, dtype=torch.complex64)]], HALF, TypeError, "complex64"),
        ([[ones(3)]], [[ones(3)], [ones(3).to_sparse()]], HALF, TypeError, "sparse"),
        ([[ones(3)]], [[ones(3)], [ones(3, device="meta")]], HALF, ValueError, "is on meta"),
        ([[BASE[1:9]]], [[BASE[0:8]], [ones(8)]], HALF, ValueError, "overlaps"),
        ([[BASE[:8].view(torch.bfloat16)]], [[BASE[:16]], [ones(16)]], HALF, ValueError, "overlaps"),
        (
            [[BASE[:8], BASE[8:16]]],
            [[BASE[8:16], BASE[:8]], [ones(8), ones(8)]],
            HALF,
            ValueError,
            "overlaps",
        ),
        ([[BASE[:8], BASE[4:12]]], [[ones(8), ones(8)]] * 2, HALF, ValueError, "share memory"),
    ],
)
def test_mix_refuses(outputs, sources, weights, error, words):
    before = [[x.clone() for x in model] for model in outputs]
    with pytest.raises(error, match=words):
        ops.mix_(outputs, sources, weights)
    assert all(
        torch.equal(a, b) for m, c in zip(outputs, before, strict=True) for a, b in zip(m, c, strict=True)
    )


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"grads": []}, ValueError, "grads has 0 tensors"),
        ({"steps": [1, 2]}, ValueError, "steps has shape"),
        ({"grads": [ones(3, 2)]}, ValueError, "has shape"),
        ({"grads": [ones(3, 2).t()]}, ValueError, "has strides"),
        ({"exp_avgs": [ones(2, 3, dtype=torch.int32)]}, TypeError, r"exp_avgs\[0\] is int32"),
        ({"exp_avgs": [ones(2, 3, dtype=torch.float64)]}, TypeError, "differ in element type"),
        ({"exp_avgs": [ones(2, 3, device="meta")]}, ValueError, "is on meta"),
        ({"max_exp_avg_sqs": [ones(2, 3)]}, ValueError, "must be empty"),
        ({"amsgrad": True}, ValueError, "max_exp_avg_sqs has 0 tensors"),
    ],
)
def test_adam_refuses(changes, error, words):
    names = ("params", "grads", "exp_avgs", "exp_avg_sqs")
    arguments = {name: [ones(2, 3)] for name in names} | {"max_exp_avg_sqs": [], "steps": [1], "lr": 0.1}
    with pytest.raises(error, match=words):
        ops.adam_(**(arguments | changes))
    assert (arguments["params"][0] == 1).all()


@pytest.mark.parametrize(
    ("outputs", "sources", "weights"),
    [
        ([ones(2, 3)], [ones(3, 2).t(), ones(2, 3)], HALF),
        ([ones(3)], [ones(3), ones(4)], HALF),
        ([ones(3)], [ones(3), ones(3, dtype=torch.int64)], HALF),
        ([ones(3)], [ones(3), ones(3), ones(3)], HALF),
        ([ones(3)], [ones(3), ones(3)], HALF.float()),
        ([BASE[1:9]], [BASE[0:8], ones(8)], HALF),
    ],
)
def test_operator_itself_refuses(outputs, sources, weights, native_cpu):
    with pytest.raises(RuntimeError, match="ratfast"):
        MIX(outputs, sources, weights)


def test_autograd_learns_of_what_was_overwritten():
    output, source = ones(3), ones(3)
    ops.mix_([[output]], [[source]], [[2.0]])
    assert output._version > 0
    assert source._version == 0

    leaf = torch.ones(3, requires_grad=True)
    saved = (leaf**2).sum()
    ops.mix_([[leaf]], [[source]], [[2.0]])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()

    lists = [[ones(3)] for _ in range(5)]
    ops.adam_(*lists, [1], lr=0.1, amsgrad=True)
    assert [tensors[0]._version > 0 for tensors in lists] == [True, False, True, True, True]


def test_inference_tensors_are_accepted():
    with torch.inference_mode():
        output = torch.zeros(3)
        ops.mix_([[output]], [[ones(3)]], [[2.0]])
    assert (output == 2).all()


def test_opcheck(device):
    tensors = [torch.rand(2, 3, device=device) for _ in range(6)]
    opcheck(MIX, (tensors[:2], tensors[2:], HALF))
    opcheck(ADAM, ([tensors[0]], [tensors[1]], [tensors[2]], [tensors[3]], [], torch.ones(1)), ADAM_OPTIONS)
    opcheck(
        ADAM,
        ([tensors[0]], [tensors[1]], [tensors[2]], [tensors[3]], [tensors[4]], torch.ones(1)),
        ADAM_OPTIONS | {"amsgrad": True},
    )


def test_compiles_without_graph_breaks(device):
    def both(outputs, sources, param, grad, first, second):
        ops.mix_([outputs], sources, [[0.5, 0.25]])
        ops.adam_([param], [grad], [first], [second], [], [1], lr=0.1)
        return outputs[0] + param.sum()

    def arguments():
        generator = torch.Generator().manual_seed(0)
        one, two, three = (torch.rand(4, 4, generator=generator).to(device) for _ in range(3))
        rest = [torch.rand(10, generator=generator).to(device) for _ in range(4)]
        return [one], [[two], [three]], *rest

    eager, compiled = arguments(), arguments()
    wanted = both(*eager)
    got = torch.compile(both, backend="aot_eager", fullgraph=True)(*compiled)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(compiled[0][0], eager[0][0])
    torch.testing.assert_close(compiled[2], eager[2])
