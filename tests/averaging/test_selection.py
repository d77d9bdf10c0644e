"""Choosing checkpoints by stored scores, and over trials."""

import math
import os

import pytest
import torch

from ratfast import InputError, checkpoints
from ratfast.averaging import average_files, trajectory
from ratfast.averaging.selection import (
    SELECTIONS,
    dagger_list,
    rank,
    selection_weights,
    stored_scores,
    top_k_weights,
)


def test_stored_scores_of_both_kinds_of_files(tmp_path):
    tensors = {"a": torch.ones(2)}
    notes = {"plain": {"val": 0.5}, "run": {"kind": "member", "run": {"val": 0.75, "test": 0.1}}}
    paths = []
    for name, note in notes.items():
        paths.append(tmp_path / f"{name}.safetensors")
        checkpoints.save(tensors, paths[-1], note)
    paths.append(tmp_path / "timm.pth.tar")
    torch.save({"state_dict": tensors, "metric": 81.25, "epoch": 3}, paths[-1])
    assert stored_scores(paths) == [0.5, 0.75, 81.25]
    assert stored_scores(paths[2:], "epoch") == [3.0]
    assert stored_scores(paths[1:2], "run.test") == [0.1]


@pytest.mark.parametrize("note", [None, {"val": "high"}, {"val": True}, {"run": 3}])
def test_missing_score_names_the_file(tmp_path, note):
    checkpoints.save({"a": torch.ones(2)}, tmp_path / "x.safetensors", note)
    with pytest.raises(InputError, match=r"x\.safetensors has no stored score .*'val'"):
        stored_scores([tmp_path / "x.safetensors"])
    torch.save({"a": torch.ones(2)}, tmp_path / "bare.pt")
    with pytest.raises(InputError, match=r"bare\.pt has no stored score .*'metric'"):
        stored_scores([tmp_path / "bare.pt"])


def test_top_k():
    assert top_k_weights([0.1, 0.5, 0.3, 0.5], 2) == [0.0, 0.5, 0.0, 0.5]
    assert top_k_weights([0.5, 0.5, 0.5], 1) == [1.0, 0.0, 0.0]
    assert top_k_weights([0.1, math.nan, 0.3], 2) == [0.5, 0.0, 0.5]
    for k in (0, 3):
        with pytest.raises(InputError, match="from 1 to 2"):
            top_k_weights([1, 2], k)
    with pytest.raises(InputError, match="model 2 is nan"):
        top_k_weights([1.0, math.nan], 2)


def test_rank():
    assert rank([1, 3, math.nan, 3, -math.inf], 5) == [1, 3, 0, 2, 4]
    with pytest.raises(InputError, match="expected 2 numbers"):
        rank(["a", "b"], 2)


def test_dagger_counts_every_run_once(tmp_path):
    assert dagger_list([["a", "b"], ["c"]]) == ["a", "b", "c"]
    os.symlink(tmp_path / "a", tmp_path / "b")
    with pytest.raises(InputError, match="stands twice"):
        dagger_list([[tmp_path / "a"], [tmp_path / "b"]])


def run(folder):
    """Checkpoints of a run, with their validation scores and losses."""
    paths = []
    for index, (val, loss) in enumerate([(0.1, 3.0), (0.5, 1.0), (0.7, 1.1), (0.6, 1.0), (0.2, 9.0)]):
        paths.append(folder / f"step{index}.safetensors")
        checkpoints.save({"a": torch.tensor([float(index)])}, paths[-1], {"val": val, "val_loss": loss})
    return paths


RULES = [
    ("top-k", {"k": 2}, [0, 0, 0.5, 0.5, 0]),
    ("top_k", {"k": 1, "scores": [5, 4, 3, 2, 1]}, [1, 0, 0, 0, 0]),
    ("top-k", {"k": 1, "score_key": "val_loss"}, [0, 0, 0, 0, 1]),
    ("ema", {"decay": 0.5}, [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]),
    ("ema", {"decay": 0.9, "warmup": True}, trajectory.ema_weights(5, 0.9, warmup=True)),
    ("swa", {"start": 2, "every": 2}, [0, 0.5, 0, 0.5, 0]),
    ("moving-average", {"start": 300, "steps": [100, 200, 300, 400, 500]}, [0, 0, 1 / 3, 1 / 3, 1 / 3]),
    ("lawa", {"k": 2}, [0, 0, 0, 0.5, 0.5]),
    ("swad", {"n_end": 1}, [0, 1 / 3, 1 / 3, 1 / 3, 0]),
    ("swad", {"n_start": 1, "n_end": 1, "losses": [1, 1, 5, 1, 1]}, [0.5, 0.5, 0, 0, 0]),
    ("dagger", {}, [0.2] * 5),
]


@pytest.mark.parametrize(("name", "options", "expected"), RULES)
def test_rules_by_name(tmp_path, name, options, expected):
    paths = run(tmp_path)
    weights = selection_weights(name, paths, options)
    assert weights == pytest.approx(expected)
    average_files(paths, tmp_path / "out.safetensors", weights=weights, method=name)
    value = checkpoints.load(tmp_path / "out.safetensors")["a"].item()
    assert value == pytest.approx(sum(w * n for n, w in enumerate(expected)), rel=1e-6)
    assert checkpoints.read_metadata(tmp_path / "out.safetensors")["method"] == name


def test_every_rule_is_tested():
    assert {name.replace("_", "-") for name, _, _ in RULES} == set(SELECTIONS)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("best", {}, "no selection 'best', expected one of top-k"),
        ("lawa", {"decay": 1}, "no option 'decay': expected one of k"),
        ("dagger", {"k": 1}, "it has none"),
        ("swa", {"steps": [1]}, "1 steps were given for 5 checkpoints"),
        ("top-k", {"scores": [1]}, "1 scores were given for 5"),
        ("top-k", {"score_key": "test"}, r"step0\.safetensors has no stored score .*'test'"),
    ],
)
def test_wrong_rules(tmp_path, name, options, message):
    with pytest.raises(InputError, match=message):
        selection_weights(name, run(tmp_path), options)
