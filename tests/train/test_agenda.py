"""What may begin next: nothing before what it needs, everything in the end, failures apart."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratfast.errors import UnfinishedError
from ratfast.train.agenda import Agenda
from ratfast.train.failures import Failure
from ratfast.train.plan import PRETRAINED, Average, Job, Plan


def job(name: str, source: str = PRETRAINED, probe: str | None = None) -> Job:
    return Job("target", name, "Shapes", 0, 0, 0, probe, source, 0, 10)


def small_plan() -> Plan:
    members = (job("m0", probe="p"), job("m1", "a0", "p"), job("m2", "a1", "p"))
    jobs = (job("q"), job("a0", probe="q"), job("a1", probe="q"), job("p"), *members)
    averages = (Average("uniform", False, members), Average("greedy", True, members))
    return Plan(jobs, averages, 0, {"target": members}, ())


TRANSITIVE = {
    "q": set(), "p": set(), "a0": {"q"}, "a1": {"q"}, "m0": {"p"},
    "m1": {"a0", "p", "q"}, "m2": {"a1", "p", "q"},
}  # fmt: skip
TRANSITIVE |= {name: set(TRANSITIVE) for name in ("averages/uniform", "averages/greedy")}


def carry_out(agenda: Agenda, workers: int, fails, choose) -> list[str]:
    """Simulates workers; the names of what was done, in order."""
    running, done = [], []
    while True:
        while len(running) < workers and (task := agenda.next()) is not None:
            running.append(task)
        if not running:
            return done
        task = running.pop(choose(len(running)))
        failure = fails(task.name)
        if failure is None:
            done.append(task.name)
            agenda.done(task)
        else:
            agenda.failed(task, failure)


@settings(max_examples=200)
@given(
    st.integers(1, 5),
    st.integers(0, 2),
    st.dictionaries(st.sampled_from(sorted(TRANSITIVE)), st.integers(1, 4)),
    st.sets(st.sampled_from(sorted(TRANSITIVE))),
    st.data(),
)
def test_any_course_of_events(workers, retries, failures, before, data) -> None:
    """`failures`: how often a task fails before it succeeds; `before`: what was done before."""
    before = {name for name in before if TRANSITIVE[name] <= before}
    left = dict(failures)

    def fails(name):
        left[name] = left.get(name, 0) - 1
        return Failure("it broke") if left[name] >= 0 else None

    agenda = Agenda(small_plan(), lambda task: task.name in before, retries)
    done = carry_out(agenda, workers, fails, lambda count: data.draw(st.integers(0, count - 1)))
    known = set(before)
    for name in done:
        assert TRANSITIVE[name] <= known and name not in known
        known.add(name)
    # Expected independently of any order: what fails too often, and what needs it.
    lost = {name for name, times in failures.items() if times > retries and name not in before}
    expected = {name for name in TRANSITIVE if name in before or not ({name} | TRANSITIVE[name]) & lost}
    assert known == expected
    if known == set(TRANSITIVE):
        agenda.close()
    else:
        with pytest.raises(UnfinishedError, match=f"{retries + 1} times" if retries else "it broke"):
            agenda.close()


def test_one_worker_keeps_the_order_of_the_plan() -> None:
    plan = small_plan()
    agenda = Agenda(plan, lambda task: False, 0)
    assert carry_out(agenda, 1, lambda name: None, lambda count: 0) == [task.name for task in plan.tasks]


def test_wrong_input_is_not_tried_again_and_all_is_named() -> None:
    agenda = Agenda(small_plan(), lambda task: False, 5)
    wrong = Failure("x.png is damaged", input_is_wrong=True)
    done = carry_out(agenda, 2, lambda name: wrong if name == "a1" else None, lambda count: 0)
    assert set(done) == {"q", "a0", "p", "m0", "m1"}
    with pytest.raises(UnfinishedError) as caught:
        agenda.close()
    assert caught.value.input_is_wrong
    assert caught.value.lines == [
        "a1 failed: x.png is damaged",
        "not done, since they need it: m2, averages/uniform, averages/greedy",
    ]


def test_a_task_that_failed_goes_before_new_ones() -> None:
    agenda = Agenda(small_plan(), lambda task: False, 1)
    first = agenda.next()
    assert first.name == "q" and agenda.failed(first, Failure("lost"))
    assert agenda.next().name == "q"
