from ratfast.train.stopwatch import Stopwatch


def test_a_run_that_goes_on_counts_what_came_before():
    now = 100.0
    first = Stopwatch(lambda: now)
    now = 103.0
    assert (first.seconds, first.training_seconds) == (3.0, 0.0)
    first.training_begins()
    first.images = 8
    now = 110.0
    state = first.state()
    now = 500.0  # the process died, and another begins
    second = Stopwatch(lambda: now)
    now = 501.0
    second.restore(state)
    second.training_begins()
    second.images += 4
    now = 504.0
    assert (second.seconds, second.training_seconds, second.images) == (14.0, 10.0, 12)
    third = Stopwatch(lambda: now)
    third.restore(second.state())
    assert (third.seconds, third.training_seconds, third.images) == (14.0, 10.0, 12)
