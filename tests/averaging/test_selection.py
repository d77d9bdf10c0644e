"""Choosing checkpoints by stored scores, and over trials."""

import math
import os

import pytest
import torch

from ratfast import InputError, checkpoints
from ratfast.averaging.selection import dagger_list, rank, stored_scores, top_k_weights


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
