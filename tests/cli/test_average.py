"""The command `average`."""

import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

import ratfast
from ratfast import InputError, checkpoints
from ratfast.averaging.methods import METHODS, method_options
from ratfast.cli.average import average
from ratfast.cli.selecting import SELECTIONS


@pytest.fixture
def files(tmp_path):
    paths = []
    for index in range(3):
        paths.append(str(tmp_path / f"{index}.safetensors"))
        checkpoints.save({"a": torch.randn(50, 3), "n.num_batches_tracked": torch.tensor(index)}, paths[-1])
    return paths


def run(*arguments):
    return CliRunner().invoke(average, [str(argument) for argument in arguments], catch_exceptions=True)


def test_writes_the_average(files, tmp_path):
    out = tmp_path / "out.safetensors"
    result = run("-o", out, "--buffers", "keep", *files)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"wrote {out}: average of 3 checkpoints, 2 tensors, 0.0 MB\n"
    expected = ratfast.average(files, buffers="keep")
    torch.testing.assert_close(checkpoints.load(out), expected, check_layout=False)
    assert checkpoints.read_metadata(out)["method"] == "uniform"


def test_weights_and_dtype(files, tmp_path):
    out = tmp_path / "out.safetensors"
    result = run("-o", out, "--weights", "-0.5,1,0.5", "--buffers", "average", "--dtype", "bfloat16", *files)
    assert result.exit_code == 0, result.output
    expected = ratfast.average(files, [-0.5, 1, 0.5], buffers="average", dtype="bfloat16")
    found = checkpoints.load(out)
    assert found["a"].dtype == torch.bfloat16
    torch.testing.assert_close(found["a"], expected["a"])
    assert found["n.num_batches_tracked"].item() == 2
    assert checkpoints.read_metadata(out)["method"] == "weighted"
    assert (
        run("-o", out, "--method", "weighted", "--weights", "1,1,1", "--buffers", "keep", *files).exit_code
        == 0
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--weights", "1,2"], "2 weights were given for 3"),
        (["--weights", "1,2,x"], "expected numbers separated by commas"),
        (["--method", "weighted"], "needs --weights"),
        (["--method", "uniform", "--weights", "1,1,1"], "takes no --weights"),
        ([], "'n.num_batches_tracked' of .*1.safetensors differ"),
        (["--buffers", "keep", "missing.safetensors"], "missing.safetensors does not exist"),
    ],
)
def test_wrong_input(files, tmp_path, arguments, reason):
    """One sentence, which the command line shows with exit code 2."""
    result = run("-o", tmp_path / "out.safetensors", *arguments, *files)
    assert isinstance(result.exception, InputError)
    with pytest.raises(InputError, match=reason):
        raise result.exception
    assert not (tmp_path / "out.safetensors").exists()


def test_wrong_output(files, tmp_path):
    for name, reason in {
        "out.pt": "would be a safetensors file",
        "no/out.safetensors": "does not exist",
    }.items():
        result = run("-o", tmp_path / name, "--buffers", "keep", *files)
        assert isinstance(result.exception, InputError) and reason in str(result.exception)


@pytest.mark.parametrize(
    "arguments", [["a"], ["-o", "b"], ["-o", "b", "--buffers", "x", "a"], ["-o", "b", "--dtype", "int8", "a"]]
)
def test_usage(arguments):
    assert run(*arguments).exit_code == 2


def test_progress_of_large_inputs(files, tmp_path, monkeypatch):
    monkeypatch.setattr("ratfast.cli.average._LARGE", 1)
    result = run("-o", tmp_path / "out.safetensors", "--buffers", "keep", *files)
    assert "averaging 3 checkpoints" in result.stderr
    assert result.stdout.startswith("wrote ") and result.stdout.count("\n") == 1


FULL = """
import resource, sys
from ratfast.cli.average import average
from ratfast.cli.selecting import SELECTIONS
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # the limit acts as a full disk does
average(["--buffers", "keep", "-o", *sys.argv[1:]])
"""


def test_full_disk(files, tmp_path):
    out = tmp_path / "out.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", FULL, out, *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"Error: {out} could not be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(os.listdir(tmp_path)) == 3


def test_import_and_help_need_no_torch():
    code = "import sys; from ratfast.cli.average import average; average(['--help'], standalone_mode=False); "
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "CHECKPOINT..." in done.stdout


@pytest.mark.parametrize(
    ("method", "count", "options", "same"),
    [
        ("task-arithmetic", 3, ["--scale", "0.5", "--weights", "1,-1"], {"scale": 0.5, "weights": [1, -1]}),
        ("ties", 3, ["--density", "0.3", "--per-tensor"], {"density": 0.3, "per_tensor": True}),
        ("dare-ties", 3, ["--density", "0.3", "--seed", "4"], {"density": 0.3, "seed": 4}),
        ("model-stock", 3, ["--whole"], {"per_tensor": False}),
        ("slerp", 2, ["--alpha", "0.2"], {"alpha": 0.2}),
        ("weighted", 2, ["--weights-for", "a=0.25,0.75"], {"weights_for": {"a": [0.25, 0.75]}}),
        ("fusing", 3, ["--seed", "1", "--spread-by", "2"], {"seed": 1, "spread_by": 2.0}),
    ],
)
def test_methods(files, tmp_path, method, count, options, same):
    out = tmp_path / "out.safetensors"
    result = run("-o", out, "--method", method, "--buffers", "keep", *options, *files[:count])
    assert result.exit_code == 0, result.exception
    expected = ratfast.merge(files[:count], method, buffers="keep", **same)
    torch.testing.assert_close(checkpoints.load(out)["a"], expected["a"], rtol=0, atol=0)


def test_base_folders_and_again(files, tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    for index, name in ((1, "run10.safetensors"), (2, "run2.safetensors")):
        os.rename(files[index], folder / name)
    out, more = tmp_path / "out.safetensors", tmp_path / "more.safetensors"
    arguments = ["--method", "ties", "--base", files[0], "--buffers", "keep"]
    assert run("-o", out, *arguments, folder).exit_code == 0
    inputs = [entry["file"] for entry in checkpoints.read_metadata(out)["inputs"]]
    assert inputs == [files[0], str(folder / "run2.safetensors"), str(folder / "run10.safetensors")]
    assert run("-o", more, *arguments, folder / "*.safetensors").exit_code == 0
    assert more.read_bytes() == out.read_bytes()
    result = run("-o", more, "--again", out)
    assert result.exit_code == 0 and more.read_bytes() == out.read_bytes()
    assert isinstance(run("-o", more, "--again", out, files[0]).exception, InputError)


def test_a_path_writes_several_files(files, tmp_path):
    result = run(
        "-o", tmp_path / "p.safetensors", "--method", "path", "--points", 3, "--buffers", "keep", *files[:2]
    )
    assert result.exit_code == 0, result.exception
    names = ["p-0.safetensors", "p-0.5.safetensors", "p-1.safetensors"]
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [
        f"wrote {tmp_path / n}" for n in names
    ]
    torch.testing.assert_close(checkpoints.load(tmp_path / names[2])["a"], checkpoints.load(files[1])["a"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--method", "slerp"], "slerp needs exactly 2 models, but there are 3"),
        (["--method", "ties", "--density", "2"], "density is 2.0"),
        (["--method", "ties", "--alpha", "2"], "--method ties takes no --alpha"),
        (["--method", "tie"], "there is no method 'tie'"),
        (["--method", "fisher"], "needs --fisher"),
        (["--weights-for", "1,2,3"], "expected PATTERN=W1,W2"),
        (["--method", "wise-ft", "--alpha", "x"], "--alpha is 'x'"),
    ],
)
def test_wrong_methods(files, tmp_path, arguments, reason):
    result = run("-o", tmp_path / "out.safetensors", "--buffers", "keep", *arguments, *files)
    assert isinstance(result.exception, InputError) and reason in str(result.exception)
    assert not (tmp_path / "out.safetensors").exists()


def test_selections_plug_in(files, tmp_path, monkeypatch):
    monkeypatch.setitem(SELECTIONS, "last", lambda paths, options: [0.0] * (len(paths) - 1) + [1.0])
    out = tmp_path / "out.safetensors"
    result = run("-o", out, "--method", "last", "--buffers", "keep", *files)
    assert result.exit_code == 0, result.exception
    assert torch.equal(checkpoints.load(out)["a"], checkpoints.load(files[-1])["a"])
    assert checkpoints.read_metadata(out)["method"] == "last"


STATED = (
    "weights",
    "weights_for",
    "alpha",
    "points",
    "spread_by",
    "base",
    "scale",
    "density",
    "seed",
    "per_tensor",
)


@pytest.mark.parametrize("option", STATED)
def test_help_names_the_methods_that_take_an_option(option):
    text = next(param.help for param in average.params if param.name == option)
    named = text.partition(": ")[0].split(", ")
    if "dare" in named:
        named = [name for name in named if name != "dare"] + ["dare-linear", "dare-ties"]
    assert set(named) == {method for method in METHODS if option in method_options(method)}


@pytest.mark.parametrize("arguments", [["top_k", "--scores", "1,2,3"], ["moving_average"], ["dare_ties"]])
def test_an_underscore_stands_for_the_hyphen(files, tmp_path, arguments):
    out = tmp_path / "out.safetensors"
    result = run("-o", out, "--buffers", "keep", "--method", *arguments, *files)
    assert result.exit_code == 0, result.output
    assert checkpoints.read_metadata(out)["method"] == arguments[0].replace("_", "-")


def test_no_option_is_ignored_beside_again(files, tmp_path):
    out = tmp_path / "out.safetensors"
    assert run("-o", out, "--buffers", "keep", *files).exit_code == 0
    assert run("-o", tmp_path / "copy.safetensors", "--again", out).exit_code == 0
    for arguments in (["--buffers", "keep"], ["--config", "merge.yaml"], ["--dtype", "float16"], files):
        result = run("-o", tmp_path / "other.safetensors", "--again", out, *arguments)
        assert isinstance(result.exception, InputError)
        assert "--again takes all but the output from the file" in str(result.exception)
    assert not (tmp_path / "other.safetensors").exists()


def test_an_unknown_method_shows_all(files, tmp_path):
    result = run("-o", tmp_path / "out.safetensors", "--method", "tiees", *files)
    assert isinstance(result.exception, InputError)
    assert all(name in str(result.exception) for name in ("'tiees'", "ties", "swad", "greedy"))


def test_warnings_are_a_line_each(tmp_path):
    paths = [str(tmp_path / f"{index}.safetensors") for index in range(2)]
    for index, path in enumerate(paths):
        checkpoints.save({"bn.running_mean": torch.full((2,), 1.0 + index)}, path)
    command = [sys.executable, "-c", "from ratfast.cli.main import main; main()", "average"]
    command += ["--buffers", "keep", "-o", str(tmp_path / "out.safetensors"), *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.startswith(
        f"ratfast: warning: the average keeps the batch-norm statistics of {paths[0]}"
    )
    assert done.stderr.count("\n") == 1
    assert done.stdout.startswith("wrote ")


def test_an_average_beside_its_inputs_is_not_averaged_again(tmp_path, monkeypatch):
    """The same command gives the same result twice; named as a file, or among averages alone, it counts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for n in range(2):
        checkpoints.save({"a": torch.full((4,), float(n))}, f"runs/{n}.safetensors")
    for name, left_out in (("runs", False), ("runs", True), ("runs/*.safetensors", True)):
        done = run("-o", "runs/o.safetensors", name)
        assert done.exit_code == 0 and "average of 2 checkpoints" in done.stdout
        said = f"left out of {name}, as that is the output: runs/o.safetensors" in done.stderr
        assert said == left_out
        assert checkpoints.load("runs/o.safetensors")["a"].tolist() == [0.5] * 4
    done = run("-o", "b.safetensors", "runs")
    assert "left out of runs, as they are averages themselves: runs/o.safetensors" in done.stderr
    done = run("-o", "b.safetensors", "runs/0.safetensors", "runs/o.safetensors")
    assert checkpoints.load("b.safetensors")["a"].tolist() == [0.25] * 4
    (tmp_path / "averages").mkdir()
    for n in range(2):
        assert run("-o", f"averages/{n}.safetensors", "runs/1.safetensors").exit_code == 0
    checkpoints.save({"a": torch.zeros(4)}, "averages/2.safetensors", {"kind": "average"})
    for _ in range(2):  # of averages alone, but for the output
        done = run("-o", "averages/2.safetensors", "averages")
        assert done.exit_code == 0 and "as that is the output: averages/2.safetensors" in done.stderr
        assert checkpoints.load("averages/2.safetensors")["a"].tolist() == [1.0] * 4


def test_how_many_checkpoints_went_into_it(tmp_path):
    paths = [str(tmp_path / f"{n}.safetensors") for n in range(4)]
    for n, path in enumerate(paths):
        checkpoints.save({"a": torch.arange(4.0) * (n + 1)}, path)
    output = str(tmp_path / "o.safetensors")
    for options, count in (
        (["--method", "task-arithmetic", "--base", paths[0], *paths[1:]], 3),
        (["--method", "ties", *paths], 3),
        (["--weights", "0.5,0,0.5,0", *paths], 2),
        (["--method", "lawa", "-k", "1", *paths], 1),
        (["--method", "max", *paths], 4),
    ):
        done = run("-o", output, *options)
        assert f"average of {count} checkpoint{'s' if count > 1 else ''}, " in done.stdout, done.output
