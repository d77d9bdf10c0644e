"""`ratfast data list` and `check`: what they find, what they say, how they exit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ratfast import catalogue
from ratfast.catalogue import Description, Edition
from ratfast.cli import main as cli
from ratfast.data import scan
from ratfast.data.checking import departures, inspect
from ratfast.errors import InputError

TINY = Description(
    name="Tiny",
    folder="tiny",
    domains=("a", "b"),
    class_count=2,
    classes=("x", "y"),
    editions=(Edition("today's", (4, 2)), Edition("of 2018", (6, 2))),
)


def write(root: Path, counts: dict[str, int]) -> Path:
    """`counts` images, by "domain/class"."""
    for place, count in counts.items():
        (root / place).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(root / place / f"{number}.png")
    return root


WHOLE = {"a/x": 3, "a/y": 1, "b/x": 1, "b/y": 1}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A catalogue of one small data set, and a folder that holds it whole."""
    known = catalogue.find
    monkeypatch.setattr(catalogue, "find", lambda name: TINY if name.lower() == "tiny" else known(name))
    return write(tmp_path / "data" / "tiny", WHOLE)


def run(capsys, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", *words])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_whole(tiny):
    found = inspect(tiny, TINY, decode=True)
    assert found.ok and found.edition is TINY.editions[0] and found.bad == ()
    assert found.counts == {"a": {"x": 3, "y": 1}, "b": {"x": 1, "y": 1}}
    assert found.sentence() == (
        f"Tiny in {tiny} is whole: 6 images in 2 domains of 2 classes, all decoded, as published (today's); "
        "8 in of 2018."
    )


def test_another_edition_is_whole_too(tiny):
    write(tiny, {"a/x": 5})
    found = inspect(tiny, TINY)
    assert found.ok and found.edition.name == "of 2018"
    assert found.sentence().endswith("; none was opened, as published (of 2018); 6 in today's.")


@pytest.mark.parametrize(
    ("counts", "structure", "differences"),
    [
        ({"a/x": 3, "a/y": 1}, ["the domain b is missing"], []),
        (WHOLE | {"c/x": 1}, ["the folder c is no domain of it"], []),
        (
            {"a/x": 4, "b/x": 1, "b/y": 1},
            ["the domain a lacks the class y"],
            [],
        ),
        (WHOLE | {"a/z": 0}, ["the domain a has the unknown class z"], []),
        (WHOLE | {"a/x": 3, "a/y": 0}, ["in the domain a, the class y without images"], None),
        (
            WHOLE | {"a/x": 2, "b/y": 3},
            [],
            ["the domain a has 3 images, 4 are published", "the domain b has 4 images, 2 are published"],
        ),
        ({}, ["there are no folders of domains"], []),
    ],
)
def test_what_is_wrong(tmp_path, counts, structure, differences):
    (tmp_path / "d").mkdir()
    found = inspect(write(tmp_path / "d", counts), TINY)
    assert not found.ok
    for sentence in structure:
        assert any(each.startswith(sentence) for each in found.structure), found.structure
    if differences:
        assert list(found.differences) == differences
    assert "is not whole: " in found.sentence()


def test_a_folder_of_ones_own(tmp_path):
    found = inspect(write(tmp_path / "Mine", {"d/x": 2, "e/x": 1}), look=True)
    assert found.ok and found.edition is None
    assert found.sentence() == (
        f"Mine in {tmp_path / 'Mine'} is usable: 3 images in 2 domains of 1 classes; ends checked, not decoded; "
        "there are no published counts to compare with."
    )
    write(tmp_path / "Mine", {"e/y": 1})
    assert inspect(tmp_path / "Mine").structure == ("the domain d lacks the class y",)
    (tmp_path / "empty").mkdir()
    assert not inspect(tmp_path / "empty").ok
    with pytest.raises(InputError, match=r"gone does not exist, expected .*<domain>/<class>/<image>"):
        inspect(tmp_path / "gone")


def test_number_of_classes_where_their_names_are_not_listed(tmp_path):
    entry = Description("N", "n", ("a",), 3)
    found = inspect(write(tmp_path / "n", {"a/x": 1, "a/y": 1}), entry)
    assert found.structure == ("there are 2 classes, 3 are published",)


def test_check_of_a_whole_one(tiny, capsys):
    code, out, err = run(capsys, "check", "Tiny", "--data-dir", str(tiny.parent))
    # `find_folder` looks at the folder's names through the same `find`.
    assert code == 0, out + err
    assert out.splitlines()[0].split() == ["a", "4", "images", "in", "2", "classes"]
    assert out.splitlines()[-1].startswith(f"Tiny in {tiny} is whole: 6 images")
    assert run(capsys, "check", str(tiny))[0] == 0
    assert run(capsys, "check", "--data-dir", str(tiny.parent))[0] == 0


def test_check_lists_what_cannot_be_read(tiny, capsys):
    whole = (tiny / "a" / "x" / "0.png").read_bytes()
    (tiny / "a" / "x" / "0.png").write_bytes(b"")
    damaged = whole.replace(b"IDAT", b"IDAX")
    (tiny / "b" / "x" / "0.png").write_bytes(damaged)
    code, out, _ = run(capsys, "check", str(tiny))
    assert code == 2
    assert f"  {tiny}/a/x/0.png is empty" in out
    assert f"{tiny}/b/x/0.png cannot be " in out
    assert out.splitlines()[-1] == f"Tiny in {tiny} is not whole: 2 of 6 files cannot be read."
    assert (
        run(capsys, "check", str(tiny), "--quick")[1]
        .splitlines()[-1]
        .endswith("1 of 6 files cannot be read.")
    )
    code, out, _ = run(capsys, "check", str(tiny), "--json")
    report = json.loads(out)
    assert code == 2 and not report["ok"]
    (found,) = report["datasets"]
    assert [image["path"] for image in found["bad"]] == [f"{tiny}/a/x/0.png", f"{tiny}/b/x/0.png"]
    assert found["domains"] == found["published"] == {"a": 4, "b": 2}


def test_check_counts_beside_the_published(tiny, capsys):
    (tiny / "b" / "y" / "0.png").unlink()
    code, out, _ = run(capsys, "check", str(tiny))
    assert code == 2 and "b          1 of 2 images in 2 classes" in out
    assert "in the domain b, the class y without images" in out


def test_check_of_what_is_not_there(tmp_path, capsys):
    for words, sentence in [
        (["PACS"], "there is no folder PACS here, expected --data-dir"),
        (["PACS", "--data-dir", str(tmp_path)], f"dataset folder {tmp_path}/PACS does not exist"),
        ([], "there is nothing to check, expected a NAME or FOLDER"),
        (["--data-dir", str(tmp_path)], f"{tmp_path} holds no data sets"),
        (["--data-dir", str(tmp_path / "gone")], f"cannot list folder {tmp_path}/gone"),
    ]:
        code, out, err = run(capsys, "check", *words)
        assert (code, out) == (2, "") and err.startswith(f"ratfast: {sentence}"), err
        assert err.count("\n") == 1


def test_names_that_are_not_text_are_printed(tmp_path):
    folder = write(tmp_path / "d", {"a/x": 1, "b/x": 1})
    (folder / "a" / "x" / os.fsdecode(b"bad-\xff\n.png")).write_bytes(b"")
    code = "from ratfast.cli.main import main; main()"
    for more in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-c", code, "data", "check", str(folder), *more],
            capture_output=True,
            timeout=60,
            env=os.environ | {"PYTHONUTF8": "1"},
        )
        assert done.returncode == 2 and b"Traceback" not in done.stderr
        assert b"bad-\\udcff\\n.png" in done.stdout


def test_list(capsys, tmp_path):
    code, out, _ = run(capsys, "list")
    assert code == 0
    for entry in catalogue.CATALOGUE:
        assert any(line.split()[0] == entry.name for line in out.splitlines())
    assert max(map(len, out.splitlines())) <= 119
    (tmp_path / "PACS").mkdir()
    code, out, _ = run(capsys, "list", "--json", "--data-dir", str(tmp_path))
    rows = {row["name"]: row for row in json.loads(out)}
    assert [name for name, row in rows.items() if row["there"]] == ["PACS"]
    assert rows["VLCS"]["interval"] == 50 and rows["DomainNet"]["steps"] == 15001
    assert rows["SVIRO"]["images"] is None
    assert all(row["sources"] for row in rows.values())


def test_no_torch():
    code = (
        "import sys; from ratfast.cli.main import main\n"
        "try: main(['data', 'check', sys.argv[1]])\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "/nowhere"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "False\n" and done.returncode == 2


def test_a_data_set_of_the_paper_is_compared_where_it_is_used(tmp_path):
    entry = catalogue.find("PACS")
    root = write(tmp_path / "PACS", {f"{domain}/dog": 1 for domain in entry.domains})
    assert departures(scan(root))[0] == "the domain art_painting has 1 images, 2,048 are published"
    assert len(departures(scan(root))) == 4
    assert departures(scan(root, "Mine")) == departures(scan(root, "RotatedMNIST")) == ()
