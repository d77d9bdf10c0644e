"""A store: what is there is whole, what fails is a sentence, and nothing is lost on the way."""

import errno
import json
import os
import sys
import threading
import time
import uuid
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ratfast import InputError, config
from ratfast.train import lock, records, remote, store_lock
from ratfast.train.failures import Failure, failure_of, record_failure
from ratfast.train.lock import LOCK
from ratfast.train.plan import Average, Job
from ratfast.train.remote import Remote, StoreError
from ratfast.train.snapshot import Snapshot, Snapshots
from ratfast.train.state import is_done, last_failure, snapshot_file, updates_made
from ratfast.train.store import RemoteStore, Store, open_store
from ratfast.version import __version__

fsspec = pytest.importorskip("fsspec")

JOB = Job("target", "target/trial0-run00", "Shapes", 1, 0, 0, "probe/Shapes", "auxiliary/Near/run00", 0, 5)
OTHER = Job("probe", "probe/Shapes", "Shapes", 1, 0, 0, None, "pre-trained", 5, 5)
AVERAGE = Average("uniform", False, (JOB,))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(store_lock, "BEAT_SECONDS", 0.05)


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path) -> str:
    return f"file://{tmp_path}/kept" if request.param == "file" else f"memory://{uuid.uuid4()}/kept"


def machine(folder: Path, url: str) -> RemoteStore:
    return RemoteStore(folder, Remote(url))


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def finish(job: Job, output: Path, mark: str = "") -> dict[str, bytes]:
    """Writes a run as if it had been made, and returns its files."""
    with records.new_run(output / job.name) as folder:
        records.write_rows(folder, [{"step": 0, "mark": mark}])
        records.write_json(folder / records.RUN, {"initialisation": job.source, "mark": mark})
        (folder / records.CHECKPOINT).write_bytes(os.urandom(1000))
        (folder / "moving-average.safetensors").write_bytes(os.urandom(1000))
    return contents(output / job.name)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def save_state(job: Job, output: Path, updates: int, **identity) -> bytes:
    with Snapshots(
        snapshot_file(job, output), {"job": asdict(job), "version": __version__, **identity}
    ) as states:
        states.save(Snapshot({"updates": updates}, {"row": torch.full((30_000,), float(updates))}))
    return snapshot_file(job, output).read_bytes()


NAME = st.text("ab .[]*?#%+=~@ü", min_size=1, max_size=6).filter(lambda text: text.strip(". ~"))
NAMES = st.lists(NAME, min_size=1, max_size=3).map("/".join)


@pytest.mark.parametrize("scheme", ["file", "memory"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.dictionaries(NAMES, st.binary(max_size=300), max_size=5))
def test_what_comes_back_is_what_was_put_there(tmp_path_factory, scheme, files) -> None:
    names = set(files)
    files = {
        name: content
        for name, content in files.items()
        if not any(other.startswith(f"{name}/") for other in names)
    }
    folder = tmp_path_factory.mktemp("store")
    url = f"file://{folder}/a b/kept" if scheme == "file" else f"memory://{uuid.uuid4()}/a b"
    write(folder / "here", files)
    machine(folder / "here", url).keep(files)
    there = machine(folder / "there", url)
    assert there.remote.sizes() == {name: len(content) for name, content in files.items()}
    there.fetch([*files, "not/there"])
    assert contents(folder / "there") == files
    there.forget([*list(files)[:1], "not there"])
    assert there.remote.sizes().keys() == set(list(files)[1:])


def test_another_machine_has_the_records_and_gets_weights_when_they_are_needed(url, tmp_path) -> None:
    here, there = machine(tmp_path / "here", url), machine(tmp_path / "there", url)
    made = {job.name: finish(job, here.output) for job in (JOB, OTHER)}
    write(here.output, {"averages/uniform.safetensors": b"weights", "averages/uniform.json": b"{}"})
    for task in (JOB, OTHER, AVERAGE):
        here.keep_done(task)
    there.fetch_done([JOB, OTHER, AVERAGE])
    assert all(is_done(task, there.output) for task in (JOB, OTHER, AVERAGE))
    small = {records.RUN, records.RESULTS, "done"}
    for name, files in made.items():
        assert contents(there.output / name) == {file: files[file] for file in small}
    there.fetch_needs(JOB)
    assert contents(there.output / OTHER.name).keys() == small | {records.CHECKPOINT}
    there.fetch_needs(AVERAGE)
    checkpoint = there.output / JOB.name / records.CHECKPOINT
    assert checkpoint.read_bytes() == made[JOB.name][records.CHECKPOINT]
    assert (there.output / "averages/uniform.safetensors").read_bytes() == b"weights"


def test_what_was_done_while_the_store_was_away_is_put_there_later(url, tmp_path) -> None:
    here = machine(tmp_path / "here", url)
    files = finish(JOB, here.output)
    here.fetch_done([JOB, OTHER])
    there = machine(tmp_path / "there", url)
    there.fetch_task(JOB)
    there.fetch_task(OTHER)
    assert contents(there.output / JOB.name)["run.json"] == files["run.json"]
    assert not is_done(OTHER, there.output)


def test_averages_of_runs_that_are_not_done_stay_away(url, tmp_path) -> None:
    here, there = machine(tmp_path / "here", url), machine(tmp_path / "there", url)
    write(here.output, {"averages/uniform.safetensors": b"weights", "averages/uniform.json": b"{}"})
    here.keep_done(AVERAGE)
    there.fetch_done([JOB, AVERAGE])
    assert not is_done(AVERAGE, there.output)


class Broken:
    """Lets a file system fail at the n-th of some operations, having done half of it."""

    def __init__(self, files, monkeypatch, when: int, error: Exception | None):
        self.left, self.error = when, error
        for name in ("put_file", "pipe_file", "get_file", "cat_file"):
            monkeypatch.setattr(files, name, self._breaking(getattr(files, name), name, files))

    def _breaking(self, original, name, files):
        def call(first, second=None, *rest, **options):
            self.left -= 1
            if self.left >= 0:
                return original(first, *([] if second is None else [second]), *rest, **options)
            if name == "put_file":
                size = os.path.getsize(first)
                half = Path(first).read_bytes()[: size // 2]
                type(files).pipe_file(files, second, half)
            elif name == "get_file":
                Path(second).write_bytes(b"half")
            elif name == "pipe_file":
                original(first, second[: len(second) // 2])
            if self.error is not None:
                raise self.error
            return b""

        return call


@pytest.mark.parametrize("when", range(5))
@pytest.mark.parametrize("error", [OSError("the network is down"), None], ids=["error", "silence"])
def test_a_run_is_there_whole_or_not_at_all(tmp_path, monkeypatch, when, error) -> None:
    """Five files are put there; whichever breaks off, others do not take the run for done."""
    url = f"file://{tmp_path}/kept"
    here, there = machine(tmp_path / "here", url), machine(tmp_path / "there", url)
    files = finish(JOB, here.output)
    with monkeypatch.context() as patched:
        Broken(here.remote._files, patched, when, error)
        with pytest.raises(
            StoreError, match=rf"^cannot write {url}/target/trial0-run00/\S+: .*(down|arrived)"
        ):
            here.keep_done(JOB)
    whole = contents(tmp_path / "kept") if (tmp_path / "kept").exists() else {}
    assert whole.items() <= {f"{JOB.name}/{name}": content for name, content in files.items()}.items()
    assert len(whole) == when
    there.fetch_done([JOB])
    assert not is_done(JOB, there.output)
    here.keep_done(JOB)  # goes on where it stopped
    there.fetch_done([JOB])
    assert is_done(JOB, there.output)
    assert contents(tmp_path / "kept" / JOB.name) == files


@pytest.mark.parametrize("when", range(4))
def test_what_breaks_off_on_the_way_back_is_not_taken_for_whole(tmp_path, monkeypatch, when) -> None:
    url = f"file://{tmp_path}/kept"
    here, there = machine(tmp_path / "here", url), machine(tmp_path / "there", url)
    files = finish(JOB, here.output)
    here.keep_done(JOB)
    with monkeypatch.context() as patched:
        Broken(there.remote._files, patched, when, OSError("the network is down"))
        with pytest.raises(StoreError, match=r"^cannot read .*: the network is down$"):  # noqa: PT012
            there.fetch_done([JOB])
            there.fetch_needs(AVERAGE)
    found = contents(there.output / JOB.name) if (there.output / JOB.name).exists() else {}
    assert found.items() <= files.items()
    there.fetch_done([JOB])
    there.fetch_needs(AVERAGE)
    found = contents(there.output / JOB.name)
    assert is_done(JOB, there.output) and found == {name: files[name] for name in found}


def test_a_run_trained_again_takes_the_place_of_a_part_of_a_copy(tmp_path) -> None:
    write(tmp_path / JOB.name, {records.RUN: b"{}"})
    finish(JOB, tmp_path)
    assert is_done(JOB, tmp_path)


@pytest.mark.parametrize(("failures", "works"), [(2, True), (3, False)])
def test_patience_has_an_end(url, tmp_path, monkeypatch, failures, works) -> None:
    place = Remote(url)
    calls = []

    def flaky(*arguments, original=place._files.pipe_file, **options):
        calls.append(arguments)
        if len(calls) <= failures:
            raise ConnectionError("reset by peer.")
        original(*arguments, **options)

    monkeypatch.setattr(place._files, "pipe_file", flaky)
    if works:
        place.write("name", b"content")
        assert place.read("name") == b"content"
    else:
        with pytest.raises(StoreError, match=rf"^cannot write {url}/name: reset by peer$") as caught:
            place.write("name", b"content")
        assert place.read("name") is None
        assert failure_of(caught.value) == Failure(
            str(caught.value), details=failure_of(caught.value).details
        )
    assert len(calls) == 3


@pytest.mark.parametrize("error", [PermissionError("denied"), OSError(errno.ENOSPC, "no space")])
def test_what_time_does_not_mend_is_not_tried_again(url, monkeypatch, error) -> None:
    place, calls = Remote(url), []

    def fail(*_, **__):
        calls.append(1)
        raise error

    monkeypatch.setattr(place._files, "pipe_file", fail)
    with pytest.raises(StoreError, match=r"denied|no space"):
        place.write("name", b"content")
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nothing://x/y", "expected a scheme that fsspec knows"),
        ("file://relative/folder", "expected the URL of one folder"),
        ("sftp://me:secret@host/folder", "output.store contains a password"),
        ("simplecache::s3://bucket/folder", "output.store is "),
        ("/folder", "expected a URL such as s3://bucket/folder"),
        ("s3:/bucket/folder", "expected a URL such as s3://bucket/folder"),
        ("s3://", "expected a URL such as s3://bucket/folder"),
    ],
)
def test_urls_that_are_not_one(recipe, url, message) -> None:
    values = recipe.to_dict()
    values["output"]["store"] = url
    with pytest.raises(InputError, match=message):
        open_store(config.from_dict(values))
    assert not Path(recipe.output.dir).exists()


def test_the_output_folder_is_no_store(recipe) -> None:
    values = recipe.to_dict()
    values["output"]["store"] = f"file://{recipe.output.dir}/"
    with pytest.raises(InputError, match="which is the output folder itself"):
        open_store(config.from_dict(values))


def test_a_package_that_is_missing_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(
        InputError, match=r"output.store is 's3://bucket/folder', and a package is missing: .*s3fs"
    ):
        Remote("s3://bucket/folder")
    for name in [name for name in sys.modules if name == "fsspec" or name.startswith("fsspec.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r'pip install "ratfast\[store\]"'):
        Remote("file:///folder")


def test_without_a_url_there_is_no_store(recipe) -> None:
    found = open_store(recipe)
    assert type(found) is Store and found.remote is None and str(found.output) == recipe.output.dir


def test_of_two_states_the_one_with_more_updates_is_taken(url, tmp_path) -> None:
    here, there = machine(tmp_path / "here", url), machine(tmp_path / "there", url)
    there.fetch_state(JOB)  # there is none
    kept = save_state(JOB, here.output, 3)
    here.keep_state(JOB)
    there.fetch_state(JOB)
    assert snapshot_file(JOB, there.output).read_bytes() == kept
    newer = save_state(JOB, there.output, 4)
    there.fetch_state(JOB)
    assert snapshot_file(JOB, there.output).read_bytes() == newer
    save_state(JOB, here.output, 9, version="another")  # which no one would continue
    here.keep_state(JOB)
    there.fetch_state(JOB)
    assert updates_made(JOB, there.output) == 4


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 100, b"\x10" + bytes(7) + b"{}" * 8 + b"rest"])
def test_a_damaged_state_is_as_none(url, tmp_path, content) -> None:
    here, there = machine(tmp_path / "here", url), machine(tmp_path / "there", url)
    write(here.output, {f"{JOB.name}.snapshot": content})
    here.keep_state(JOB)
    there.fetch_state(JOB)
    assert updates_made(JOB, there.output) == 0
    with there.looked_at([JOB]) as folder:
        assert updates_made(JOB, folder) == 0


def test_what_is_done_is_seen_in_both_places_and_nothing_is_written(url, tmp_path) -> None:
    here, there = machine(tmp_path / "here", url), machine(tmp_path / "there", url)
    finish(OTHER, here.output, "kept")
    here.keep_done(OTHER)
    save_state(JOB, here.output, 3)
    here.keep_state(JOB)
    record_failure(JOB, Failure("too hot"), here)
    with there.looked_at([JOB, OTHER, AVERAGE]) as folder:
        assert is_done(OTHER, folder) and not is_done(JOB, folder) and not is_done(AVERAGE, folder)
        assert json.loads((folder / OTHER.name / records.RUN).read_text())["mark"] == "kept"
        assert updates_made(JOB, folder) == 3
        assert last_failure(JOB, folder) == "too hot"
        weighs = sum(path.stat().st_blocks for path in folder.rglob("*.snapshot")) * 512
        assert weighs < snapshot_file(JOB, here.output).stat().st_size / 2
    assert not there.output.exists()
    finish(JOB, there.output)
    with there.looked_at([JOB, OTHER]) as folder:
        assert is_done(JOB, folder) and is_done(OTHER, folder)
    here.fetch_done([JOB])  # the run is in one folder alone; its state and its failure are still in the store
    assert f"{JOB.name}.snapshot" in here.remote.sizes()
    there.fetch_done([JOB])
    left = {name for name in there.remote.sizes() if not name.startswith(f"{JOB.name}/")}
    assert not any(name.startswith(JOB.name) for name in left)


def test_weights_that_are_nowhere_are_missed(url, tmp_path) -> None:
    here = machine(tmp_path / "here", url)
    finish(JOB, here.output)
    (here.output / JOB.name / records.CHECKPOINT).unlink()
    with pytest.raises(InputError, match=f"the weights of {JOB.name} are neither in the output folder"):
        here.fetch_done([JOB])


def test_a_folder_is_made_the_same(url, tmp_path) -> None:
    here = machine(tmp_path, url)
    write(tmp_path, {"table/a/done": b"1", "table/b/done": b"2", "tables": b"3"})
    here.keep(["tables"])
    here.keep_folder("table")
    (tmp_path / "table/a/done").unlink()
    write(tmp_path, {"table/c": b"4"})
    here.keep_folder("table")
    assert here.remote.sizes().keys() == {"table/b/done", "table/c", "tables"}


def test_what_a_killed_process_left_half_written_goes(tmp_path) -> None:
    here = machine(tmp_path / "here", f"file://{tmp_path}/kept")
    write(tmp_path / "kept", {"probe/.ratfast-0123.tmp": b"half", "probe/Shapes.failed": b"whole"})
    assert here.remote.sizes().keys() == {"probe/Shapes.failed"}
    with here.held(print):
        pass
    assert os.listdir(tmp_path / "kept" / "probe") == ["Shapes.failed"]


def other_machine(url: str, beat: int) -> None:
    holder = lock.Holder(77, "elsewhere", "2026-01-01 00:00:00")
    Remote(url).write(LOCK, lock.encode(holder, beat))


def test_one_command_at_a_time(url, tmp_path) -> None:
    here, there = machine(tmp_path / "here", url), machine(tmp_path / "there", url)
    with here.held(print):
        assert here.holder() == there.holder() and there.holder().process == os.getpid()
        with (
            pytest.raises(
                InputError, match=rf"another ratfast-train is writing to the store {url} \(process "
            ),
            there.held(print),
        ):
            pass
    assert there.holder() is None
    with there.held(lambda line: pytest.fail(line)):
        pass


def test_one_that_has_fallen_silent_is_followed(url, tmp_path) -> None:
    other_machine(url, 1)
    said = []
    with machine(tmp_path, url).held(said.append):
        pass
    assert len(said) == 1 and "process 77 on elsewhere, since 2026-01-01 00:00:00, still writes to" in said[0]


def test_whoever_held_the_same_output_folder_need_not_be_watched(url, tmp_path) -> None:
    other_machine(url, 1)
    (tmp_path / LOCK).write_bytes(Remote(url).read(LOCK))
    with machine(tmp_path, url).held(lambda line: pytest.fail(line)):
        pass


def test_a_command_that_was_taken_for_dead_writes_no_more(url, tmp_path) -> None:
    here = machine(tmp_path, url)
    write(tmp_path, {"name": b"content"})
    with here.held(print):
        other_machine(url, 1)
        deadline = time.monotonic() + 10
        while here._heart.successor is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(InputError, match="process 77 on elsewhere"):
            here.keep(["name"])
    assert here.holder().process == 77  # whose name stays


def test_a_copy_that_takes_long_holds_no_training_up(tmp_path) -> None:
    going_on = threading.Event()
    with Snapshots(tmp_path / "run", {}, 0.0, going_on.wait) as snapshots:
        assert snapshots.due()
        snapshots.save(Snapshot({}, {"row": torch.zeros(3)}))
        assert not snapshots.due()
        going_on.set()
        snapshots.wait()
        assert snapshots.due()
