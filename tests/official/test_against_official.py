"""ratfast against what the official code did (`record.py`), to the bit where there is nothing to round."""

import json
import sys
from pathlib import Path

import pytest
import torch

import ratfast
from ratfast import protocol

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import cases  # noqa: E402 - beside this file


def recorded(name: str):
    return json.loads((HERE / f"{name}.json").read_text())


def test_a_thousand_splits() -> None:
    rows = recorded("splits")
    assert len(rows) == 1000
    for n, fraction, trial_seed, env, expected in rows:
        parts = protocol.split(n, fraction, trial_seed, env)
        assert cases.digest([part.tolist() for part in parts]) == expected, (n, fraction, trial_seed, env)


def test_all_sixty_draws() -> None:
    rows = recorded("draws")
    assert len(rows) == 60
    for hparams_seed, trial_seed, expected in rows:
        assert protocol.hparams(hparams_seed, trial_seed) == expected


def test_every_seed_of_every_sweep() -> None:
    rows = recorded("run_seeds")
    assert len(rows) == 27
    for dataset, test_env, expected, first, folder in rows:
        found = [
            [run, trial, protocol.run_seed(dataset, test_env, run, trial)]
            for run, trial in cases.draw_arguments()
        ]
        assert sorted(found)[:3] == first
        assert cases.digest(sorted(found)) == expected
        arguments = protocol.run_arguments(dataset, test_env, 7, 0, data_dir="data")
        assert protocol.run_folder(arguments) == folder


def test_assignment_of_auxiliary_runs() -> None:
    for target, sources, runs, expected in recorded("assignments"):
        others = protocol.auxiliary_sources(target, sources)
        found = [list(protocol.auxiliary(seed, others, runs)) for seed in range(20)]
        assert found == expected, target


def test_fusing_coefficients() -> None:
    for seed, count, expected in recorded("fusing"):
        assert protocol.fusing_coefficients(seed, count) == expected


def test_greedy_decisions() -> None:
    rows = recorded("greedy")
    assert len(rows) == cases.GREEDY_CASES
    for case, expected in rows:
        stored, score = cases.greedy_pool(case)
        names = list(stored)
        # Every model marks its own place, so that the soup says who is in it.
        marks = [{"weight": row} for row in torch.eye(len(names))]
        soup = ratfast.greedy_soup(
            ratfast.Pool.open(marks),
            lambda state, names=names, score=score: score(
                [name for name, share in zip(names, state["weight"], strict=True) if share > 0]
            ),
            scores=list(stored.values()),
        )
        assert [names[index] for index in soup.members] == expected, case


@pytest.mark.parametrize("name", cases.TRAININGS)
def test_the_first_losses(name) -> None:
    from ratfast import models
    from ratfast.arena import Arena
    from ratfast.data import Batch
    from ratfast.train.fit import Schedule, fit
    from ratfast.train.validation import PlainImages, Validator

    case = cases.TRAININGS[name]
    model = models.build("resnet18", cases.CLASSES, image_size=32)
    start = cases.resnet18(1 if case["lp_steps"] else 0)
    model.featurizer.network.load_state_dict(
        {key: value for key, value in start.state_dict().items() if not key.startswith("fc.")}
    )
    model.classifier.load_state_dict(cases.head().state_dict())
    model.to(memory_format=torch.channels_last)
    batches = (
        Batch(*(torch.cat(parts) for parts in zip(*cases.minibatches(step), strict=True)))
        for step in range(cases.STEPS)
    )
    probe_steps = cases.STEPS if case["what_is_trainable"] == "classifier" else 0
    if case["lp_steps"]:
        probe_steps = case["lp_steps"] + 1
    schedule = Schedule(
        steps=cases.STEPS,
        probe_steps=probe_steps,
        eval_every=1,
        lr=case["lr"],
        weight_decay=case["weight_decay"],
        precision="float32",
    )
    nothing = PlainImages(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    validator = Validator(model, {(0, "out"): nothing}, "float32")
    fitted = fit(model, Arena(model), batches, validator, schedule, lambda n: None, lambda v: None)
    found = [row["loss"] for row in fitted.rows]
    assert found == pytest.approx(recorded("losses")[name], abs=1e-4)
