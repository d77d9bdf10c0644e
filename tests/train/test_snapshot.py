"""Snapshots: whole or not there, only for their own training, and exact."""

import errno
import threading
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

from ratfast import checkpoints
from ratfast.train.snapshot import Snapshot, Snapshots, random_states, restore_random_states

IDENTITY = {"name": "target/trial0/run03", "lr": 3e-5}


def snapshot(value: float = 1.0) -> Snapshot:
    tensors = {
        "weights": torch.full((5,), value),
        "steps": torch.tensor([7.0]),
        "random": torch.arange(9, dtype=torch.uint8),
        "none": torch.zeros(0),
    }
    return Snapshot({"step": 7, "loss": 0.1 + 0.2, "rows": [{"val": 1 / 3}], "best": None}, tensors)


def test_what_is_loaded_is_what_was_saved(tmp_path):
    with Snapshots(tmp_path / "folder" / "run", IDENTITY) as snapshots:
        assert snapshots.load() is None
        snapshots.save(snapshot())
    loaded = Snapshots(tmp_path / "folder" / "run", IDENTITY).load()
    assert loaded.values == snapshot().values
    assert loaded.tensors.keys() == snapshot().tensors.keys()
    for name, tensor in snapshot().tensors.items():
        assert torch.equal(loaded.tensors[name], tensor) and loaded.tensors[name].dtype == tensor.dtype


def test_each_replaces_the_last(tmp_path):
    with Snapshots(tmp_path / "run", IDENTITY) as snapshots:
        for value in (1.0, 2.0, 3.0):
            snapshots.save(snapshot(value))
    assert Snapshots(tmp_path / "run", IDENTITY).load().tensors["weights"][0] == 3.0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_training_may_go_on_while_it_is_written(tmp_path):
    weights = torch.zeros(1 << 20)
    with Snapshots(tmp_path / "run", IDENTITY) as snapshots:
        snapshots.save(Snapshot({}, {"weights": weights}))
        weights.fill_(1.0)
    assert not Snapshots(tmp_path / "run", IDENTITY).load().tensors["weights"].any()


def test_what_is_noted_later_is_not_in_it(tmp_path):
    rows = [{"val": 0.5}]
    begin, save = threading.Event(), checkpoints.save

    def late(*arguments):
        begin.wait(10)
        save(*arguments)

    with Snapshots(tmp_path / "run", IDENTITY) as snapshots, mock.patch.object(checkpoints, "save", late):
        snapshots.save(Snapshot({"rows": rows}, {"weights": torch.zeros(1)}))
        rows[0]["val"] = 0.75
        rows.append({"val": 1.0})
        begin.set()
        snapshots.wait()
        assert snapshots.load().values == {"rows": [{"val": 0.5}]}


@pytest.mark.parametrize(
    "other", [{"name": "target/trial0/run04", "lr": 3e-5}, {"name": "target/trial0/run03"}, {}]
)
def test_that_of_another_training_is_not_taken(tmp_path, other):
    with Snapshots(tmp_path / "run", IDENTITY) as snapshots:
        snapshots.save(snapshot())
    assert Snapshots(tmp_path / "run", other).load() is None


@pytest.mark.parametrize("content", [b"", b"no safetensors", "cut", "foreign", "folder"])
def test_a_damaged_file_is_as_none(tmp_path, content):
    path = tmp_path / "run"
    if content == "cut":
        with Snapshots(path, IDENTITY) as snapshots:
            snapshots.save(snapshot())
        path.write_bytes(path.read_bytes()[:-3])
    elif content == "foreign":
        save_file({"weights": torch.zeros(3)}, path)
    elif content == "folder":
        path.mkdir()
    else:
        path.write_bytes(content)
    assert Snapshots(path, IDENTITY).load() is None


def test_they_are_due_after_the_interval(tmp_path):
    now = 100.0
    with Snapshots(tmp_path / "run", IDENTITY, interval=60.0, clock=lambda: now) as snapshots:
        now = 159.0
        assert not snapshots.due()
        now = 160.0
        assert snapshots.due()
        snapshots.save(snapshot())
        assert not snapshots.due()
        now = 220.0
        assert snapshots.due()


def test_a_full_disk_is_told_and_the_last_snapshot_kept(tmp_path):
    path = tmp_path / "run"
    with Snapshots(path, IDENTITY) as snapshots:
        snapshots.save(snapshot(1.0))
        snapshots.wait()
        full = OSError(errno.ENOSPC, "No space left on device", str(path))
        with mock.patch.object(checkpoints, "save", side_effect=full):
            snapshots.save(snapshot(2.0))
            with pytest.raises(OSError, match="No space left"):
                snapshots.wait()
        assert snapshots.load().tensors["weights"][0] == 1.0
        snapshots.save(snapshot(3.0))
    assert Snapshots(path, IDENTITY).load().tensors["weights"][0] == 3.0


def test_forgetting_removes_the_file(tmp_path):
    with Snapshots(tmp_path / "run", IDENTITY) as snapshots:
        snapshots.forget()
        snapshots.save(snapshot())
        snapshots.forget()
    assert not list(tmp_path.iterdir())


def test_random_numbers_go_on_where_they_were():
    states = random_states(torch.device("cpu"))
    expected = torch.rand(3)
    restore_random_states(states, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)
