"""A training that is interrupted, or dies, and goes on: to the bit as if nothing had been."""

import signal

import pytest
import torch

from ratfast import InputError
from ratfast.averaging import SWAD, MovingAverage
from ratfast.train.fit import Schedule, Training
from ratfast.train.interruption import Interruptions
from ratfast.train.snapshot import Snapshots
from ratfast.train.stopwatch import Stopwatch
from ratfast.train.validation import Validator

from .test_fit import FixedLoader, build, validation

SCHEDULE = Schedule(
    steps=6, probe_steps=2, eval_every=2, lr=1e-3, weight_decay=1e-4, precision="float32"
)  # fmt: skip


class Interrupt(BaseException):
    """In place of KeyboardInterrupt, which pytest takes for its own."""


def start(stopwatch=None):
    model, arena = build(dropout=0.3)
    along = {"moving-average": MovingAverage(1), "swad": SWAD(1, 2, 1.3)}
    training = Training(model, arena, Validator(model, validation(), "float32"), SCHEDULE, along, stopwatch)
    return training, arena, along


def run_to_the_end(training, snapshots=None):
    return training.run(FixedLoader(), lambda images: None, lambda val: None, snapshots)


@pytest.fixture(scope="module")
def uninterrupted():
    training, arena, along = start()
    fitted = run_to_the_end(training)
    return fitted, arena.row_copy(), {name: average.average() for name, average in along.items()}


def assert_same(fitted, arena, along, expected):
    rows, row, averages = expected
    assert fitted.rows == rows.rows and fitted.best_row == rows.best_row
    assert torch.equal(fitted.best, rows.best) and torch.equal(arena.row, row)
    for name, average in averages.items():
        for key, value in along[name].average().items():
            assert torch.equal(value, average[key]), (name, key)


PLACES = [
    (place, step)
    for place, steps in {"forward": range(6), "step": range(6), "evaluation": (0, 2, 4, 5)}.items()
    for step in steps
]


@pytest.mark.parametrize(("place", "when"), PLACES)
def test_it_goes_on_from_any_interruption(place, when, uninterrupted, tmp_path, monkeypatch):
    training, _, _ = start()

    def interrupt(*arguments, **options):
        if training.updates == (when if place == "forward" else when + 1):
            raise Interrupt
        return original(*arguments, **options)

    with monkeypatch.context() as patched, Snapshots(tmp_path / "run", {}) as snapshots:
        if place == "evaluation":
            original = training._validator.scores
            patched.setattr(training._validator, "scores", interrupt)
        elif place == "forward":
            original = training._model.forward if when >= SCHEDULE.probe_steps else training._model.head
            name = "forward" if when >= SCHEDULE.probe_steps else "head"
            patched.setattr(training._model, name, interrupt)
        else:
            original = snapshots.due
            patched.setattr(snapshots, "due", interrupt)
        with pytest.raises(Interrupt):
            run_to_the_end(training, snapshots)

    again, arena, along = start()
    torch.manual_seed(77)  # whatever the new process has drawn
    with Snapshots(tmp_path / "run", {}) as snapshots:
        again.restore(snapshots.load())
        assert_same(run_to_the_end(again, snapshots), arena, along, uninterrupted)


def test_it_goes_on_from_the_last_snapshot_of_a_process_that_died(uninterrupted, tmp_path):
    training, _, _ = start()
    with Snapshots(tmp_path / "run", {}, interval=0.0) as snapshots:
        run_to_the_end(training, snapshots)  # a snapshot after each update; the last stays
    again, arena, along = start()
    with Snapshots(tmp_path / "run", {}) as snapshots:
        again.restore(snapshots.load())
        assert again.updates == SCHEDULE.steps
        assert_same(run_to_the_end(again), arena, along, uninterrupted)


def test_time_and_images_of_earlier_processes_count(tmp_path):
    now = 0.0

    def clock():
        nonlocal now
        now += 1.0
        return now

    first = Stopwatch(clock)
    training, _, _ = start(first)
    with Snapshots(tmp_path / "run", {}, interval=0.0) as snapshots:
        run_to_the_end(training, snapshots)
    spent = first.seconds
    now = 1000.0
    second = Stopwatch(clock)
    again, _, _ = start(second)
    with Snapshots(tmp_path / "run", {}) as snapshots:
        again.restore(snapshots.load())
    run_to_the_end(again)
    assert second.images == first.images == SCHEDULE.steps * 4
    assert spent <= second.seconds <= spent + 10
    assert 0 < second.training_seconds < second.seconds


def test_a_state_whose_loss_is_not_finite_does_not_replace_one_that_is(tmp_path):
    training, _, _ = start()
    snapshots = Snapshots(tmp_path / "run", {}, interval=0.0)
    save = snapshots.save

    def saved(snapshot):
        save(snapshot)
        if training.updates == 4:
            with torch.no_grad():
                training._model.classifier.weight.fill_(float("nan"))

    with snapshots:
        snapshots.save = saved
        with pytest.raises(InputError, match="the loss is nan after update 5"):
            run_to_the_end(training, snapshots)
    assert Snapshots(tmp_path / "run", {}).load().values["updates"] == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_wait_while_they_are_held(number):
    def interrupt(*_):
        raise Interrupt

    before = signal.signal(number, interrupt)
    steps = []
    try:
        with pytest.raises(Interrupt), Interruptions() as interruptions:  # noqa: PT012
            steps.append("began")
            with interruptions.held():
                signal.raise_signal(number)
                steps.append("finished")
            steps.append("not reached")
        assert steps == ["began", "finished"]
        with pytest.raises(Interrupt), Interruptions():
            signal.raise_signal(number)
        assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, before)
