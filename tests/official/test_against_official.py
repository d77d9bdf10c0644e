"""ratfast against what the official code did (`record.py`), to the bit where there is nothing to round."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import ratfast
from ratfast import protocol

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import cases  # noqa: E402 - beside this file
import collect  # noqa: E402


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
    from ratfast.train.fit import Schedule, Training
    from ratfast.train.validation import PlainImages, Validator

    case = cases.TRAININGS[name]
    model = models.build("resnet18", cases.CLASSES, image_size=32)
    start = cases.resnet18(1 if case["lp_steps"] else 0)
    model.featurizer.network.load_state_dict(
        {key: value for key, value in start.state_dict().items() if not key.startswith("fc.")}
    )
    model.classifier.load_state_dict(cases.head().state_dict())
    model.to(memory_format=torch.channels_last)
    batches = SimpleNamespace(
        batches=lambda start, stop: (
            Batch(*(torch.cat(parts) for parts in zip(*cases.minibatches(step), strict=True)))
            for step in range(start, stop)
        )
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
    training = Training(model, Arena(model), validator, schedule)
    fitted = training.run(batches, lambda n: None, lambda v: None)
    found = [row["loss"] for row in fitted.rows]
    assert found == pytest.approx(recorded("losses")[name], abs=1e-4)


def test_tables_of_collect_results(tmp_path) -> None:
    collect.write_made_up(tmp_path)
    theirs = collect.parse(collect.RECORD.read_text())
    assert len(theirs) == 3 * (len(cases.SWEEPS) + 1)
    assert collect.ours(tmp_path) == theirs


def test_equally_good_runs_are_those_that_numpy_says() -> None:
    # 0.1 + 0.2 + 0.3 rounds up, 0.3 + 0.2 + 0.1 does not.
    assert protocol.selection_score([0.1, 0.2, 0.3]) > protocol.selection_score([0.3, 0.2, 0.1])


@pytest.mark.skipif(
    "RATFAST_DOMAINBED" not in os.environ, reason="RATFAST_DOMAINBED names no checkout of DomainBed"
)
def test_collect_results_reads_an_output(tmp_path) -> None:
    """The script itself, over an output of all rows: four domains, two trials."""
    from ratfast import config, train

    random = np.random.default_rng(0)
    for dataset, domains in (("PACS", 4), ("Near", 2)):
        for domain in range(domains):
            for label in range(3):
                folder = tmp_path / "data" / dataset / f"d{domain}" / str(label)
                folder.mkdir(parents=True)
                for number in range(5):
                    pixels = random.normal(40 + 60 * label + 20 * domain, 30, (24, 24, 3)).clip(0, 255)
                    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    torch.save(cases.resnet18(0).state_dict(), tmp_path / "pretrained.pth")
    values = {
        "data": {
            "dir": str(tmp_path / "data"),
            "target": "PACS",
            "test_env": 1,
            "aux": ["Near"],
            "image_size": 32,
        },
        "model": {"backbone": "resnet18", "weights": str(tmp_path / "pretrained.pth")},
        "train": {"rows": ["all"], "steps": 4, "eval_every": 2, "runs": 3, "trials": 2, "batch_size": 2},
        "output": {"dir": str(tmp_path / "output")},
    }
    train.run(config.from_dict(values))
    compared = 0
    for runs in collect.known_copies(tmp_path / "output", tmp_path / "copies"):
        assert collect.differences(Path(os.environ["RATFAST_DOMAINBED"]), runs) == []
        compared += 1
    assert compared == 5  # the table and four sweeps
