"""Configurations in mergekit's format: what they mean by its documentation, and what is refused."""

import fnmatch

import pytest
import torch

from ratfast import InputError, checkpoints
from ratfast.averaging import merge_files
from ratfast.averaging.mergekit import parse_mergekit, read_mergekit

yaml = pytest.importorskip("yaml")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three files of one architecture, and a folder with one file."""
    monkeypatch.chdir(tmp_path)
    state = {
        "layers.0.attn.weight": torch.ones(2, 2),
        "layers.0.mlp.weight": torch.ones(2, 2),
        "head[0].weight": torch.ones(2),
        "bn.running_mean": torch.ones(2),
    }
    (tmp_path / "in_folder").mkdir()
    for name in ("base", "a", "b", "in_folder/model"):
        checkpoints.save(state, tmp_path / f"{name}.safetensors")
    return tmp_path


def read(folder, text):
    (folder / "merge.yml").write_text(text)
    return read_mergekit(folder / "merge.yml")


def names(merge):
    return [path.name for path in merge.paths]


def test_linear(folder):
    merge = read(
        folder,
        """
        models:
          - {model: a.safetensors, parameters: {weight: 3}}
          - model: in_folder
        merge_method: linear
        dtype: bfloat16
        """,
    )
    assert (merge.method, names(merge), merge.dtype) == (
        "weighted",
        ["a.safetensors", "model.safetensors"],
        "bfloat16",
    )
    assert merge.options == {"weights": [0.75, 0.25]}  # 1 where nothing is said; normalised


def test_precedence_and_absolute_weights(folder):
    merge = read(
        folder,
        """
        merge_method: linear
        models:
          - {model: a.safetensors, parameters: {weight: 0.5}}
          - {model: b.safetensors}
        parameters: {weight: 2.0, normalize: false}
        dtype: float32
        out_dtype: float16
        """,
    )
    assert merge.options == {"weights": [0.5, 2.0]} and merge.dtype == "float16"


def test_filters(folder):
    """The first filter that is in the name counts; then the value for all models; then 1."""
    merge = read(
        folder,
        """
        merge_method: linear
        models:
          - model: a.safetensors
            parameters:
              weight:
                - {filter: attn, value: 3.0}
                - {filter: "layers.0", value: 7.0}
                - {value: 1.0}
          - model: b.safetensors
            parameters: {weight: [{filter: "head[0]", value: 5}]}
        parameters: {weight: 1}
        """,
    )
    assert merge.options["weights"] in ([0.75, 0.25], [0.875, 0.125], [1 / 6, 5 / 6])

    def weights(name):
        found = merge.options["weights"]
        for pattern, own in merge.options["weights_for"].items():
            found = own if fnmatch.fnmatchcase(name, pattern) else found
        return found

    assert weights("layers.0.attn.weight") == [0.75, 0.25]
    assert weights("layers.0.mlp.weight") == [0.875, 0.125]
    assert weights("head[0].weight") == [1 / 6, 5 / 6]
    assert all("running_mean" not in pattern for pattern in merge.options["weights_for"])


def test_ties_with_the_base_among_the_models(folder):
    merge = read(
        folder,
        """
        models:
          - model: base.safetensors
          - {model: a.safetensors, parameters: {density: 0.5, weight: 0.5}}
          - {model: b.safetensors, parameters: {density: 0.5, weight: 0.3}}
        merge_method: ties
        base_model: base.safetensors
        parameters: {normalize: true, int8_mask: true, lambda: 1.5}
        """,
    )
    assert merge.method == "ties" and names(merge) == ["base.safetensors", "a.safetensors", "b.safetensors"]
    assert merge.options == {
        "weights": [0.5, 0.3],
        "scale": 1.5,
        "density": 0.5,
        "per_tensor": True,
        "base": 0,
    }


@pytest.mark.parametrize(
    ("method", "parameters", "expected"),
    [
        ("task_arithmetic", "{weight: 0.4}", {"weights": [0.4, 0.4], "base": 0}),
        ("task_arithmetic", "{weight: 0.4, normalize: true}", {"weights": [0.5, 0.5], "base": 0}),
        ("dare_linear", "{density: 0.2}", {"weights": [1, 1], "density": 0.2, "base": 0}),
        ("dare_ties", "{density: 0.2, rescale: true}", {"weights": [1, 1], "density": 0.2, "base": 0}),
        ("model_stock", "{filter_wise: false}", {"per_tensor": True, "base": 0}),
    ],
)
def test_methods_with_a_base(folder, method, parameters, expected):
    merge = read(
        folder,
        f"merge_method: {method}\nbase_model: base.safetensors\nparameters: {parameters}\n"
        "models: [{model: a.safetensors}, {model: b.safetensors}]\n",
    )
    assert merge.method == method.replace("_", "-")
    assert merge.options == expected and len(merge.paths) == 3


def test_slerp(folder):
    merge = read(
        folder,
        "merge_method: slerp\nbase_model: b.safetensors\nparameters: {t: 0.3}\n"
        "models: [{model: a.safetensors}, {model: b.safetensors}]\n",
    )
    assert names(merge) == ["b.safetensors", "a.safetensors"]  # t = 0 is the base
    assert merge.options == {"alpha": 0.3, "per_tensor": True}


LINEAR = "merge_method: linear\nmodels: [{model: a.safetensors}, {model: b.safetensors}]\n"
TIES = "merge_method: ties\nbase_model: base.safetensors\nmodels: [{model: a.safetensors}, {model: b.safetensors}]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: passthrough\nmodels: [{model: a.safetensors}]", "passthrough is not supported"),
        ("merge_method: linear\nslices: []", "slices .* not supported"),
        (
            "merge_method: della\nmodels: [{model: a.safetensors}]",
            "merge_method is 'della', expected one of linear",
        ),
        ("models: [{model: a.safetensors}]", "merge_method is None"),
        ("merge_method: linear", "models is missing"),
        ("merge_method: linear\nmodels: [a.safetensors]", "names no model"),
        (
            "merge_method: linear\nmodels: [{model: a.safetensors, layer_range: [0, 1]}]",
            "'layer_range' of the model",
        ),
        ("merge_method: linear\nmodels: [{model: none.safetensors}]", "none.safetensors"),
        ("[1, 2]", "holds a list"),
        ("a: [", "not a YAML document"),
        (LINEAR + "tokenizer_source: union", "'tokenizer_source' is not supported"),
        (LINEAR + "dtype: int8", "dtype is 'int8'"),
        (LINEAR + "parameters: {density: 0.5}", "'density' .* not a parameter of linear"),
        (LINEAR + "parameters: {weight: [0.1, 0.5]}", "gradient over layers"),
        (LINEAR + "parameters: {weight: high}", "expected a number"),
        (LINEAR + "parameters: {weight: [{filter: a}]}", "the rule"),
        (LINEAR + "parameters: {weight: 0}", "sum to 0"),
        (LINEAR + "parameters: {normalize: 1}", "expected true or false"),
        (LINEAR.replace("linear", "slerp") + "parameters: {t: 0.5}", "needs a base_model"),
        (TIES + "parameters: {normalize: false}", "normalize: false is not supported for ties"),
        (TIES + "parameters: {density: [{filter: x, value: 0.5}]}", "density differs between tensors"),
        (
            TIES.replace("{model: a.safetensors}", "{model: a.safetensors, parameters: {density: 0.5}}"),
            "densities",
        ),
        (
            TIES.replace("{model: a.safetensors}", "{model: a.safetensors, parameters: {lambda: 2}}"),
            "lambda is given",
        ),
        (
            TIES.replace("base_model: base", "base_model: a").replace(", {model: b.safetensors}", ""),
            "none besides",
        ),
        (TIES.replace("ties", "dare_linear") + "parameters: {rescale: false}", "rescale: false"),
        (TIES.replace("ties", "model_stock") + "parameters: {filter_wise: true}", "filter_wise"),
        (TIES.replace("ties", "slerp") + "parameters: {t: 0.5}", "exactly one model besides"),
        (TIES.replace("ties", "slerp").replace(", {model: b.safetensors}", ""), "needs the parameter t"),
    ],
)
def test_refused(folder, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read(folder, text)
    assert str(caught.value).startswith(str(folder / "merge.yml"))


def test_a_folder_of_several_checkpoints(folder):
    with pytest.raises(InputError, match="holds 3 checkpoints, expected one"):
        parse_mergekit({"merge_method": "linear", "models": [{"model": "."}]})


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("linear", "{weight: 2}"),
        ("slerp", "{t: 0.25}"),
        ("task_arithmetic", "{weight: 0.5, lambda: 2}"),
        ("ties", "{density: 0.5}"),
        ("dare_linear", "{density: 0.5}"),
        ("dare_ties", "{density: 0.5, lambda: 0.5}"),
        ("model_stock", "{}"),
    ],
)
def test_the_methods_take_the_options(folder, method, parameters):
    """What is read is what `merge_files` and `merge` can be asked for."""
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "a", "b"):
        checkpoints.save({"w": torch.randn(4, 5, generator=generator)}, folder / f"{name}.safetensors")
    others = "" if method == "slerp" else ", {model: b.safetensors}"
    merge = read(
        folder,
        f"merge_method: {method}\nbase_model: base.safetensors\nparameters: {parameters}\nout_dtype: float64\n"
        f"models: [{{model: a.safetensors}}{others}]\n",
    )
    merge_files(
        merge.paths, folder / "out.safetensors", method=merge.method, dtype=merge.dtype, **merge.options
    )
    result = checkpoints.load(folder / "out.safetensors")["w"]
    base, a, b = (
        checkpoints.load(folder / f"{name}.safetensors")["w"].double() for name in ("base", "a", "b")
    )
    assert result.dtype == torch.float64
    if method == "linear":
        torch.testing.assert_close(result, (a + b) / 2)
    elif method == "slerp":
        angle = torch.arccos((base * a).sum() / base.norm() / a.norm())
        expected = (0.75 * angle).sin() / angle.sin() * base + (0.25 * angle).sin() / angle.sin() * a
        torch.testing.assert_close(result, expected)
    elif method == "task_arithmetic":
        torch.testing.assert_close(result, base + 2 * (0.5 * (a - base) + 0.5 * (b - base)))
    elif method == "dare_linear":
        kept = [torch.zeros_like(base), 2 * (a - base), 2 * (b - base), 2 * (a + b - 2 * base)]
        near = torch.stack([(result - base - value).abs() for value in kept]).amin(0)
        assert near.max() < 1e-9
    else:
        assert result.isfinite().all() and not torch.equal(result, base)
