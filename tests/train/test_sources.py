"""Auxiliary weights from anywhere, and what is refused or warned of before anything is trained."""

import io
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from rich.console import Console

from ratfast import InputError, checkpoints, config, models, train
from ratfast.data import scan
from ratfast.train.leakage import warn_of_shared_images
from ratfast.train.plan import make_plan
from ratfast.train.sources import given_sources

from .conftest import tiny_values


def run_folder(
    folder: Path, state: dict, name: str = "featurizer_last.pkl", seed: int = 0, dataset: str | None = None
) -> Path:
    """A finished run as the official release leaves it."""
    folder.mkdir(parents=True)
    torch.save(state, folder / name)
    (folder / "done").write_text("done")
    if dataset:
        arguments = {"dataset": dataset, "hparams_seed": seed}
        (folder / "results.jsonl").write_text(json.dumps({"args": arguments, "step": 0}) + "\n")
    return folder


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return torchvision.models.resnet18().state_dict()


@pytest.fixture(scope="module")
def featurizer(state) -> dict[str, torch.Tensor]:
    return {f"network.{name}": value for name, value in state.items() if not name.startswith("fc.")}


def names_and_runs(*entries: Path, target: str = "Shapes", by_seed: bool = True) -> dict[str, list[str]]:
    said: list[str] = []
    found = given_sources(tuple(map(str, entries)), target, by_seed, said.append)
    return {source.name: [str(Path(run)) for run in source.runs] for source in found}


def test_files_folders_sweeps_and_folders_of_sweeps(tmp_path, featurizer, state) -> None:
    aux = tmp_path / "aux"
    for dataset in ("Far", "Near"):
        for seed, name in enumerate(("b", "c", "a")):
            run_folder(aux / f"{dataset}_notest" / name, featurizer, seed=seed, dataset=dataset)
    (aux / "Near_notest" / "unfinished").mkdir()
    hub = tmp_path / "hub"
    hub.mkdir()
    torch.save(state, hub / "birds.pth")
    torch.save(state, hub / "planes.pth")
    far, near = aux / "Far_notest", aux / "Near_notest"

    def runs(folder: Path, order: str) -> list[str]:
        return [str(folder / name / "featurizer_last.pkl") for name in order]

    assert names_and_runs(aux) == {"Far_notest": runs(far, "bca"), "Near_notest": runs(near, "bca")}
    assert names_and_runs(aux, by_seed=False) == {
        "Far_notest": runs(far, "abc"), "Near_notest": runs(near, "abc")
    }  # fmt: skip
    assert names_and_runs(far / "c") == {"c": runs(far, "c")}
    expected = {"birds": [str(hub / "birds.pth")], "planes": [str(hub / "planes.pth")]}
    assert names_and_runs(hub) == names_and_runs(hub / "*.pth") == expected
    assert list(names_and_runs(hub / "birds.pth", hub)) == [
        f"birds ({hub / 'birds.pth'})", f"birds ({hub / 'birds.pth'})", "planes"
    ][1:]  # fmt: skip
    with pytest.raises(InputError, match=r"model\.aux_weights: .*nowhere does not exist"):
        names_and_runs(tmp_path / "nowhere")


def test_the_targets_own_fine_tunings_are_passed_over_or_refused(tmp_path, featurizer) -> None:
    aux = tmp_path / "aux"
    run_folder(aux / "Near_notest" / "x", featurizer, dataset="Near")
    run_folder(aux / "Shapes_notest" / "x", featurizer, dataset="Shapes")
    run_folder(aux / "renamed" / "x", featurizer, dataset="Shapes")
    said: list[str] = []
    found = given_sources((str(aux),), "Shapes", True, said.append)
    assert [source.name for source in found] == ["Near_notest"]
    assert len(said) == 2
    for entry, words in (
        (aux / "renamed", "says that it was fine-tuned on Shapes"),
        (aux / "Shapes_notest", "Shapes"),
    ):
        with pytest.raises(InputError, match=rf"is of the target data set Shapes \(it .*{words}"):
            names_and_runs(entry)
    torch.save(featurizer, tmp_path / "model.pkl")
    assert names_and_runs(tmp_path / "model.pkl")
    content = {"args": {"dataset": "office_home", "hparams_seed": 1}, "model_dict": featurizer}
    torch.save(content, tmp_path / "model_best.pkl")
    with pytest.raises(InputError, match="OfficeHome"):
        names_and_runs(tmp_path / "model_best.pkl", target="OfficeHome")


def test_trained_and_given_auxiliaries_mix(data_dir, backbone_file, tmp_path, state) -> None:
    torch.save(state, tmp_path / "Middle.pth")
    values = tiny_values(data_dir, backbone_file, tmp_path / "output")
    values["model"]["aux_weights"] = [str(tmp_path / "Middle.pth")]
    values["train"]["runs"] = 4
    recipe = config.from_dict(values)
    plan = make_plan(recipe, {name: scan(data_dir / name) for name in ("Shapes", "Far", "Near")})
    assert [job.source for job in plan.members(0)] == [
        "pre-trained", "auxiliary/Far/run00", str(tmp_path / "Middle.pth"), "auxiliary/Near/run00"
    ]  # fmt: skip


def trained_on_given(data_dir, backbone_file, tmp_path, path: Path, **changes) -> tuple[dict, str]:
    values = tiny_values(data_dir, backbone_file, tmp_path / "output")
    values["data"]["aux"] = []
    values["model"] |= {"aux_weights": [str(path)], **changes}
    values["train"] |= {"runs": 2, "steps": 2}
    console = Console(file=io.StringIO(), width=1000)
    summary = train.run(config.from_dict(values), console)
    return summary, console.file.getvalue()


def test_parameters_are_taken_and_statistics_stay_those_of_the_pretraining(
    data_dir, backbone_file, tmp_path, state
) -> None:
    changed = {name: value.clone() for name, value in state.items()}
    changed["bn1.running_mean"] += 0.5
    changed["conv1.weight"] *= 1.01
    torch.save({f"module.{name}": value for name, value in changed.items()}, tmp_path / "Hub.pth")
    with pytest.warns(
        UserWarning, match=r"Hub\.pth has other batch-norm statistics .*bn1\.running_mean"
    ) as caught:
        summary, shown = trained_on_given(data_dir, backbone_file, tmp_path, tmp_path / "Hub.pth")
    assert not any("independent network" in str(warning.message) for warning in caught)
    assert "Hub.pth: left out module.fc.weight, module.fc.bias" in shown
    members = [checkpoints.load(member["checkpoint"]) for member in summary["members"]]
    for member in members:
        assert torch.equal(member["featurizer.network.bn1.running_mean"], state["bn1.running_mean"])
    far = (
        members[0]["featurizer.network.conv1.weight"] - members[1]["featurizer.network.conv1.weight"]
    ).abs()
    assert far.median() > 1e-4  # 2 steps move weights by less than the change


def test_weights_of_another_pretraining_are_warned_of(data_dir, backbone_file, tmp_path) -> None:
    torch.manual_seed(9)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "Other.pth")
    with pytest.warns(
        UserWarning, match=r"Other\.pth is as far from the pre-trained weights as an independent"
    ):
        trained_on_given(data_dir, backbone_file, tmp_path, tmp_path / "Other.pth")


def test_what_does_not_fit_is_refused_before_training(data_dir, backbone_file, tmp_path, state) -> None:
    wide = torchvision.models.resnet18(width_per_group=64, num_classes=3)
    wide.conv1 = torch.nn.Conv2d(3, 128, 7, bias=False)
    cases = {
        "Wide": (wide.state_dict(), r"conv1\.weight is \(128, 3, 7, 7\) instead of \(64, 3, 7, 7\)"),
        "Short": (
            {name: value for name, value in state.items() if not name.startswith("layer4.1")},
            r"10 names missing.*layer4\.1\.conv1\.weight is missing",
        ),
        "Head": ({"fc.weight": torch.ones(3, 512), "fc.bias": torch.ones(3)}, "holds a head alone"),
    }
    for name, (tensors, words) in cases.items():
        torch.save(tensors, tmp_path / f"{name}.pth")
        with pytest.raises(InputError, match=rf"^model\.aux_weights: .*{name}\.pth .*{words}") as error:
            trained_on_given(data_dir, backbone_file, tmp_path, tmp_path / f"{name}.pth")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "output").exists()


def test_an_auxiliary_set_that_is_the_target_by_name(data_dir, backbone_file, tmp_path) -> None:
    values = tiny_values(data_dir, backbone_file, tmp_path / "output")
    for name in ("Shapes2", "shapes"):
        values["data"]["aux"] = [name]
        recipe = config.from_dict(values)
        with pytest.raises(
            InputError, match=f"data.aux names '{name}', which by its name is the target Shapes"
        ):
            make_plan(recipe, {"Shapes": scan(data_dir / "Shapes")})


def test_the_targets_images_under_another_name_are_warned_of(data_dir, tmp_path) -> None:
    shutil.copytree(data_dir / "Shapes" / "grey", tmp_path / "Other" / "night")
    for number, path in enumerate(sorted((tmp_path / "Other").rglob("*.png"))):
        path.rename(path.with_name(f"renamed{number}.png"))
    datasets = {"Shapes": scan(data_dir / "Shapes"), "Other": scan(tmp_path / "Other")}
    with pytest.warns(
        UserWarning, match=r"15 of the 45 images of the target Shapes are also in .*Other \(15 of the held"
    ):
        warn_of_shared_images(datasets, "Shapes", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_shared_images(
            {name: scan(data_dir / name) for name in ("Shapes", "Near", "Far")}, "Shapes", 1
        )


def test_fusing_starts_from_the_interpolation(data_dir, backbone_file, tmp_path, state) -> None:
    from ratfast import protocol
    from ratfast.train.context import Context
    from ratfast.train.progress import Display
    from ratfast.train.start import starting_model
    from ratfast.train.store import Store
    from ratfast.train.tasks import Tasks

    others = [{name: value + 0.1 * number for name, value in state.items()} for number in (1, 2)]
    for name, other in zip(("One", "Two"), others, strict=True):
        torch.save(other, tmp_path / f"{name}.pth")
    values = tiny_values(data_dir, backbone_file, tmp_path / "output")
    values["data"]["aux"] = []
    values["model"]["aux_weights"] = [str(tmp_path / "Two.pth"), str(tmp_path / "One.pth")]
    values["train"]["rows"] = ["fusing"]
    recipe = config.from_dict(values)
    display = Display(Console(quiet=True))
    tasks = Tasks(recipe, torch.device("cpu"), display)
    plan = make_plan(recipe, tasks.datasets)
    job = plan.members(0, "fusing")[1]
    shares = protocol.fusing_coefficients(protocol.run_seed("Shapes", 1, 1, 0), 3)
    assert [share for _, share in job.fused] == shares
    assert [Path(source).stem for source, _ in job.fused] == ["pre-trained", "One", "Two"]
    context = Context(recipe, tasks, torch.device("cpu"), "float32", Store(tmp_path), display)
    probe = models.build("resnet18", 3).state_dict()
    (tmp_path / job.probe).mkdir(parents=True)
    checkpoints.save(probe, tmp_path / job.probe / "model.safetensors")
    model = starting_model(job, context, 0.0)
    for name, value in model.featurizer.network.named_parameters():
        expected = sum(
            share * tensors[name].double() for share, tensors in zip(shares, [state, *others], strict=True)
        )
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    for name, value in model.featurizer.network.named_buffers():
        assert torch.equal(value, state[name])
    values["model"]["aux_weights"] = []
    recipe = config.from_dict(values)
    with pytest.raises(InputError, match=r"train\.rows names fusing, which interpolates auxiliary weights"):
        make_plan(recipe, tasks.datasets)
