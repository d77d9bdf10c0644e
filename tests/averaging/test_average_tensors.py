"""`ratfast.average` against sums in float64."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import ratfast
from ratfast import InputError, checkpoints

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def oracle(states, weights):
    return {
        name: sum(state[name].double() * weight for state, weight in zip(states, weights, strict=True))
        for name in states[0]
    }


def assert_close(found, expected):
    """Within the rounding of the found type; sums of a few numbers of size 1."""
    assert list(found) == list(expected)
    for name, tensor in found.items():
        epsilon = max(torch.finfo(tensor.dtype).eps, 2e-16)
        accumulated = 1e-6 if tensor.dtype != torch.float64 else 1e-14
        error = (tensor.double() - expected[name]).abs()
        bound = epsilon * expected[name].abs() + 8 * accumulated + 1e-7 * (tensor.dtype == torch.float16)
        assert torch.all(error <= bound), (name, tensor.dtype, error.max())


class Net(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("scale", torch.ones(1))


def net(seed, statistics=0.0):
    model = Net(seed)
    model.bn.running_mean.add_(statistics)
    model.bn.num_batches_tracked.add_(int(statistics))
    return model


@pytest.mark.parametrize("first", FLOATS)
@pytest.mark.parametrize("other", FLOATS)
@pytest.mark.parametrize("dtype", [None, *FLOATS])
def test_types(first, other, dtype, device):
    states = [
        {"a": torch.randn(37, 5, device=device).to(first), "b": torch.randn(64, device=device).to(other)},
        {"a": torch.randn(37, 5, device=device).to(other), "b": torch.randn(64, device=device).to(first)},
        {"a": torch.randn(37, 5, device=device).to(first), "b": torch.randn(64, device=device).to(first)},
    ]
    weights = [0.25, -1.5, 0.75]
    found = ratfast.average(states, weights, dtype=dtype)
    assert found["a"].dtype == (dtype or first) and found["b"].dtype == (dtype or other)
    assert found["a"].device.type == device.type
    assert_close(found, oracle(states, weights))


def test_float64_is_summed_in_float64():
    states = [{"a": torch.full((5,), 1.0 + 2**-40, dtype=torch.float64)}, {"a": torch.ones(5)}]
    assert ratfast.average(states)["a"].tolist() == [1.0 + 2**-41] * 5


_shape = st.lists(st.integers(0, 5), max_size=4)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_models(data):
    """Names, shapes, types, memory orders, orders of the dict, counts and weights as they come."""
    specs = data.draw(st.dictionaries(st.text(max_size=4), _shape, min_size=1, max_size=5))
    count = data.draw(st.integers(1, 5))
    weights = data.draw(st.none() | st.lists(st.floats(-2, 2), min_size=count, max_size=count))
    states = []
    for _ in range(count):
        names = data.draw(st.permutations(list(specs)))
        state = {}
        for name in names:
            shape = specs[name]
            order = data.draw(st.permutations(range(len(shape))))
            step = data.draw(st.sampled_from([1, 1, 2]))
            memory = torch.randn([shape[axis] * step for axis in order]).to(
                data.draw(st.sampled_from(FLOATS))
            )
            view = memory[tuple(slice(None, None, step) for _ in shape)]
            inverse = [order.index(axis) for axis in range(len(shape))]
            state[name] = view.permute(inverse)
        states.append(state)
    found = ratfast.average(states, weights)
    assert_close(found, oracle(states, weights or [1 / count] * count))
    for name, tensor in found.items():
        assert tensor.dtype == states[0][name].dtype
        assert tensor.stride() == torch.empty_like(states[0][name]).stride()


def test_memory_formats():
    """Channels-last and contiguous members mix by element, and the result has the first's order."""
    states = [{"a": torch.randn(4, 6, 3, 3), "b": torch.randn(4, 6, 1, 1)} for _ in range(3)]
    expected = oracle(states, [1 / 3] * 3)
    states[1] = {name: tensor.to(memory_format=torch.channels_last) for name, tensor in states[1].items()}
    found = ratfast.average(states)
    assert_close(found, expected)
    assert found["a"].is_contiguous()
    found = ratfast.average([states[1], states[0], states[2]])
    assert_close(found, expected)
    assert found["a"].is_contiguous(memory_format=torch.channels_last)


def test_many_copies_are_made_in_batches(monkeypatch):
    monkeypatch.setattr("ratfast.averaging.tensors._BATCH_BYTES", 1000)
    states = [{f"t{i}": torch.randn(9, 11) for i in range(9)} for _ in range(3)]
    states[1] = {name: tensor.T.contiguous().T for name, tensor in states[1].items()}
    assert_close(ratfast.average(states), oracle(states, [1 / 3] * 3))


def test_mixed_kinds(tmp_path):
    models = [net(seed) for seed in range(4)]
    states = [model.state_dict() for model in models]
    checkpoints.save(states[1], tmp_path / "b.safetensors")
    torch.save({"state_dict": states[2]}, tmp_path / "c.pt")
    mixed = [models[0], tmp_path / "b.safetensors", str(tmp_path / "c.pt"), states[3]]
    found = ratfast.average(mixed)
    names = [name for name in found if name not in ("mask", "bn.num_batches_tracked")]
    parameters = [{name: state[name] for name in names} for state in states]
    assert_close({name: found[name] for name in names}, oracle(parameters, [0.25] * 4))
    assert found["mask"].tolist() == [True, False]
    copy.deepcopy(models[0]).load_state_dict(found)
    assert not any(tensor.requires_grad for tensor in found.values())
    for state, model in zip(states, models, strict=True):
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_one_model_and_iterators():
    state = {"a": torch.randn(3)}
    found = ratfast.average(iter([state]))
    assert torch.equal(found["a"], state["a"])
    assert found["a"].data_ptr() != state["a"].data_ptr()
    assert ratfast.average([{}]) == {}


def test_weights_of_zero_are_not_read():
    states = [{"a": torch.tensor([float("nan")])}, {"a": torch.tensor([2.0])}]
    assert ratfast.average(states, [0, 1])["a"].item() == 2.0
    assert ratfast.average(states[1:], [0])["a"].item() == 0.0


def test_type_and_order_are_the_first_models_even_if_its_weight_is_zero():
    states = [{"a": torch.randn(3, 4)}, {"a": torch.randn(4, 3).bfloat16().T}]
    found = ratfast.average(states, [0, 1])["a"]
    assert found.dtype == torch.float32 and found.is_contiguous()
    assert torch.equal(found, states[1]["a"].float())


def test_weights_of_any_kind():
    states = [{"a": torch.tensor([1.0])}, {"a": torch.tensor([2.0])}]
    for weights in (torch.tensor([3.0, 4.0]), (3, 4), iter([3.0, 4.0])):
        assert ratfast.average(states, weights)["a"].item() == 11.0


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ([1.0], "1 weights were given for 2 models"),
        ([1.0, 2.0, 3.0], "3 weights were given for 2 models"),
        ([1.0, float("nan")], "weight 2 is nan"),
        ([float("inf"), 1.0], "weight 1 is inf"),
        (["a", "b"], "expected 2 numbers"),
        (3.0, "expected 2 numbers"),
    ],
)
def test_wrong_weights(weights, reason):
    with pytest.raises(InputError, match=reason):
        ratfast.average([{"a": torch.zeros(1)}] * 2, weights)


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        ([], "no models"),
        ({"a": torch.zeros(1)}, "a single model"),
        (nn.Sequential(nn.Linear(1, 1)), "a single model"),
        ("a.safetensors", "a single model"),
        ([3], "model 1 is a int"),
        ([{"a": 3}], "'a' of model 1 is a int"),
        ([{"a": torch.zeros(1, dtype=torch.complex64)}], "complex64"),
        (
            [{"a": torch.zeros(1)}, {"b": torch.zeros(1)}],
            "model 2 does not fit model 1: a is missing; b is not expected",
        ),
        ([{"a": torch.zeros(1, 2)}, {"a": torch.zeros(2, 1)}], r"a has shape \[2, 1\], expected \[1, 2\]"),
        ([{str(i): torch.zeros(1) for i in range(9)}, {}], "and 6 more"),
        ([{"a": torch.zeros(1)}, {"a": torch.zeros(1).int()}], "'a' is int32 in model 2"),
        (["missing.pt"], "missing.pt does not exist"),
    ],
)
def test_models_that_do_not_fit(models, reason):
    with pytest.raises(InputError, match=reason):
        ratfast.average(models)


def test_wrong_options():
    models = [{"a": torch.zeros(1)}]
    with pytest.raises(InputError, match="expected one of keep, average, error"):
        ratfast.average(models, buffers="mean")
    for dtype in ("int64", "float31", torch.int32):
        with pytest.raises(InputError, match="expected one of float64"):
            ratfast.average(models, dtype=dtype)
    assert ratfast.average(models, dtype="bfloat16")["a"].dtype == torch.bfloat16
    with pytest.raises(InputError, match="both given"):
        ratfast.average(models, dtype="float32", out={"a": torch.zeros(1)})


class TestBuffers:
    def test_error_names_them(self):
        models = [net(0), net(1), net(2, statistics=3)]
        with pytest.raises(
            InputError, match=r"'bn.running_mean' and 1 more of model 3 differ from those of model 1"
        ):
            ratfast.average(models)
        with pytest.raises(InputError, match="running_mean"):
            ratfast.average([model.state_dict() for model in models])

    def test_error_passes_where_they_agree(self):
        found = ratfast.average([net(0, 2), net(1, 2)], [1.0, 1.0])
        assert found["bn.num_batches_tracked"].item() == 2
        assert torch.equal(found["bn.running_mean"], torch.full((8,), 2.0))  # kept, not summed

    def test_nan_agrees_with_nan(self):
        ratfast.average([self._nan(), self._nan()])

    @staticmethod
    def _nan():
        model = net(0)
        model.bn.running_mean.fill_(float("nan"))
        return model

    def test_types_may_differ_where_values_agree(self):
        ratfast.average([net(0, 2), net(1, 2).bfloat16()])

    def test_keep(self):
        found = ratfast.average([net(0, 1), net(1, 4)], buffers="keep")
        assert torch.equal(found["bn.running_mean"], torch.full((8,), 1.0))
        assert found["bn.num_batches_tracked"].item() == 1

    @pytest.mark.parametrize("bare", [False, True])
    def test_average(self, bare):
        models = [net(0, 1), net(1, 4), net(2, 6)]
        models = [model.state_dict() for model in models] if bare else models
        found = ratfast.average(models, buffers="average")
        torch.testing.assert_close(found["bn.running_mean"], torch.full((8,), 11 / 3))
        assert found["bn.num_batches_tracked"].item() == 4  # 3.67
        assert found["bn.num_batches_tracked"].dtype == torch.int64
        assert found["mask"].tolist() == [True, False]

    def test_truth_values_have_no_average(self):
        models = [net(0), net(1)]
        models[1].mask.logical_not_()
        with pytest.raises(InputError, match="truth values of 'mask'"):
            ratfast.average(models, buffers="average")

    def test_only_a_module_tells_other_buffers(self):
        models = [net(0), net(1)]
        models[1].scale.fill_(3)
        with pytest.raises(InputError, match="scale"):
            ratfast.average(models)
        with pytest.raises(InputError, match="scale"):
            ratfast.average([models[0].state_dict(), models[1]])
        assert ratfast.average([model.state_dict() for model in models])["scale"].item() == 2

    def test_kept_buffers_are_copies_in_the_wanted_type(self):
        model = net(0)
        found = ratfast.average([model], dtype="bfloat16")
        assert found["bn.running_var"].dtype == torch.bfloat16
        assert found["bn.num_batches_tracked"].dtype == torch.int64
        assert ratfast.average([model])["bn.running_var"].data_ptr() != model.bn.running_var.data_ptr()

    @pytest.mark.parametrize(
        "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32]
    )
    def test_integer_types(self, dtype):
        states = [{"n": torch.tensor([1, 2, 3]).to(dtype)}, {"n": torch.tensor([2, 2, 8]).to(dtype)}]
        found = ratfast.average(states, buffers="average")["n"]
        assert found.dtype == dtype and found.tolist() == [2, 2, 6]  # 1.5 and 5.5 to even
        assert ratfast.average(states, buffers="keep")["n"].tolist() == [1, 2, 3]
        with pytest.raises(InputError, match="'n'"):
            ratfast.average(states)


class Tied(nn.Module):
    def __init__(self, tied=True):
        super().__init__()
        self.encoder = nn.Linear(4, 4, bias=False)
        self.decoder = nn.Linear(4, 4, bias=False)
        if tied:
            self.decoder.weight = self.encoder.weight


class TestTied:
    def test_stay_tied(self, monkeypatch):
        from ratfast import ops

        calls = []
        mix = ops.mix_
        monkeypatch.setattr(
            ops, "mix_", lambda outputs, *rest: calls.append(len(outputs[0])) or mix(outputs, *rest)
        )
        models = [Tied(), Tied()]
        found = ratfast.average(models)
        assert calls == [1]
        assert found["encoder.weight"].data_ptr() == found["decoder.weight"].data_ptr()
        expected = (models[0].encoder.weight + models[1].encoder.weight) / 2
        torch.testing.assert_close(found["decoder.weight"], expected.detach())

    def test_aliases_in_files(self, tmp_path):
        """As in DomainBed's files, where each tensor stands under two names."""
        states = []
        for seed in range(2):
            torch.manual_seed(seed)
            tensor = torch.randn(6, 2)
            states.append({"featurizer.a": tensor, "network.0.a": tensor})
            torch.save({"model_dict": states[-1]}, tmp_path / f"{seed}.pkl")
        found = ratfast.average([tmp_path / "0.pkl", tmp_path / "1.pkl"])
        assert found["featurizer.a"] is found["network.0.a"]
        assert_close(found, oracle(states, [0.5, 0.5]))

    def test_part_of_another(self):
        """A tensor that shares its start and strides with a larger one is not tied to it."""
        states = []
        for seed in range(2):
            torch.manual_seed(seed)
            table = torch.randn(5, 4)
            states.append({"table": table, "head": table[:2]})
        assert_close(ratfast.average(states), oracle(states, [0.5, 0.5]))

    def test_tied_in_one_only(self):
        models = [Tied(), Tied(tied=False)]
        expected = oracle([model.state_dict() for model in models], [0.5, 0.5])
        assert_close(ratfast.average(models), expected)

    def test_into_a_tied_module(self):
        """Into one of the models, tied, while the other is not: sums come before overwriting."""
        models = [Tied(), Tied(tied=False)]
        expected = oracle([model.state_dict() for model in models], [0.5, 0.5])
        found = ratfast.average(models, out=models[0])
        assert_close(
            {"decoder.weight": found["decoder.weight"]}, {"decoder.weight": expected["decoder.weight"]}
        )
        assert models[0].encoder.weight is models[0].decoder.weight


class TestOut:
    def test_module(self):
        models = [net(0), net(1)]
        expected = ratfast.average(models)
        out = net(5)
        parameter = out.conv.weight
        version = parameter._version
        found = ratfast.average(models, out=out)
        assert out.conv.weight is parameter and parameter._version > version and parameter.requires_grad
        for name, value in out.state_dict().items():
            assert torch.equal(value, expected[name]) and torch.equal(found[name], expected[name])

    @pytest.mark.parametrize("position", [0, 1, 2])
    def test_in_place(self, position):
        models = [net(seed) for seed in range(3)]
        expected = ratfast.average(models, [0.5, 0.25, 2.0])
        ratfast.average(models, [0.5, 0.25, 2.0], out=models[position])
        for name, value in models[position].state_dict().items():
            assert torch.equal(value, expected[name]), name

    def test_in_place_with_another_order_and_type(self):
        models = [net(0), net(1).to(memory_format=torch.channels_last), net(2).double()]
        for position in range(3):
            copies = [copy.deepcopy(model) for model in models]
            expected = ratfast.average([model.double() for model in copy.deepcopy(models)])
            ratfast.average(copies, out=copies[position])
            for name, value in copies[position].state_dict().items():
                torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-6, atol=1e-7)

    def test_dict_keeps_its_types(self):
        states = [{"a": torch.randn(4, 4)} for _ in range(2)]
        out = {"a": torch.empty(4, 4, dtype=torch.bfloat16).T}
        found = ratfast.average(states, out=out)
        assert out["a"].dtype == torch.bfloat16
        assert found["a"].data_ptr() == out["a"].data_ptr()
        assert_close(out, oracle(states, [0.5, 0.5]))

    def test_overlaps(self):
        """Outputs that overlap other sources, or hold them swapped, or shifted: as if nothing were shared."""
        memory = torch.randn(13)
        states = [{"a": memory[:6], "b": memory[6:12]}, {"a": torch.randn(6), "b": torch.randn(6)}]
        for views in ((memory[6:12], memory[:6]), (memory[1:7], memory[7:13])):
            memory.normal_()
            expected = oracle(states, [0.5, 0.5])
            found = ratfast.average(states, out={"a": views[0], "b": views[1]})
            assert_close(found, expected)

    def test_the_memory_of_a_source_in_another_type(self):
        state = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0])}
        out = {"a": state["a"].view(torch.bfloat16)[:4]}
        assert ratfast.average([state], out=out)["a"].tolist() == [1.0, 2.0, 3.0, 4.0]

    def test_transposed_onto_itself(self):
        square = torch.randn(3, 3)
        expected = (square + square.T).clone() / 2
        ratfast.average([{"a": square}, {"a": square.T}], out={"a": square})
        torch.testing.assert_close(square, expected)

    def test_kept_buffers_survive(self):
        memory = torch.ones(4)
        state = {"a": torch.full((4,), 6.0), "bn.running_mean": memory}
        out = {"a": memory, "bn.running_mean": torch.zeros(4)}
        ratfast.average([state], [0.5], out=out)
        assert out["a"].tolist() == [3.0] * 4 and out["bn.running_mean"].tolist() == [1.0] * 4

    @pytest.mark.parametrize(
        ("out", "reason"),
        [
            ({}, "out does not fit model 1: a is missing"),
            ({"a": torch.zeros(2)}, "has shape"),
            ({"a": torch.zeros(1).int()}, "cannot hold the average"),
            ([torch.zeros(1)], "out is a list"),
        ],
    )
    def test_wrong_out(self, out, reason):
        with pytest.raises(InputError, match=reason):
            ratfast.average([{"a": torch.zeros(1)}], out=out)


@pytest.mark.cuda
def test_devices_mix(cuda):
    states = [{"a": torch.randn(5, 5, device=device)} for device in (cuda, "cpu", cuda)]
    found = ratfast.average(states)
    assert found["a"].device == cuda
    assert_close({"a": found["a"].cpu()}, oracle([{"a": state["a"].cpu()} for state in states], [1 / 3] * 3))
    out = {"a": torch.zeros(5, 5)}
    ratfast.average(states, out=out)
    assert torch.equal(out["a"], found["a"].cpu())
