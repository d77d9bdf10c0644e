"""What is read, the table of methods, and the page as text."""

import html
import importlib.util
import json
import math
import re
import shlex
import shutil
import xml.etree.ElementTree
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ratfast import InputError, checkpoints
from ratfast.cli.main import group
from ratfast.report.drawing import PALETTE
from ratfast.report.methods import Score, mean_score, method_rows, score
from ratfast.report.reading import Output, find_outputs, read_output
from ratfast.report.writing import read_sections, write_page, write_plots


def page_of(folder: Path, to: Path) -> str:
    write_page(read_sections(folder), folder, to)
    return to.read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """What a reader sees of it, roughly."""
    return " ".join(
        html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<style.*?</style>", "", page))).split()
    )


# Reading


def test_a_whole_folder(analysed):
    output = read_output(analysed)
    assert output.missing == []
    assert output.title == "Shapes, tested on grey"
    assert {run.stage for run in output.runs} == {"probe", "auxiliary", "target"}
    assert len(output.runs) == 7 and all(run.rows and run.record for run in output.runs)
    [uniform] = [average for average in output.averages if average.name == "uniform"]
    assert [weight for _, weight, _ in uniform.inputs] == [0.25] * 4
    assert uniform.inputs[0][2] == output.analysis["networks"][0]["sha256"]
    assert uniform.sha256 == checkpoints.sha256(analysed / "averages/uniform.safetensors")


@pytest.mark.parametrize(
    ("gone", "sentence"),
    [
        ("summary.json", "the training has not finished"),
        ("recipe.toml", "the settings are not known"),
        ("analysis.json", "ratfast analyze run"),
        ("averages/uniform.safetensors", "what was averaged"),
        ("probe/Near/results.jsonl", "its history is not shown"),
    ],
)
def test_what_is_missing_is_said(copy, tmp_path, gone, sentence):
    (copy / gone).unlink()
    said = [missing for missing in read_output(copy).missing if sentence in missing]
    assert len(said) == 1 and said[0].startswith(gone)
    text = text_of(page_of(copy, tmp_path / "page.html"))
    assert sentence in text
    assert ("Ratatouille, uniform" in text) == (gone != "summary.json")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "{"),
        ("summary.json", "[1]"),
        ("summary.json", '{"members": 3, "averages": [1]}'),
        (
            "summary.json",
            '{"members": [{"val": "x", "initialisation": 3}, 4], "averages": {"a": {"val": null}}}',
        ),
        ("analysis.json", "{}"),
        ("analysis.json", '{"in_domain": "a", "out_of_domain": "b", "curves": [{}], "by_size": 3}'),
        ("recipe.toml", "= 3"),
        ("averages/uniform.safetensors", "no safetensors"),
        ("probe/Near/results.jsonl", "[]"),
        ("probe/Near/results.jsonl", '{"step": 1, "loss": NaN, "val": null}\n{"step": 2, "loss": 1}'),
        ("probe/Near/run.json", "3"),
        ("probe/Near/run.json", '{"hparams": 3, "val": "high", "step": null}'),
    ],
)
def test_damaged_pieces_do_not_hide_the_others(copy, tmp_path, name, content):
    (copy / name).write_text(content)
    text = text_of(page_of(copy, tmp_path / "page.html"))
    assert "probe/Near" in text and "ratfast-train" in text


def test_an_analysis_of_other_networks_is_not_shown(analysed, copy, tmp_path):
    assert any("cannot be checked" in sentence for sentence in read_output(copy).missing)  # no checkpoints
    networks = read_output(analysed).analysis["networks"]
    for network in networks:
        shutil.copy(analysed / network["file"], copy / network["file"])
    assert read_output(copy).analysis["networks"] == networks
    assert read_output(copy).missing == []
    shutil.copy(analysed / networks[1]["file"], copy / networks[0]["file"])
    output = read_output(copy)
    assert output.analysis == {}
    [sentence] = output.missing
    assert f"{networks[0]['file']} has changed since" in sentence and "ratfast analyze run" in sentence
    assert "barrier" not in text_of(page_of(copy, tmp_path / "page.html"))
    assert "barrier" in text_of(page_of(analysed, tmp_path / "page.html"))


def test_folders_that_are_no_output(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        find_outputs(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"holds no summary\.json"):
        find_outputs(tmp_path)


# The table


def made(summary: dict, averages: list | None = None) -> Output:
    return Output(Path("x"), summary, "", None, [], averages or [], {}, [])


def member(trial: int, run: int, val: float, test: float) -> dict:
    return {"name": f"target/trial{trial}/run{run:02}", "initialisation": "p", "val": val, "test": test}


def test_scores_are_domainbeds():
    values = [0.6, 0.7, 0.9]
    assert score(values).mean == pytest.approx(np.mean(values))
    assert score(values).error == pytest.approx(np.std(values) / np.sqrt(3))  # as scripts/collect_results.py
    assert score(values).text == "73.3 ± 7.2"
    assert score([0.5]).text == "50.0" and score([]).text == "—"


def test_the_mean_over_test_domains():
    found = mean_score([Score(0.5, 0.03, 3), Score(0.7, 0.04, 3)])
    assert (found.mean, found.error) == (pytest.approx(0.6), pytest.approx(0.025))
    assert mean_score([Score(0.5, 0.03, 3), Score(0.7, None, 1)]).text == "60.0"
    assert mean_score([Score(0.5, 0.03, 3), None]).text == "—"


def test_the_table_of_several_trials(copy):
    summary = json.loads((copy / "summary.json").read_text())
    del summary["rows"]  # which trainings of before did not have
    summary["members"] = [member(0, 0, 0.8, 0.5), member(0, 1, 0.9, 0.6), member(1, 0, 0.7, 0.9)]
    summary["averages"] = {
        f"uniform_trial{trial}": {"val": 0.9, "test": test, "members": ["a", "b"]}
        for trial, test in ((0, 0.7), (1, 0.8))
    } | {"dagger": {"val": 0.95, "test": 0.85, "members": list("abcd")}}
    (copy / "summary.json").write_text(json.dumps(summary))
    rows = {row.method: row for row in method_rows(read_output(copy))}
    assert list(rows)[:4] == ["Mean of the members", "Best single run", "Uniform average", "Dagger average"]
    assert rows["Mean of the members"].test.mean == pytest.approx(2 / 3)
    best = rows["Best single run"].test
    assert (best.mean, best.count) == (pytest.approx(0.75), 2) and best.error == pytest.approx(
        0.15 / math.sqrt(2)
    )
    assert rows["Uniform average"].test.mean == pytest.approx(0.75)
    assert rows["Uniform average"].test.error == pytest.approx(0.05 / math.sqrt(2))
    assert rows["Dagger average"].test.error is None and rows["Dagger average"].is_average


def test_lines_that_a_training_wrote_itself_are_kept():
    line = {
        "method": "Soups/DiWA",
        "selection": "uniform",
        "definition": "the average",
        "val": 0.9,
        "test": 0.8,
    }
    line |= {"test_error": 0.01, "trials": 3}
    rows = method_rows(made({"members": [member(0, 0, 0.5, 0.5)], "rows": [line]}))
    assert [row.method for row in rows] == ["Mean of the members", "Soups/DiWA, uniform"]
    assert rows[1].test.text == "80.0 ± 1.0" and rows[1].is_average
    assert rows[1].detail == "the average"
    assert method_rows(made({"rows": [line | {"trials": 1}]}))[0].test.text == "80.0"
    assert method_rows(made({})) == []


# The page


def test_the_page_says_what_the_folder_holds(analysed, tmp_path):
    page = page_of(analysed, tmp_path / "page.html")
    text = text_of(page)
    summary = json.loads((analysed / "summary.json").read_text())
    for line in summary["rows"]:
        assert f"{line['method']}, {line['selection']} {line['definition']} {100 * line['test']:.1f}" in text
    assert len(summary["rows"]) > 1
    for entry in summary["members"]:
        assert f"{entry['name']}: validation {100 * entry['val']:.1f}, grey {100 * entry['test']:.1f}" in text
    analysis = json.loads((analysed / "analysis.json").read_text())
    for network in analysis["networks"]:
        assert network["sha256"] in text
    curve = analysis["curves"][0]["curves"]["grey"]
    assert f"On grey: barrier {100 * curve['barrier']:.1f}" in text
    assert 'target = "Shapes"' in text  # of the recipe
    assert page == page_of(analysed, tmp_path / "again.html")


def test_the_page_needs_nothing_else(analysed, tmp_path):
    page = page_of(analysed, tmp_path / "page.html")
    assert "<script" not in page and "@import" not in page
    fetched = re.findall(r"""(?:src|href|data|action|srcset)\s*=\s*["']([^"']*)|url\(([^)]*)\)""", page)
    targets = {"".join(found) for found in fetched}
    assert targets and all(target.startswith(("#", "data:")) for target in targets)
    # Every drawing follows the page's colours.
    drawings = "".join(re.findall(r"(?s)<svg.*?</svg>", page))
    assert "var(--ink)" in drawings and not any(light in drawings for light, _ in PALETTE.values())
    ids = re.findall(r'<g id="([^"]*)"', drawings)
    assert ids == []


def test_the_pages_commands_are_understood(analysed, tmp_path):
    page = page_of(analysed, tmp_path / "page.html")
    commands = [shlex.split(html.unescape(found)) for found in re.findall(r"<pre>(ratfast .*?)</pre>", page)]
    assert [words[1] for words in commands] == ["analyze", "report", "average", "average", "evaluate"]
    for words in commands:
        command: click.Command = group
        words = words[1:]
        while isinstance(command, click.Group):
            name, command, words = command.resolve_command(click.Context(command), words)
        command.make_context(name, words)


def test_names_cannot_break_the_page(copy, tmp_path):
    hostile = "<script>alert('a')</script>\"&"
    for name in ("summary.json", "analysis.json"):
        text = (copy / name).read_text()
        (copy / name).write_text(
            text.replace('"grey"', json.dumps(hostile)).replace("auxiliary/Near", "<b>$x_{$")
        )
    page = page_of(copy, tmp_path / "page.html")
    assert "<script" not in page and "<b>" not in page and html.escape("<script>alert(") in page
    for drawing in re.findall(r"(?s)<svg.*?</svg>", page):
        xml.etree.ElementTree.fromstring(
            drawing.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
        )


def test_several_outputs_on_one_page(copy, tmp_path):
    folder = tmp_path / "study"
    for name in ("first", "second"):
        shutil.copytree(copy, folder / name)
    second = folder / "second/summary.json"
    second.write_text(second.read_text().replace('"grey"', '"night"'))
    text = text_of(page_of(folder, tmp_path / "page.html"))
    assert text.startswith("study")
    assert "All of them" in text and "method grey night mean" in text
    files = write_plots(read_sections(folder), tmp_path / "plots")
    assert {file.parent.name for file in files} == {"first", "second"}


def test_plots_are_files(analysed, tmp_path):
    sections = read_sections(analysed)
    files = write_plots(sections, tmp_path / "plots")
    names = {chart.name for chart in sections[0].charts}
    assert {"members", "curve-1", "growth-number", "growth-sources", "ensembles", "gain", "domains"} <= names
    assert {"pairs-ratio-error", "pairs-cka", "history-target-val", "history-target-loss"} <= names
    assert sorted(files) == sorted(tmp_path / "plots" / (n + s) for n in names for s in (".svg", ".png"))
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as image:
                assert image.width == 1008
                assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 2  # something is drawn
        else:
            assert xml.etree.ElementTree.parse(file).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    before = {file: file.read_bytes() for file in files}
    write_plots(read_sections(analysed), tmp_path / "plots")
    assert before == {file: file.read_bytes() for file in files}


def test_the_command(copy, tmp_path):
    page, plots, logs = tmp_path / "page.html", tmp_path / "plots", tmp_path / "logs"
    options = ["--html", str(page), "--plots", str(plots)]
    options += ["--tensorboard", str(logs)] if importlib.util.find_spec("tensorboard") else []
    (copy / "probe/Near/results.jsonl").unlink()
    done = CliRunner().invoke(group, ["report", str(copy), *options], catch_exceptions=False)
    assert done.exit_code == 0 and f"The page is in {page}" in done.stdout
    assert page.is_file() and any(plots.iterdir())
    assert "ratfast: probe/Near/results.jsonl is not there" in done.stderr
    with pytest.raises(InputError, match="--latex prints tables"):
        CliRunner().invoke(group, ["report", str(copy), "--latex", *options], catch_exceptions=False)


def test_places_that_cannot_be_written(analysed, tmp_path):
    sections = read_sections(analysed)
    with pytest.raises(InputError, match="does not exist"):
        write_page(sections, analysed, tmp_path / "none/page.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder for plots"):
        write_plots(sections, tmp_path / "file")


def test_histories_for_tensorboard(analysed, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from ratfast.report.tensorboard import write_tensorboard

    sections = read_sections(analysed)
    for _ in range(2):  # a second time changes nothing
        assert len(write_tensorboard(sections, tmp_path)) == len(sections[0].output.runs)
    for run in sections[0].output.runs:
        log = EventAccumulator(str(tmp_path / run.name)).Reload()
        for name in ("val", "loss"):
            logged = [(event.step, event.value) for event in log.Scalars(name)]
            assert logged == [(row["step"], pytest.approx(row[name])) for row in run.rows]
