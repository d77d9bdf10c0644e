import errno
import os
import resource
import signal
import subprocess
import sys
import time
import types
import warnings

import click
import pytest

from ratfast.cli import main as cli
from ratfast.errors import InputError
from ratfast.version import __version__

CALL = "from ratfast.cli.main import {entry}; {entry}()"


def run(entry: str, *args: str, **keywords) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", CALL.format(entry=entry), *args],
        capture_output=True,
        text=True,
        check=False,
        **keywords,
    )


def outcome(monkeypatch, capsys, body, *args) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `ratfast probe`, whose body is given."""
    module = types.ModuleType("ratfast_probe")
    module.probe = click.command()(body)
    monkeypatch.setitem(sys.modules, "ratfast_probe", module)
    monkeypatch.setitem(cli.SUBCOMMANDS, "probe", ("ratfast_probe", "A probe."))
    with pytest.raises(SystemExit) as stop:
        cli.main(["probe", *args])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def raising(error: BaseException):
    def body():
        raise error

    return body


@pytest.mark.parametrize(
    ("entry", "args"),
    [
        ("main", ["--help"]),
        ("main", ["info", "--help"]),
        ("main", ["average", "--help"]),
        ("main", ["convert", "--help"]),
        ("main", ["data", "--help"]),
        ("main", ["data", "fetch", "--help"]),
        ("main", ["plan", "--help"]),
        ("train", ["--help"]),
    ],
)
def test_help_is_fast_and_free_of_torch(entry, args):
    code = (
        "import sys, atexit\n"
        "heavy = {'torch', 'torchvision', 'rich', 'nvidia'}\n"
        "atexit.register(lambda: print('HEAVY', sorted(heavy & set(sys.modules))))\n"
    )
    command = [sys.executable, "-c", code + CALL.format(entry=entry), *args]
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Processor time: what is not waiting for other processes.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert result.stdout.startswith("Usage: ratfast")
    assert result.stdout.endswith("HEAVY []\n")
    assert min(seconds) < 0.5


def test_help_imports_no_subcommand():
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print(sorted(m for m in sys.modules if m.startswith('ratfast.cli.'))))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code + CALL.format(entry="main"), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.endswith("['ratfast.cli.context', 'ratfast.cli.main']\n")
    assert all(name in result.stdout for name in ("average", "evaluate", "info"))


@pytest.mark.parametrize(("args", "start"), [([], "Usage: ratfast"), (["analyze"], "Usage: ratfast analyze")])
def test_no_arguments_show_help(args, start):
    result = run("main", *args)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(start)


@pytest.mark.parametrize(("entry", "name"), [("main", "ratfast"), ("train", "ratfast-train")])
def test_version(entry, name):
    result = run(entry, "--version")
    assert (result.returncode, result.stdout) == (0, f"{name} {__version__}\n")


@pytest.mark.parametrize(
    ("entry", "args", "words"),
    [
        ("main", ["infoo"], "did you mean 'info'?"),
        ("main", ["--verison"], "--version"),
        ("main", ["info", "--jso"], "--json"),
        ("main", ["info", "extra"], "extra"),
        ("main", ["average", "-o", "soup.safetensors"], "CHECKPOINT"),
        ("train", ["--stpes", "3"], "--steps"),
        ("train", ["--steps"], "--steps"),
        ("train", ["--steps", "0"], "--steps is 0, expected an integer of at least 1"),
        ("train", ["--set", "train.stpes=3"], "did you mean 'train.steps'?"),
        ("train", ["--backbone", "resnet"], "expected one of resnet18"),
        ("train", ["absent.toml"], "absent.toml"),
        ("train", ["--data-dir", "d", "--target", "T"], "data.test_env is missing"),
        ("train", ["--data-dir", "d"], "data.target is missing"),
        ("train", ["--aux", "A"], "data.dir is missing"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_2(entry, args, words):
    result = run(entry, *args)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("ratfast: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_done_is_0(monkeypatch, capsys):
    assert outcome(monkeypatch, capsys, lambda: click.echo("fine")) == (0, "fine\n", "")


def test_input_error_is_2(monkeypatch, capsys):
    code, _, err = outcome(monkeypatch, capsys, raising(InputError("x.pt is\nnot a file")))
    assert (code, err) == (2, "ratfast: x.pt is not a file\n")


def test_a_warning_is_one_line_once(monkeypatch, capsys):
    def body():
        warnings.warn("models\ndiffer", stacklevel=1)
        warnings.warn("models\ndiffer", stacklevel=1)
        warnings.warn("slow", RuntimeWarning, stacklevel=1)

    err = "ratfast: warning: models differ\nratfast: warning: slow\n"
    assert outcome(monkeypatch, capsys, body) == (0, "", err)


def test_click_exception_is_1(monkeypatch, capsys):
    code, _, err = outcome(monkeypatch, capsys, raising(click.ClickException("it broke")))
    assert (code, err) == (1, "ratfast: it broke\n")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_denied_file_is_2(monkeypatch, capfd, number):
    code, _, err = outcome(monkeypatch, capfd, raising(OSError(number, os.strerror(number), "/x/y.pt")))
    assert code == 2
    assert "/x/y.pt" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_is_1(number):
    body = (
        "import os, sys, types, click\n"
        "from ratfast.cli import main as cli\n"
        "module = sys.modules['probe'] = types.ModuleType('probe')\n"
        "@click.command()\n"
        f"def probe(): raise OSError({number}, os.strerror({number}), '/x/y.pt')\n"
        "module.probe = probe\n"
        "cli.SUBCOMMANDS['probe'] = ('probe', '')\n"
        "cli.main(['probe'])\n"
    )
    result = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == f"ratfast: cannot use /x/y.pt: {os.strerror(number).lower()}\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("args", [["info"], ["--help"]])
def test_a_full_stdout_is_one_sentence(args):
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-c", CALL.format(entry="main"), *args],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr == "ratfast: cannot write: no space left on device\n"


def test_a_closed_pipe_is_silent():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as broken:
        result = subprocess.run(
            [sys.executable, "-c", CALL.format(entry="main"), "info"],
            stdout=broken, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert result.stderr == ""
    assert result.returncode == 1


def test_an_interruption_is_130(monkeypatch, capsys):
    code, out, err = outcome(monkeypatch, capsys, raising(KeyboardInterrupt()))
    assert (code, out, err) == (130, "", "ratfast: interrupted\n")


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGINT, 130, "ratfast: interrupted\n"),
        (signal.SIGTERM, 143, "ratfast: terminated\n"),
        (signal.SIGHUP, 129, "ratfast: hung up\n"),
    ],
)
def test_a_signal_is_one_line(tmp_path, number, code, words):
    fifo = tmp_path / "recipe.toml"
    os.mkfifo(fifo)
    # Reading a FIFO without a writer waits for ever.
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True);" + CALL.format(entry="train"), str(fifo)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A background job of a shell, as the tests may be one, ignores SIGINT, under nohup SIGHUP, and passes that on.
        preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in (signal.SIGINT, signal.SIGHUP)],
    )  # fmt: skip
    process.stdout.readline()
    time.sleep(1.0)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert err == words


def test_a_defect_shows_its_traceback_and_is_1():
    body = (
        "import ratfast.train\n"
        "from ratfast.cli import main as cli\n"
        "def run(recipe): raise RuntimeError('a defect')\n"
        "ratfast.train.run = run\n"
        "cli.train(['--data-dir', 'd', '--target', 'T', '--test-env', '0'])\n"
    )
    result = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")
    assert "a defect" in result.stderr


MEMBER = {"name": "target/trial0-run00", "initialisation": "pre-trained", "val": 0.5, "test": 0.25}
SUMMARY = {
    "target": "PACS",
    "test_domain": "sketch",
    "members": [MEMBER],
    "mean_of_members": {"val": 0.5, "test": 0.25},
    "best_single": MEMBER,
    "averages": {"uniform": {"val": 0.5, "test": 0.25, "members": [MEMBER["name"]], "file": "o/uniform.st"}},
}


@pytest.fixture
def trained(monkeypatch) -> list:
    """The recipes that `ratfast.train.run` was called with."""
    calls = []

    def run(recipe) -> dict:
        calls.append(recipe)
        return SUMMARY

    monkeypatch.setattr("ratfast.train.run", run)
    return calls


def train(*args: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.train(args)
    return stop.value.code


def test_flags_win_over_the_file_and_set_over_flags(trained, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(
        '[data]\ndir = "d"\ntarget = "PACS"\ntest_env = 1\n[train]\nsteps = 10\nruns = 3\nseed = 4\n'
    )
    assert (
        train(str(path), "--steps", "20", "--runs", "5", "--set", "train.runs=6", "--test-env", "sketch") == 0
    )
    (recipe,) = trained
    assert (recipe.train.steps, recipe.train.runs, recipe.train.seed) == (20, 6, 4)
    assert (recipe.data.dir, recipe.data.target, recipe.data.test_env) == ("d", "PACS", "sketch")


def test_every_flag_reaches_its_key(trained):
    given = {
        "--data-dir": ("d", "d"),
        "--target": ("PACS", "PACS"),
        "--test-env": ("2", 2),
        "--aux": ("VLCS,OfficeHome", ("VLCS", "OfficeHome")),
        "--aux-weights": ("a.pt,b.pt", ("a.pt", "b.pt")),
        "--protocol": ("official", "official"),
        "--rows": ("erm,swad", ("erm", "swad")),
        "--backbone": ("resnet18", "resnet18"),
        "--weights": ("w.pt", "w.pt"),
        "--image-size": ("64", 64),
        "--on-bad-image": ("skip", "skip"),
        "--batch-size": ("8", 8),
        "--runs": ("2", 2),
        "--trials": ("3", 3),
        "--steps": ("50", 50),
        "--seed": ("7", 7),
        "--output": ("out", "out"),
        "--store": ("s3://bucket/out", "s3://bucket/out"),
        "--device": ("cuda:1", "cuda:1"),
        "--workers": ("3", 3),
        "--ray": ("local", "local"),
    }
    from ratfast.cli.recipes import FLAGS

    assert {flag.option for flag in FLAGS} == set(given)
    assert train(*(part for option, (text, _) in given.items() for part in (option, text))) == 0
    plain = trained[0].to_dict()
    for flag in FLAGS:
        section, name = flag.key.split(".")
        value = plain[section][name]
        assert (tuple(value) if isinstance(value, list) else value) == given[flag.option][1], flag.option


def test_results_are_on_stdout_with_the_command_that_evaluates_them(trained, capsys):
    assert train("--data-dir", "my data", "--target", "PACS", "--test-env", "sketch") == 0
    out = capsys.readouterr().out
    assert "uniform average" in out
    assert "ratfast evaluate o/uniform.st --data-dir 'my data' --dataset PACS --domain sketch" in out


@pytest.mark.parametrize("args", [[], ["--steps", "7", "--output", "o"]])
def test_without_data_it_is_the_demonstration(trained, monkeypatch, tmp_path, args):
    monkeypatch.setattr("ratfast.data.demo.prepare", lambda: tmp_path)
    assert train(*args) == 0
    from ratfast import config

    changed = config.differences(trained[0], config.demo_recipe(tmp_path))
    assert changed == (["train.steps", "output.dir"] if args else [])


def test_a_wrong_flag_stops_the_demonstration_before_it_prepares(trained, monkeypatch):
    monkeypatch.setattr("ratfast.data.demo.prepare", lambda: pytest.fail("prepared"))
    assert train("--steps", "x") == 2
    assert trained == []
