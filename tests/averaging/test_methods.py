"""The methods against their papers' formulas, written here in float64; from files and in memory."""

import hashlib
import json
import math
import random

import numpy as np
import numpy_core
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ratfast
from ratfast import InputError, checkpoints
from ratfast.averaging import again, merge_files
from ratfast.averaging.methods import METHODS, method_options

COUNT = 4
SHAPES = {"conv.weight": (6, 2, 3, 3), "conv.bias": (6,), "head.weight": (5, 6), "scale": (), "none": (0, 2)}
BIG = {name for name, shape in SHAPES.items() if math.prod(shape)}


def states(count=COUNT, dtype=torch.float32, seed=0):
    """Fine-tunings of the first, as different from it as their number."""
    torch.manual_seed(seed)
    base = {name: torch.randn(shape).to(dtype) for name, shape in SHAPES.items()}
    return [base] + [
        {
            name: (value.double() + 0.3 * torch.randn(value.shape).double()).to(dtype)
            for name, value in base.items()
        }
        for _ in range(count - 1)
    ]


def arrays(models, name):
    return [model[name].double().numpy().reshape(-1) for model in models]


def whole(models):
    return [np.concatenate([arrays([model], name)[0] for name in sorted(SHAPES)]) for model in models]


def add(terms):
    """In the order of the terms, without fused operations."""
    total = 0.0
    for term in terms:
        total = total + term
    return total


def mean_of(models, weights, name):
    return add(w * x for w, x in zip(weights, arrays(models, name), strict=True) if w != 0)


# The formulas: models, options -> {name: flat float64}, or a list of such.


def uniform(models, options):
    return {name: mean_of(models, [1 / len(models)] * len(models), name) for name in SHAPES}


def weighted(models, options):
    weights = dict.fromkeys(SHAPES, options.get("weights", [1 / len(models)] * len(models)))
    for pattern, own in options.get("weights_for", {}).items():
        ending = pattern.removeprefix("*")
        weights |= {name: own for name in SHAPES if name.endswith(ending)}
    return {name: mean_of(models, weights[name], name) for name in SHAPES}


def wise_ft(models, options):
    alphas = options.get("alpha", 0.5)
    outputs = [
        {name: mean_of(models, [1 - a, a], name) for name in SHAPES} for a in np.atleast_1d(alphas).tolist()
    ]
    return outputs if np.ndim(alphas) else outputs[0]


def path(models, options):
    outputs = []
    for k in range(options["points"]):
        place = k * (len(models) - 1) / (options["points"] - 1)
        weights = [max(0.0, 1.0 - abs(place - n)) for n in range(len(models))]
        outputs.append({name: mean_of(models, weights, name) for name in SHAPES})
    return outputs


def fusing(models, options):
    """As ModelRatatouille's code draws them."""
    draws = random.Random(options["seed"])
    factors = [math.exp(4 * draws.random()) for _ in models]
    return {name: mean_of(models, [f / sum(factors) for f in factors], name) for name in SHAPES}


def task_arithmetic(models, options):
    result = {}
    for name in SHAPES:
        base, *others = arrays(models, name)
        weights = options.get("weights", [1.0] * len(others))
        result[name] = base + options.get("scale", 1.0) * add(
            w * (x - base) for w, x in zip(weights, others, strict=True)
        )
    return result


def slerp(models, options):
    def angle(a, b):
        return math.acos(float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)))

    per_tensor, a = options.get("per_tensor", True), options.get("alpha", 0.5)
    result = {}
    for name in SHAPES:
        one, two = arrays(models, name)
        if not one.size:
            result[name] = one
            continue
        t = angle(one, two) if per_tensor else angle(*whole(models))
        if t < 1e-6:
            result[name] = (1 - a) * one + a * two
        else:
            result[name] = (math.sin((1 - a) * t) * one + math.sin(a * t) * two) / math.sin(t)
    return result


def model_stock(models, options):
    def ratio(base, others):
        differences = [other - base for other in others]
        cosines = [
            np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
            for i, a in enumerate(differences)
            for b in differences[:i]
        ]
        cosine = max(0.0, float(np.mean(cosines)))
        return len(others) * cosine / (1 + (len(others) - 1) * cosine)

    result = {}
    for name in SHAPES:
        base, *others = arrays(models, name)
        rows = whole(models) if not options.get("per_tensor", True) else [base, *others]
        t = ratio(rows[0], rows[1:]) if base.size else 0.0
        result[name] = t * np.mean(others, axis=0) + (1 - t) * base
    return result


def elected(base, taus, weights, scale):
    total = add(w * tau for w, tau in zip(weights, taus, strict=True))
    sign = np.sign(total)
    top = add(np.where(np.sign(tau) == sign, w * tau, 0.0) for w, tau in zip(weights, taus, strict=True))
    below = add(np.where(np.sign(tau) == sign, w, 0.0) for w, tau in zip(weights, taus, strict=True))
    with np.errstate(all="ignore"):
        return np.where(sign == 0, base, base + scale * (top / below))


def ties(models, options):
    density, per_tensor = options.get("density", 0.2), options.get("per_tensor", False)
    own = options.get("weights", [1 / (len(models) - 1)] * (len(models) - 1))
    differences = [
        {n: arrays([model], n)[0] - arrays(models[:1], n)[0] for n in sorted(SHAPES)} for model in models[1:]
    ]

    def smallest(values):
        magnitudes = np.sort(np.abs(np.concatenate(values)).astype(np.float32))[::-1]
        return magnitudes[max(1, int(density * magnitudes.size)) - 1] if magnitudes.size else 0.0

    result = {}
    for name in SHAPES:
        base = arrays(models[:1], name)[0]
        taus = []
        for difference in differences:
            tau = difference[name]
            least = smallest([tau] if per_tensor else list(difference.values()))
            taus.append(np.where(np.abs(tau).astype(np.float32) >= least, tau, 0.0))
        result[name] = elected(base, taus, own, options.get("scale", 1.0))
    return result


def dropped(models, options, name):
    base, *others = arrays(models, name)
    density = options.get("density", 0.5)
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1
    taus = []
    for n, other in enumerate(others):
        u = numpy_core.philox(options.get("seed", 0), n, key, np.arange(base.size))
        kept = u < density
        if base.size > 50:
            assert abs(kept.mean() - density) < 0.25
        taus.append(np.where(kept, (other - base) / density, 0.0))
    return base, taus


def dare_linear(models, options):
    result = {}
    for name in SHAPES:
        base, taus = dropped(models, options, name)
        weights = options.get("weights", [1 / len(taus)] * len(taus))
        total = add(w * tau for w, tau in zip(weights, taus, strict=True))
        result[name] = base + options.get("scale", 1.0) * total
    return result


def dare_ties(models, options):
    result = {}
    for name in SHAPES:
        base, taus = dropped(models, options, name)
        weights = options.get("weights", [1 / len(taus)] * len(taus))
        result[name] = elected(base, taus, weights, options.get("scale", 1.0))
    return result


def fisher(models, options):
    weights = options.get("weights", [1.0] * len(models))
    weights = [w / sum(weights) for w in weights]
    result = {}
    for name in SHAPES:
        x, f = arrays(models, name), arrays(options["fisher"], name)
        top = add(w * b * a for w, a, b in zip(weights, x, f, strict=True))
        below = add(w * b for w, b in zip(weights, f, strict=True))
        plain = add(w * a for w, a in zip(weights, x, strict=True)) / add(weights)
        with np.errstate(all="ignore"):
            result[name] = np.where(below == 0, plain, top / below)
    return result


def geometric(models, options):
    weights = options.get("weights", [1.0] * len(models))
    weights = [w / math.fsum(weights) for w in weights]
    result = {}
    for name in SHAPES:
        x = [row for row, w in zip(arrays(models, name), weights, strict=True) if w]
        w = [w for w in weights if w]
        magnitude = np.exp(add(a * np.log(np.abs(row)) for a, row in zip(w, x, strict=True)))
        result[name] = np.sign(add(a * row for a, row in zip(w, x, strict=True))) * magnitude
    return result


def extreme(function):
    return lambda models, options: {name: function(arrays(models, name), axis=0) for name in SHAPES}


FORMULAS = {
    "uniform": uniform,
    "weighted": weighted,
    "wise-ft": wise_ft,
    "path": path,
    "fusing": fusing,
    "task-arithmetic": task_arithmetic,
    "slerp": slerp,
    "model-stock": model_stock,
    "ties": ties,
    "dare-linear": dare_linear,
    "dare-ties": dare_ties,
    "fisher": fisher,
    "geometric": geometric,
    "min": extreme(np.min),
    "max": extreme(np.max),
}
CASES = [
    ("uniform", COUNT, {}),
    ("weighted", 3, {"weights": [0.5, -2.0, 0.0]}),
    ("weighted", 2, {"weights_for": {"*.weight": [0.25, 0.75], "*head.weight": [0.0, 1.0]}}),
    ("wise-ft", 2, {"alpha": 0.3}),
    ("wise-ft", 2, {"alpha": [0.0, 0.25, 1.5]}),
    ("path", 2, {"points": 3}),
    ("path", 3, {"points": 5}),
    ("fusing", COUNT, {"seed": 5}),
    ("task-arithmetic", COUNT, {"scale": 0.4}),
    ("task-arithmetic", 3, {"weights": [1.0, -0.5]}),
    ("slerp", 2, {"alpha": 0.25}),
    ("slerp", 2, {"alpha": 0.75, "per_tensor": False}),
    ("model-stock", 3, {}),
    ("model-stock", COUNT, {"per_tensor": False}),
    ("ties", COUNT, {}),
    ("ties", 3, {"density": 0.5, "scale": 0.7, "weights": [1.0, 2.0]}),
    ("ties", COUNT, {"density": 0.3, "per_tensor": True}),
    ("ties", COUNT, {"density": 1.0}),
    ("dare-linear", 3, {"density": 0.4, "seed": 3, "scale": 0.5}),
    ("dare-ties", COUNT, {"density": 0.5, "seed": 2**31}),
    ("fisher", 3, {}),
    ("fisher", 3, {"weights": [1.0, 0.0, 3.0]}),
    ("geometric", 3, {}),
    ("geometric", 3, {"weights": [1.0, 0.0, 3.0]}),
    ("min", COUNT, {}),
    ("max", COUNT, {}),
]
EXACT = {"uniform", "weighted", "wise-ft", "ties", "dare-linear", "dare-ties", "fisher", "min", "max"}


def with_fisher(method, options, dtype=torch.float32):
    if method != "fisher":
        return options
    diagonals = [
        {name: tensor.square() for name, tensor in model.items()} for model in states(3, dtype=dtype, seed=7)
    ]
    for diagonal in diagonals:
        diagonal["conv.bias"][:2] = 0.0
    return {**options, "fisher": diagonals}


def write(folder, models, prefix=""):
    paths = [folder / f"{prefix}{index}.safetensors" for index in range(len(models))]
    for model, file in zip(models, paths, strict=True):
        checkpoints.save(model, file)
    return paths


def files_of(folder, options):
    return {**options, "fisher": write(folder, options["fisher"], "f")} if "fisher" in options else options


def assert_formula(found, expected, exact):
    assert found.keys() == SHAPES.keys()
    for name, tensor in found.items():
        assert tensor.shape == SHAPES[name] and tensor.dtype == torch.float32
        wanted = torch.from_numpy(np.atleast_1d(expected[name]).astype(np.float32)).reshape(SHAPES[name])
        if exact:
            torch.testing.assert_close(tensor, wanted, rtol=0, atol=0)
        else:
            torch.testing.assert_close(tensor, wanted, rtol=2e-7, atol=1e-7)


@pytest.mark.parametrize(("method", "count", "options"), CASES)
def test_files(tmp_path, core, method, count, options):
    models = states(count)
    options = with_fisher(method, options)
    expected = FORMULAS[method](models, options)
    out = tmp_path / "out.safetensors"
    written = merge_files(write(tmp_path, models), out, method=method, **files_of(tmp_path, options))
    expected = expected if isinstance(expected, list) else [expected]
    assert len(written.paths) == len(expected)
    for file, wanted in zip(written.paths, expected, strict=True):
        assert_formula(checkpoints.load(file), wanted, method in EXACT)


@pytest.mark.parametrize(("method", "count", "options"), CASES)
def test_memory(method, count, options):
    models = states(count)
    options = with_fisher(method, options)
    expected = FORMULAS[method](models, options)
    found = ratfast.merge(models, method, **options)
    assert isinstance(found, list) == isinstance(expected, list)
    for one, wanted in zip(
        found if isinstance(found, list) else [found],
        expected if isinstance(expected, list) else [expected],
        strict=True,
    ):
        assert_formula(one, wanted, method in EXACT)


@pytest.mark.parametrize(("method", "count", "options"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_and_memory_agree_to_the_bit(tmp_path, core, method, count, options, dtype):
    models = states(count, dtype)
    models[-1] = {name: tensor.float() for name, tensor in models[-1].items()}  # mixed types
    options = with_fisher(method, options, dtype)
    out = tmp_path / "out.safetensors"
    files = files_of(tmp_path, options)
    written = merge_files(write(tmp_path, models), out, method=method, **files)
    found = ratfast.merge(models, method, **options)
    for file, expected in zip(written.paths, found if isinstance(found, list) else [found], strict=True):
        torch.testing.assert_close(checkpoints.load(file), dict(sorted(expected.items())), rtol=0, atol=0)


@pytest.mark.parametrize("method", ["dare-linear", "ties", "min", "slerp"])
def test_memory_formats(method):
    """Channels-last models give what models in C order give, in the first model's format."""
    models = states(2)
    options = {"seed": 1} if method.startswith("dare") else {}
    expected = ratfast.merge(models, method, **options)
    last = [
        {n: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for n, t in m.items()}
        for m in models
    ]
    for given_models in (last, [last[0], models[1]]):
        found = ratfast.merge(given_models, method, **options)
        assert found["conv.weight"].is_contiguous(memory_format=torch.channels_last)
        tolerance = 1e-7 if method == "slerp" else 0
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, check_stride=False)


@pytest.mark.parametrize("method", [name for name in METHODS if "base" in method_options(name)])
def test_the_base_may_stand_anywhere(tmp_path, core, method):
    base, *others = states(2 if method == "wise-ft" else 3)
    expected = ratfast.merge([base, *others], method)
    rotated = ratfast.merge([*others, base], method, base=len(others))
    apart = ratfast.merge(others, method, base=base)
    out = tmp_path / "out.safetensors"
    merge_files(write(tmp_path, others), out, method=method, base=write(tmp_path, [base], "b")[0])
    for found in (rotated, apart, checkpoints.load(out)):
        torch.testing.assert_close(
            dict(sorted(found.items())), dict(sorted(expected.items())), rtol=2e-7, atol=1e-7
        )


@pytest.mark.parametrize(
    "method", ["ties", "dare-ties", "model-stock", "task-arithmetic", "min", "geometric"]
)
@pytest.mark.parametrize("buffers", ["keep", "average"])
def test_buffers(tmp_path, core, method, buffers):
    """Batch-norm statistics and counters are averaged plainly, of the fine-tunings where there is a base."""
    models = states(3)
    for n, model in enumerate(models):
        model["bn.running_var"] = torch.full((3,), float(n + 1))
        model["bn.num_batches_tracked"] = torch.tensor(10 * n)
    mean = (2.5, 15) if "base" in method_options(method) else (2.0, 10)
    wanted = mean if buffers == "average" else (1.0, 0)
    merge_files(write(tmp_path, models), tmp_path / "out.safetensors", method=method, buffers=buffers)
    for found in (
        ratfast.merge(models, method, buffers=buffers),
        checkpoints.load(tmp_path / "out.safetensors"),
    ):
        assert (found["bn.running_var"][0].item(), found["bn.num_batches_tracked"].item()) == wanted


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_pool(tmp_path, core, data):
    """Shapes, types and methods as they come: files and memory say the same."""
    method, count, options = data.draw(st.sampled_from(CASES))
    shapes = data.draw(st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=4))
    names = [f"{n}.head.weight" for n in range(len(shapes))]
    dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))

    def model():
        return {
            name: (torch.randn(shape, generator=generator).abs() + 0.1).to(data.draw(dtypes))
            for name, shape in zip(names, shapes, strict=True)
        }

    models = [model() for _ in range(count)]
    options = {**options, "fisher": [model() for _ in models]} if method == "fisher" else options
    dtype = data.draw(st.sampled_from([None, "float32", "bfloat16"]))
    written = merge_files(
        write(tmp_path, models),
        tmp_path / "out.safetensors",
        method=method,
        dtype=dtype,
        **files_of(tmp_path, options),
    )
    found = ratfast.merge(models, method, dtype=dtype, **options)
    for file, expected in zip(written.paths, found if isinstance(found, list) else [found], strict=True):
        # numpy's inner products are not ours to the last bit
        tolerance = 1e-13 if core is numpy_core and method in ("slerp", "model-stock") else 0.0
        loaded = checkpoints.load(file)
        torch.testing.assert_close(loaded, dict(expected), rtol=tolerance, atol=tolerance)


BAD = [
    ("ties", 1, {}, "ties needs a base and 1 other model or more, but there are 1 models"),
    ("model-stock", 2, {}, "model-stock needs a base and 2 other models or more, but there are 2 models"),
    ("slerp", 3, {}, "slerp needs exactly 2 models, but there are 3"),
    ("wise-ft", 3, {}, "wise-ft needs a base and 1 other model, but there are 3 models"),
    ("path", 1, {}, "at least two models"),
    ("path", 2, {"points": 1}, "points is 1, expected a whole number of at least 2"),
    ("ties", 2, {"density": 0}, "density is 0, expected a number above 0 and up to 1"),
    ("ties", 2, {"density": 1.5}, "density is 1.5"),
    ("ties", 2, {"density": "much"}, "density is 'much'"),
    ("dare-linear", 2, {"seed": -1}, "seed is -1"),
    ("dare-linear", 2, {"seed": 2**32}, "below 2\\*\\*32"),
    ("ties", 2, {"scale": math.nan}, "scale is nan"),
    ("ties", 2, {"base": 2}, "base is 2, expected the index of a model, from 0 to 1"),
    ("ties", 3, {"weights": [1.0]}, "1 weights were given for 2 models"),
    ("geometric", 2, {"weights": [1.0, -1.0]}, "expected none below 0"),
    ("weighted", 2, {"weights_for": {"nothing.*": [1, 1]}}, "'nothing.\\*' matches no parameter"),
    ("weighted", 2, {"weights_for": {"*": [1]}}, "for the pattern '\\*': 1 weights were given for 2"),
    ("wise-ft", 2, {"alpha": []}, "alpha is an empty list"),
    ("uniform", 2, {"density": 0.5}, "the method uniform has no option 'density': it has none"),
    (
        "ties",
        2,
        {"sacle": 1.0},
        "no option 'sacle': expected one of base, density, weights, scale, per_tensor",
    ),
    ("tie", 2, {}, "there is no method 'tie', expected one of uniform,"),
    ("fisher", 2, {}, "fisher needs"),
    ("uniform", 2, {"fisher": [{}]}, "takes no Fisher diagonals"),
]


@pytest.mark.parametrize(("method", "count", "options", "reason"), BAD)
def test_nonsense(tmp_path, core, method, count, options, reason):
    models = states(count)
    with pytest.raises(InputError, match=reason):
        ratfast.merge(models, method, **options)
    out = tmp_path / "out.safetensors"
    with pytest.raises(InputError, match=reason):
        merge_files(write(tmp_path, models), out, method=method, **options)
    assert not out.exists()


def test_opposite_and_parallel_tensors():
    one = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2)}
    found = ratfast.merge([one, {"a": torch.tensor([3.0, 6.0]), "b": torch.ones(2)}], "slerp", alpha=0.25)
    torch.testing.assert_close(found, {"a": torch.tensor([1.5, 3.0]), "b": torch.full((2,), 0.25)})
    with pytest.raises(InputError, match="'a' of model 2 is opposite to that of model 1"):
        ratfast.merge([one, {"a": -one["a"], "b": one["b"]}], "slerp")


@pytest.mark.parametrize("native_code", [True, False])
def test_what_is_not_finite_is_named(tmp_path, core, monkeypatch, native_code):
    if not native_code:
        monkeypatch.setattr("ratfast.native.load_core", lambda: None)
    models = states(3)
    models[1]["conv.bias"][2] = math.nan
    paths = write(tmp_path, models)
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"before")
    with pytest.raises(InputError, match=r"'conv.bias' of .*1\.safetensors has values that are not finite"):
        merge_files(paths, out, method="uniform")
    with pytest.raises(InputError, match=r"'conv.bias' of .*1\.safetensors has values that are not finite"):
        merge_files(paths, out, method="dare-linear", density=1.0)
    big = [{**model, "scale": torch.tensor(60000.0), "conv.bias": torch.ones(6)} for model in models]
    paths = write(tmp_path, big)
    with pytest.raises(InputError, match=r"result for 'scale' is not finite: it does not fit float16"):
        merge_files(paths, out, method="weighted", weights=[1, 1, 1], dtype="float16")
    assert out.read_bytes() == b"before"
    with pytest.raises(InputError, match=r"'conv.bias' of .*1\.safetensors has values that are not finite"):
        merge_files(write(tmp_path, models), tmp_path / "point.safetensors", method="path", points=3)
    assert not list(tmp_path.glob("point*"))
    merge_files(write(tmp_path, models), out, method="weighted", weights=[1, 0, 1])  # what counts is finite


@pytest.mark.parametrize(("method", "count", "options"), CASES)
def test_again_gives_the_same_bytes(tmp_path, core, method, count, options):
    models = states(count)
    options = files_of(tmp_path, with_fisher(method, options))
    paths = write(tmp_path, models)
    written = merge_files(paths, tmp_path / "out.safetensors", method=method, buffers="keep", **options)
    for file in written.paths:
        again(file, tmp_path / "again.safetensors")
        with open(file, "rb") as one, open(tmp_path / "again.safetensors", "rb") as other:
            assert one.read() == other.read()
    checkpoints.save(models[0] | {"scale": torch.tensor(7.0)}, paths[1])
    with pytest.raises(InputError, match=r"1\.safetensors changed since .*out.*\.safetensors was made of it"):
        again(written.paths[0], tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()


def test_again_refuses_other_files(tmp_path, core):
    [path] = write(tmp_path, states(1))
    with pytest.raises(InputError, match="does not record how it was made"):
        again(path, tmp_path / "out.safetensors")


def test_names_of_several_outputs(tmp_path, core):
    paths = write(tmp_path, states(2))
    written = merge_files(paths, tmp_path / "out.safetensors", method="wise-ft", alpha=[0.25, 1.0])
    assert [file.rpartition("/")[2] for file in written.paths] == [
        "out-0.25.safetensors",
        "out-1.safetensors",
    ]
    named = merge_files(paths, tmp_path / "a{alpha}b.safetensors", method="wise-ft", alpha=[0.25, 1.0])
    assert [file.rpartition("/")[2] for file in named.paths] == ["a0.25b.safetensors", "a1b.safetensors"]
    with pytest.raises(InputError, match="are the same"):
        merge_files(paths, tmp_path / "out.safetensors", method="wise-ft", alpha=[0.5, 0.5])
    assert checkpoints.read_metadata(written.paths[0])["point"] == 0.25


def test_shared_tensors(tmp_path, core):
    """What shares memory in all files is computed and written once, and shared again when it is loaded."""
    models = states(2)
    for model in models:
        model["tied"] = model["head.weight"]
    paths = write(tmp_path, models)
    out = tmp_path / "out.safetensors"
    written = merge_files(paths, out, method="uniform")
    found = checkpoints.load(out)
    expected = ratfast.merge(models, "uniform")
    assert found.keys() == models[0].keys() and written.tensors == len(found)
    assert checkpoints.open_checkpoint(out).aliases
    for tensors in (found, expected):
        torch.testing.assert_close(tensors["tied"], models[0]["tied"] / 2 + models[1]["tied"] / 2)
        assert tensors["tied"].data_ptr() == tensors["head.weight"].data_ptr()
    models[1]["tied"] = torch.zeros(5, 6)  # not shared in all: two tensors
    merge_files(write(tmp_path, models), out, method="uniform")
    torch.testing.assert_close(checkpoints.load(out)["tied"], models[0]["tied"] / 2)


def test_metadata_are_plain(tmp_path, core):
    paths = write(tmp_path, states(3))
    out = tmp_path / "out.safetensors"
    merge_files(paths, out, method="ties", base=paths[0], density=np.float32(0.5), weights=(1, 2, 3))
    note = checkpoints.read_metadata(out)
    assert note["method"] == "ties" and json.dumps(note)
    assert note["options"] == {"base": 0, "density": 0.5, "weights": [1, 2, 3]}
    assert len(note["inputs"]) == 4
