"""A plan on a Ray cluster of two machines, which are one here; skipped where Ray is not there."""

import io
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from ratfast import InputError, checkpoints, config, train
from ratfast.errors import UnfinishedError
from ratfast.train import on_ray

from .conftest import smallest_values
from .outputs import fingerprint

ray = pytest.importorskip("ray")
TRAIN = [sys.executable, "-c", "from ratfast.cli.main import train; train()", "recipe.toml"]


@pytest.fixture(scope="module")
def cluster():
    """A head without processors and two workers of one processor each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
    yield cluster
    cluster.shutdown()


def recipe_of(data_dir, folder, **keys) -> config.Recipe:
    values = smallest_values(data_dir, folder)
    values["train"] |= {"steps": 20, "head_steps": 200, "snapshot_seconds": 0.2, **keys}
    return config.from_dict(values)


def end_with_a_machine_lost(process: subprocess.Popen, cluster, machine, states: list[Path]) -> None:
    """Takes a machine away once each of two has come some way, and waits for the command to end well."""
    try:
        deadline = time.monotonic() + 240
        while min(map(updates, states)) < 50:  # one on each machine
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        cluster.remove_node(machine, allow_graceful=False)
        seen = [50]
        while process.poll() is None:
            seen += [made for made in map(updates, states) if made]
            time.sleep(0.05)
        _, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert min(seen) == 50  # a run that began anew would have had a state of fewer updates


@pytest.mark.slow
def test_a_machine_is_lost_and_its_run_goes_on_elsewhere(cluster, data_dir, tmp_path) -> None:
    (tmp_path / "recipe.toml").write_text(recipe_of(data_dir, tmp_path, retries=3).to_toml())
    options = {"cwd": tmp_path, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    subprocess.run(TRAIN, check=True, capture_output=True, **options)
    (tmp_path / "output").rename(tmp_path / "expected")

    process = subprocess.Popen(
        [*TRAIN, "--ray", cluster.address], stderr=subprocess.PIPE, text=True, **options
    )
    states = [tmp_path / "output" / "probe" / f"{name}.snapshot" for name in ("Near", "Shapes")]
    end_with_a_machine_lost(process, cluster, cluster.workers.pop(), states)
    assert fingerprint(tmp_path / "output") == fingerprint(tmp_path / "expected")


@pytest.mark.slow
def test_machines_that_share_a_store_alone(data_dir, tmp_path) -> None:
    """Each machine has a folder of its own, the command too; one is lost, and its run goes on from the store."""
    from ray.cluster_utils import Cluster

    url = f"file://{tmp_path}/store"
    recipe = recipe_of(data_dir, tmp_path, retries=3)
    options = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "text": True}
    for name in ("command", "one", "two", "expected"):
        (tmp_path / name).mkdir()
    for name in ("command", "expected"):
        (tmp_path / name / "recipe.toml").write_text(recipe.to_toml())
    subprocess.run(TRAIN, check=True, capture_output=True, cwd=tmp_path / "expected", **options)
    expected = fingerprint(tmp_path / "expected" / "output")

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = {
            name: cluster.add_node(num_cpus=1, env_vars={on_ray.FOLDER: str(tmp_path / name)})
            for name in ("one", "two")
        }
        command = [*TRAIN, "--ray", cluster.address, "--store", url]
        process = subprocess.Popen(command, cwd=tmp_path / "command", stderr=subprocess.PIPE, **options)
        states = [tmp_path / "store" / "probe" / f"{name}.snapshot" for name in ("Near", "Shapes")]
        end_with_a_machine_lost(process, cluster, nodes.pop("two"), states)
    finally:
        cluster.shutdown()
    found = fingerprint(tmp_path / "store")
    assert found == {name: digest for name, digest in expected.items() if len(digest) == 64}  # all but links
    assert (tmp_path / "one/output/target/trial0-run00/model.safetensors").is_file()
    assert not (tmp_path / "two/output/target").exists()
    assert fingerprint(tmp_path / "command" / "output").items() <= expected.items()
    assert (tmp_path / "command/output/averages/uniform.safetensors").is_file()


def updates(path: Path) -> int:
    """Updates of the state in a file; 0 where there is none."""
    try:
        return checkpoints.read_metadata(path)["values"]["updates"]
    except (InputError, FileNotFoundError):
        return 0


@pytest.mark.slow
def test_failures_are_named_and_hold_nothing_else_up(cluster, data_dir, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = tmp_path / "data"
    shutil.copytree(data_dir, wrong)
    for path in (wrong / "Near").rglob("*.png"):  # they pass for whole until they are decoded
        content = path.read_bytes()
        path.write_bytes(content[:60] + bytes(len(content) - 120) + content[-60:])
    recipe = recipe_of(wrong, tmp_path, steps=2, head_steps=2, ray=cluster.address)
    with pytest.raises(UnfinishedError) as caught:
        train.run(recipe, Console(file=io.StringIO()))
    first, second = caught.value.lines
    assert (
        first.startswith("probe/Near failed: ") and ".png cannot be" in first and caught.value.input_is_wrong
    )
    assert second.startswith(
        "not done, since they need it: auxiliary/Near/run00, target/trial0-run01, averages/"
    )
    assert (tmp_path / "output/target/trial0-run00/done").is_file()


def test_an_address_where_nobody_is(recipe) -> None:
    values = recipe.to_dict()
    values["train"]["ray"] = "127.0.0.1:1"
    with pytest.raises(InputError, match=r"train\.ray is '127\.0\.0\.1:1', and Ray cannot connect there \("):
        train.run(config.from_dict(values), Console(file=io.StringIO()))


def test_without_ray_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'pip install "ratfast\[ray\]"'), on_ray.connected("local", None):
        pass
