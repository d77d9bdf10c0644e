"""Whole recipes with a store: killed on one machine, gone on with on another that has nothing."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from ratfast import InputError, checkpoints, config, train
from ratfast.cli.plan import plan
from ratfast.train import on_ray, records, remote, store_lock
from ratfast.train.context import open_context
from ratfast.train.plan import make_plan, scan_datasets
from ratfast.train.remote import Remote, StoreError
from ratfast.train.shared import Shared
from ratfast.train.state import is_done
from ratfast.train.store import RemoteStore
from ratfast.train.worker import RelayedView

from .conftest import smallest_values
from .outputs import fingerprint

pytest.importorskip("fsspec")

CODE = """
from ratfast.train import store_lock
store_lock.BEAT_SECONDS = 0.2
from ratfast.cli.main import train
train()
"""
TRAIN = [sys.executable, "-c", CODE, "recipe.toml"]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(store_lock, "BEAT_SECONDS", 0.05)


@pytest.fixture(scope="module")
def values(data_dir, tmp_path_factory) -> dict:
    values = smallest_values(data_dir, tmp_path_factory.mktemp("weights"))
    values["train"] |= {"head_steps": 150, "snapshot_seconds": 0.2, "rows": ["ratatouille", "moving-average"]}
    return values


def recipe_of(values, store: Path | str | None, **keys) -> config.Recipe:
    url = f"file://{store}" if isinstance(store, Path) else store
    output = {**values["output"], **({"store": url} if url else {})}
    return config.from_dict({**values, "output": output, "train": {**values["train"], **keys}})


def run_in(folder: Path, recipe: config.Recipe, console: Console | None = None) -> list[str]:
    """Carries out a recipe on the machine whose working directory is `folder`."""
    console = console or Console(file=io.StringIO(), width=500)
    here = Path.cwd()
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    try:
        train.run(recipe, console)
    finally:
        os.chdir(here)
    return console.file.getvalue().splitlines()


@pytest.fixture(scope="module")
def expected(values, tmp_path_factory) -> dict[str, str]:
    """The files of the recipe's output without a store."""
    folder = tmp_path_factory.mktemp("expected")
    run_in(folder, recipe_of(values, None))
    return fingerprint(folder / "output")


def weights_are_there(output: Path) -> None:
    summary = json.loads((output / records.SUMMARY).read_text())
    files = [member["checkpoint"] for member in summary["members"]]
    files += [average["file"] for average in summary["averages"].values()]
    for file in [*files, *(file for row in summary["rows"] for file in row["files"])]:
        assert checkpoints.load(output.parent / file)


def files_alone(found: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in found.items() if len(digest) == 64}  # without links


@pytest.mark.slow
@pytest.mark.parametrize(("number", "workers"), [(signal.SIGKILL, 1), (signal.SIGTERM, 2)])
def test_killed_here_it_goes_on_elsewhere(values, expected, tmp_path, number, workers) -> None:
    store = tmp_path / "store"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        recipe = recipe_of(values, store, workers=workers)
        (tmp_path / name / "recipe.toml").write_text(recipe.to_toml())
    options = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(TRAIN, cwd=tmp_path / "one", **options)
    try:
        deadline = time.monotonic() + 120
        while not (store / "probe" / "Shapes.snapshot").is_file():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode in (-number, 128 + number), err
    done = [path.parent.name for path in (store / "probe").glob("*/done")]
    state = checkpoints.read_metadata(store / "probe" / "Shapes.snapshot")["values"]["updates"]
    assert state > 0
    shutil.rmtree(tmp_path / "one")

    result = subprocess.run(TRAIN, cwd=tmp_path / "two", check=False, **options)
    assert result.returncode == 0, result.stderr
    for name in done:
        assert f"probe/{name}: already done" in result.stderr
    assert "probe/Shapes: goes on after update " in result.stderr
    assert files_alone(fingerprint(store)) == files_alone(expected)
    assert fingerprint(tmp_path / "two" / "output").items() <= expected.items()
    weights_are_there(tmp_path / "two" / "output")


@pytest.mark.slow
def test_everything_that_was_done_comes_back(values, expected, tmp_path) -> None:
    """A finished recipe on a new machine; then without its first average, and without a run."""
    store = tmp_path / "store"
    run_in(tmp_path / "one", recipe_of(values, store))
    assert fingerprint(tmp_path / "one" / "output") == expected
    assert files_alone(fingerprint(store)) == files_alone(expected)

    lines = run_in(tmp_path / "two", recipe_of(values, store))
    assert sum(line.endswith("already done") for line in lines) == 6 and not any("img/s" in x for x in lines)
    found = fingerprint(tmp_path / "two" / "output")
    assert found.items() <= expected.items()
    assert set(expected) - set(found) == {
        "probe/Near/model.safetensors", "probe/Shapes/model.safetensors",
        "auxiliary/Near/run00/model.safetensors", "plain/trial0-run01/model.safetensors",
        "plain/trial0-run01/moving-average.safetensors", "target/trial0-run00/moving-average.safetensors",
    } - set(found)  # fmt: skip
    weights_are_there(tmp_path / "two" / "output")

    with pytest.raises(InputError, match=r"the weights of probe/Near are not in the output folder output"):
        run_in(tmp_path / "two", recipe_of(values, None))

    shutil.rmtree(store / "target" / "trial0-run01")
    lines = run_in(tmp_path / "three", recipe_of(values, store))
    assert [line.partition(":")[0] for line in lines if "img/s" in line] == ["target/trial0-run01"]
    assert files_alone(fingerprint(store)) == files_alone(expected)


@pytest.mark.slow
@pytest.mark.parametrize("forever", [True, False])
def test_a_store_that_breaks_off_loses_nothing(values, expected, tmp_path, monkeypatch, forever) -> None:
    """What cannot be put there is told and tried again at the end; then the same command again has nothing to make."""
    store = tmp_path / "store"
    upload = remote.Remote.upload

    def refuse(self, path, name, **options):
        finished = Path("output/averages/greedy.json").is_file() and not forever
        if (name.startswith(("auxiliary", "averages")) and not finished) or name.endswith(".snapshot"):
            raise StoreError(f"cannot write {self.url}/{name}: the network is down")
        upload(self, path, name, **options)

    console = Console(file=io.StringIO(), width=500)
    with monkeypatch.context() as patched:
        patched.setattr(remote.Remote, "upload", refuse)
        if forever:
            with pytest.raises(
                StoreError, match=r"^cannot write file:\S+/auxiliary/Near/run00/\S+: the network is"
            ):
                run_in(tmp_path / "one", recipe_of(values, store), console)
        else:
            run_in(tmp_path / "one", recipe_of(values, store), console)
    lines = console.file.getvalue().splitlines()
    told = [line for line in lines if line.endswith("the network is down; so far it is in output alone")]
    assert {line.partition(":")[0] for line in told} == {
        "auxiliary/Near/run00", "averages/uniform", *(["averages/greedy"] if forever else [])
    }  # fmt: skip
    states = [line for line in lines if line.endswith("so far its state is in output alone")]
    assert len(states) == len({line.partition(":")[0] for line in states})  # not with every state
    if forever:
        lines = run_in(tmp_path / "one", recipe_of(values, store))
        assert sum(line.endswith("already done") for line in lines) == 6
        assert not any("img/s" in line for line in lines)
    assert files_alone(fingerprint(store)) == files_alone(expected)


@pytest.mark.slow
def test_workers_that_cannot_write_go_on(values, tmp_path) -> None:
    blocked = tmp_path / "store" / "probe" / "Near"
    recipe = recipe_of(values, tmp_path / "store", workers=2, steps=2, head_steps=2)
    blocked.parent.mkdir(parents=True)
    blocked.write_text("in the way")
    with pytest.raises(StoreError, match=r"^cannot read file:\S+/probe/Near/done: "):
        run_in(tmp_path / "one", recipe)
    assert (tmp_path / "one/output/averages/greedy.json").is_file()
    blocked.unlink()
    assert "probe/Near: already done" in run_in(tmp_path / "one", recipe)
    assert (blocked / "done").is_file()


def test_another_recipe_is_refused_before_anything_is_written(values, tmp_path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / records.RECIPE).write_text(recipe_of(values, None, runs=7).to_toml())
    (tmp_path / "store" / "done").touch()
    with pytest.raises(
        InputError, match=r"the store file:\S+ holds runs of another recipe \(differing in train.runs"
    ):
        run_in(tmp_path / "one", recipe_of(values, tmp_path / "store"))
    assert os.listdir(tmp_path / "one/output") == [".lock"]
    (tmp_path / "store" / records.RECIPE).write_text("half a")
    with pytest.raises(InputError, match=r"the recipe file:\S+/recipe.toml is not a TOML file"):
        run_in(tmp_path / "one", recipe_of(values, tmp_path / "store"))


def test_a_place_that_cannot_be_written_is_the_users_mistake(values, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    message = r"^output.store: cannot read file:\S+/file/store/.lock: .*, expected a place that exists and"
    with pytest.raises(InputError, match=message):
        run_in(tmp_path / "one", recipe_of(values, tmp_path / "file" / "store"))


def test_a_recipe_that_fails_at_first_leaves_the_store_to_another(values, tmp_path, monkeypatch) -> None:
    from ratfast.train import work

    def fail(job, context):
        raise InputError("the loss is nan")

    with monkeypatch.context() as patched:
        patched.setattr(work, "run_job", fail)
        with pytest.raises(InputError, match="the loss is nan"):
            run_in(tmp_path / "one", recipe_of(values, tmp_path / "store"))
    assert fingerprint(tmp_path / "store") == {}
    assert not (tmp_path / "store" / records.RECIPE).exists()

    with monkeypatch.context() as patched:
        patched.setattr(work, "run_job", fail)
        (tmp_path / "store" / "done").touch()  # of a run, as another machine had it
        (tmp_path / "store" / records.RECIPE).write_text(recipe_of(values, None).to_toml())
        with pytest.raises(InputError, match="the loss is nan"):
            run_in(tmp_path / "two", recipe_of(values, tmp_path / "store"))
    assert (tmp_path / "store" / records.RECIPE).exists()


def test_the_plan_shows_what_the_store_holds(values, tmp_path, monkeypatch) -> None:
    recipe = recipe_of(values, tmp_path / "store", steps=2, head_steps=2, runs=1, rows=["inter-training"])
    run_in(tmp_path / "one", recipe)
    shutil.rmtree(tmp_path / "store" / "target")
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path / "two")
    Path("recipe.toml").write_text(recipe.to_toml())
    result = CliRunner().invoke(plan, ["recipe.toml", "--json"])
    assert result.exit_code == 0, result.output
    found = {task["name"]: task["state"] for task in json.loads(result.output)["tasks"]}
    assert found.pop("target/trial0-run00") == "to do" and set(found.values()) == {"done"}
    assert (
        f"output folder output, the store file://{tmp_path}/store"
        in CliRunner().invoke(plan, ["recipe.toml"]).output
    )
    assert os.listdir() == ["recipe.toml"]


def test_a_machine_of_a_cluster_has_a_folder_of_its_own(values, tmp_path, monkeypatch) -> None:
    """As a worker on another machine opens the store, which is that of the command or not."""
    recipe = recipe_of(values, tmp_path / "store")
    command = RemoteStore(tmp_path / "command", Remote(recipe.output.store))
    monkeypatch.chdir(tmp_path)
    with command.held(print):
        site = on_ray.Site(str(tmp_path / "machine"), command.holder())
        store = on_ray._open_store(recipe, site)
        assert Path.cwd() == tmp_path / "machine" and store.output == Path("output")
        assert config.differences(config.load("output/recipe.toml"), recipe) == []
        monkeypatch.setenv(on_ray.FOLDER, str(tmp_path / "scratch"))
        on_ray._open_store(recipe, site)
        assert Path.cwd() == tmp_path / "scratch"
        other = recipe_of(values, tmp_path / "store", runs=7)
        on_ray._open_store(other, site)  # nothing was done with the other recipe
        (tmp_path / "scratch/output/done").touch()
        with pytest.raises(
            InputError, match=r"^on the machine .*, the output folder output holds runs of another"
        ):
            on_ray._open_store(recipe, site)
        monkeypatch.setenv(on_ray.FOLDER, str(tmp_path / "recipe" / "x"))
        (tmp_path / "recipe").touch()
        with pytest.raises(InputError, match=r"does not see the folder .*, expected one that it can make"):
            on_ray._open_store(recipe, site)
    monkeypatch.delenv(on_ray.FOLDER)
    with pytest.raises(InputError, match=r"^the machine .* does not see the store file:\S+ of the command"):
        on_ray._open_store(recipe, site)


def test_machines_take_turns_with_nothing_but_the_store_between_them(
    values, expected, tmp_path, monkeypatch
) -> None:
    """As Ray has it, without Ray: each task goes to the other machine, and the records end where the command is."""
    recipe = recipe_of(values, tmp_path / "store")
    command = RemoteStore(tmp_path / "command" / "output", Remote(recipe.output.store))
    view = RelayedView(lambda event: None)
    datasets = scan_datasets(recipe)
    carried_out = make_plan(recipe, datasets)
    contexts = {}
    monkeypatch.chdir(tmp_path)
    with command.held(print):
        site = on_ray.Site(str(tmp_path), command.holder())
        for name in ("one", "two"):
            monkeypatch.setenv(on_ray.FOLDER, str(tmp_path / name))
            store = on_ray._open_store(recipe, site)
            contexts[name] = open_context(Shared(recipe, datasets, "cpu", "float32", 1), store, view)
        for task, name in zip(carried_out.tasks, cycle(contexts), strict=False):
            os.chdir(tmp_path / name)
            for _ in range(2):  # what is done is not made again
                monkeypatch.setitem(on_ray._contexts, site, contexts[name])
                assert on_ray._work(task, [None], site, None) is None
        command.fetch_done(carried_out.tasks)
        assert all(is_done(task, command.output) for task in carried_out.tasks)
    made = {
        name: digest
        for name, digest in files_alone(expected).items()
        if not name.startswith(("table", "summary"))
    }
    assert files_alone(fingerprint(tmp_path / "store")) == made
    for place in ("one", "two", "command"):
        assert fingerprint(tmp_path / place / "output").items() <= made.items()
    checkpoint = "target/trial0-run00/model.safetensors"
    assert (tmp_path / "one/output" / checkpoint).is_file() and (
        tmp_path / "two/output" / checkpoint
    ).is_file()
