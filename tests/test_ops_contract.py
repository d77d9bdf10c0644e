"""What `mix_` refuses, and how it behaves towards autograd and the compiler."""

import pytest
import torch
from torch.library import opcheck

from ratfast import ops

MIX = torch.ops.ratfast.mix_.default
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


def test_inference_tensors_are_accepted():
    with torch.inference_mode():
        output = torch.zeros(3)
        ops.mix_([[output]], [[ones(3)]], [[2.0]])
    assert (output == 2).all()


def test_opcheck(device):
    tensors = [torch.rand(2, 3, device=device) for _ in range(6)]
    opcheck(MIX, (tensors[:2], tensors[2:], HALF))


def test_compiles_without_graph_breaks(device):
    def mix(outputs, sources):
        ops.mix_([outputs], sources, [[0.5, 0.25]])
        return outputs[0].sum()

    def arguments():
        generator = torch.Generator().manual_seed(0)
        one, two, three = (torch.rand(4, 4, generator=generator).to(device) for _ in range(3))
        return [one], [[two], [three]]

    eager, compiled = arguments(), arguments()
    wanted = mix(*eager)
    got = torch.compile(mix, backend="aot_eager", fullgraph=True)(*compiled)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(compiled[0][0], eager[0][0])
