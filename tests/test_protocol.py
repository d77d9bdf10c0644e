import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratfast import protocol
from ratfast.errors import InputError

# (lr in 1e-5, weight decay, dropout) of hyperparameter seeds 0 to 19, for trials 0, 1, 2: the published
# registry's draws.
DRAWS = """
5 0    0.0 | 5 0    0.0 | 5 0    0.0
3 1e-4 0.5 | 3 1e-6 0.5 | 3 1e-6 0.5
1 1e-6 0.5 | 3 1e-6 0.5 | 1 1e-6 0.0
3 1e-6 0.0 | 3 1e-4 0.1 | 3 1e-4 0.1
1 1e-6 0.0 | 3 1e-4 0.0 | 5 1e-4 0.5
3 1e-4 0.5 | 3 1e-6 0.1 | 1 1e-4 0.5
3 1e-4 0.1 | 1 1e-4 0.0 | 1 1e-4 0.0
1 1e-4 0.1 | 5 1e-6 0.5 | 5 1e-6 0.1
5 1e-4 0.1 | 5 1e-4 0.0 | 3 1e-4 0.0
5 1e-6 0.5 | 1 1e-4 0.1 | 3 1e-6 0.0
5 1e-6 0.5 | 3 1e-4 0.5 | 1 1e-4 0.5
5 1e-6 0.0 | 5 1e-6 0.1 | 3 1e-6 0.5
3 1e-4 0.5 | 5 1e-4 0.0 | 5 1e-6 0.0
5 1e-6 0.5 | 5 1e-4 0.5 | 3 1e-4 0.0
5 1e-6 0.0 | 1 1e-6 0.1 | 1 1e-6 0.5
3 1e-4 0.0 | 1 1e-6 0.5 | 3 1e-6 0.0
1 1e-4 0.5 | 1 1e-4 0.0 | 1 1e-4 0.5
5 1e-4 0.1 | 5 1e-6 0.0 | 1 1e-4 0.1
5 1e-6 0.0 | 5 1e-4 0.1 | 1 1e-6 0.0
3 1e-6 0.0 | 1 1e-6 0.5 | 1 1e-4 0.1
"""


def draws():
    for hparams_seed, line in enumerate(DRAWS.strip().splitlines()):
        for trial_seed, cell in enumerate(line.split("|")):
            lr, weight_decay, dropout = map(float, cell.split())
            yield hparams_seed, trial_seed, (lr * 1e-5, weight_decay, dropout)


def test_all_sixty_published_draws():
    cases = list(draws())
    assert len(cases) == protocol.RUNS * protocol.TRIALS
    for hparams_seed, trial_seed, expected in cases:
        drawn = protocol.hparams(hparams_seed, trial_seed)
        found = (drawn["lr"], drawn["weight_decay"], drawn["resnet_dropout"])
        assert found == pytest.approx(expected, rel=1e-12), (hparams_seed, trial_seed)
        assert all(type(value) is float for value in found)
        assert (drawn["batch_size"], drawn["lp_steps"]) == (32, 200)


def test_seed_hash_is_the_md5_of_the_printed_tuple():
    # The last 31 bits of what `printf "(0, 0)" | md5sum` prints, and likewise for the run's tuple.
    assert protocol.seed_hash(0, 0) == 0xB54C2413 & 0x7FFFFFFF
    assert protocol.seed_hash("PACS", "ERM", [0], 3, 1) == 0xEE59B7837 & 0x7FFFFFFF
    assert protocol.seed_hash("a", [1]) != protocol.seed_hash("a", [2])
    assert 0 <= protocol.seed_hash("x") < 2**31


@given(n=st.integers(0, 3000), trial=st.integers(0, 5), env=st.integers(0, 5))
def test_split_is_domainbeds(n, trial, env):
    # DomainBed: keys shuffled in place by RandomState; the first int(n * fraction) of them are the out-split.
    keys = list(range(n))
    np.random.RandomState(protocol.seed_hash(trial, env)).shuffle(keys)
    inside, outside = protocol.split(n, 0.2, trial, env)
    assert outside.tolist() == keys[: int(n * 0.2)]
    assert inside.tolist() == keys[int(n * 0.2) :]


def test_split_accepts_numpy_integers():
    plain = protocol.split(50, 0.2, 1, 2)
    numpy = protocol.split(np.int64(50), 0.2, np.int64(1), np.int32(2))
    assert all((a == b).all() for a, b in zip(plain, numpy, strict=True))


def test_run_seed_hashes_the_sweeps_tuple():
    assert protocol.run_seed("PACS", 1, 3, 2) == protocol.seed_hash("PACS", "ERM", [1], 3, 2)
    assert protocol.run_seed("PACS", np.int64(1), np.int64(3), np.int64(2)) == protocol.run_seed(
        "PACS", 1, 3, 2
    )
    assert (
        len({protocol.run_seed("PACS", e, h, t) for e in range(4) for h in range(20) for t in range(3)})
        == 240
    )


def test_twenty_runs_use_each_auxiliary_run_once():
    sources = protocol.auxiliary_sources(
        "PACS", ["VLCS", "PACS", "TerraIncognita", "OfficeHome", "DomainNet"]
    )
    assert sources == ["DomainNet", "OfficeHome", "TerraIncognita", "VLCS"]
    found = [protocol.auxiliary(seed, sources) for seed in range(20)]
    assert [seed for seed, (source, _) in enumerate(found) if source is None] == [0, 5, 10, 15]
    assert [seed for seed, (source, _) in enumerate(found) if source == "DomainNet"] == [1, 6, 11, 16]
    assert len({pair for pair in found if pair[0] is not None}) == 16
    assert protocol.auxiliary(7, sources) == ("OfficeHome", 3)


def test_assignment_does_not_depend_on_the_order_of_sources():
    assert protocol.auxiliary(1, ["b", "a"]) == protocol.auxiliary(1, ["a", "b"]) == ("a", 1)
    assert protocol.auxiliary(3, []) == (None, 0)


def test_sources_may_differ_in_their_number_of_runs():
    counts = {"a": 1, "b": 3}
    found = [protocol.auxiliary(seed, list(counts), counts) for seed in range(9)]
    assert found == [
        (None, 0),
        ("a", 0),
        ("b", 2),
        (None, 0),
        ("a", 0),
        ("b", 2),
        (None, 0),
        ("a", 0),
        ("b", 2),
    ]
    assert protocol.unused_auxiliary(9, counts) == {
        "b": 2
    }  # three runs and three starts have a common divisor
    assert protocol.unused_auxiliary(20, dict.fromkeys("abcd", 4)) == {}
    with pytest.raises(InputError):
        protocol.auxiliary(1, ["a"], {})


def test_fusing_coefficients():
    state = random.Random(7)
    weights = np.exp([4 * state.random() for _ in range(5)])
    found = protocol.fusing_coefficients(7, 5)
    assert found == pytest.approx(list(weights / weights.sum()), rel=1e-12)
    assert sum(found) == pytest.approx(1)


def test_lengths():
    assert protocol.training_steps("PACS") == 5001
    assert protocol.training_steps("DomainNet") == 15001
    assert [protocol.evaluation_interval(name) for name in ("PACS", "VLCS", "DomainNet")] == [100, 50, 500]
    assert protocol.probe_steps(5001) == 201  # the official code's 200 are 201 updates
    assert protocol.probe_steps(15001) == protocol.probe_steps(15001, full=15001) == 201
    assert protocol.probe_steps(500) == 20
    assert protocol.probe_steps(1) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: protocol.split(-1),
        lambda: protocol.split(10, 1.0),
        lambda: protocol.hparams(-1),
        lambda: protocol.auxiliary(-1, ["a"]),
        lambda: protocol.auxiliary(1, ["a"], 0),
        lambda: protocol.probe_steps(0),
    ],
)
def test_bad_input(call):
    with pytest.raises(InputError):
        call()
