"""What the official code does, as small records that tests compare with: made, or made again and compared.

    python tests/official/record.py CHECKOUT            # of facebookresearch/ModelRatatouille: compares
    python tests/official/record.py CHECKOUT --write    # replaces the records

Every number is computed by functions of the checkout, run as they are; only what they read from outside (pre-trained
weights, image folders, checkpoints) is replaced. Needs tqdm, which the official code imports.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import cases  # noqa: E402 - beside this file


def splits() -> list[list[Any]]:
    from domainbed.lib import misc

    rows = []
    for n, fraction, trial_seed, env in cases.split_arguments():
        outside, inside = misc.split_dataset(range(n), int(n * fraction), misc.seed_hash(trial_seed, env))
        rows.append([n, fraction, trial_seed, env, cases.digest([list(inside.keys), list(outside.keys)])])
    return rows


def draws() -> list[list[Any]]:
    from domainbed import hparams_registry
    from domainbed.lib import misc

    rows = []
    for hparams_seed, trial_seed in cases.draw_arguments():
        # The choice between the two as in scripts/train.py.
        if hparams_seed == 0:
            drawn = hparams_registry.default_hparams("ERM", "PACS")
        else:
            drawn = hparams_registry.random_hparams("ERM", "PACS", misc.seed_hash(hparams_seed, trial_seed))
        plain = {name: getattr(value, "item", lambda value=value: value)() for name, value in drawn.items()}
        rows.append([hparams_seed, trial_seed, plain])
    return rows


def run_seeds() -> list[list[Any]]:
    from domainbed.scripts import sweep

    rows = []
    for dataset, test_env in cases.sweep_arguments():
        args = Namespace(
            dataset=dataset, test_env=test_env, algorithm="ERM", data_dir="data", aux_dir="", fusing_range=-1,
            path_init="", seed=0, n_trials=3, n_hparams_from=0, n_hparams=20,
        )  # fmt: skip
        made = sweep.make_args_list(args)
        found = sorted([a["hparams_seed"], a["trial_seed"], a["seed"]] for a in made)
        folder = Path(sweep.Job(made[7], "runs").output_dir).name
        rows.append([dataset, test_env, cases.digest(found), found[:3], folder])
    return rows


def assignments() -> list[list[Any]]:
    from domainbed.lib import misc

    rows = []
    for target, sources, runs in cases.assignment_arguments():
        with tempfile.TemporaryDirectory() as folder:
            for source in sources:
                for run in range(runs):
                    made = Path(folder) / f"{source}_notest" / f"run{run:02}"
                    made.mkdir(parents=True)
                    for name in ("done", "featurizer_last.pkl"):
                        (made / name).write_text("")
            chosen = []
            for hparams_seed in range(20):
                args = Namespace(aux_dir=folder, dataset=target, hparams_seed=hparams_seed)
                with contextlib.redirect_stdout(io.StringIO()):
                    path = misc.get_featurizer_aux(args)
                if path == "imagenet":
                    chosen.append([None, 0])
                else:
                    run = Path(path).parent
                    chosen.append([run.parent.name.removesuffix("_notest"), int(run.name[3:])])
        rows.append([target, sources, runs, chosen])
    return rows


def fusing() -> list[list[Any]]:
    """The coefficients that scripts/train.py hands to the algorithm, run up to there."""
    import torch
    from domainbed import algorithms, datasets
    from domainbed.scripts import train

    class Caught(Exception):
        pass

    def catch(**arguments: Any) -> None:
        raise Caught(list(arguments["dict_featurizers_aux"].values()))

    datasets.Debug224.N_WORKERS = 0
    real, streams = algorithms.get_algorithm_class, (sys.stdout, sys.stderr)
    rows = []
    for seed, count in cases.fusing_arguments():
        with tempfile.TemporaryDirectory() as folder:
            for source in range(count - 1):
                run = Path(folder) / "aux" / f"source{source}" / "run"
                run.mkdir(parents=True)
                for name in ("done", "featurizer_last.pkl"):
                    (run / name).write_text("")
            (Path(folder) / "aux").mkdir(exist_ok=True)
            arguments = [
                "--dataset", "Debug224", "--test_envs", "0", "--seed", str(seed), "--fusing_range", "4",
                "--aux_dir", str(Path(folder) / "aux"), "--output_dir", str(Path(folder) / "out"),
            ]  # fmt: skip
            algorithms.get_algorithm_class = lambda name: catch
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    train.main(train.parse_args(arguments))
            except Caught as caught:
                rows.append([seed, count, caught.args[0]])
            finally:
                algorithms.get_algorithm_class = real
                sys.stdout, sys.stderr = streams
    torch.manual_seed(0)
    return rows


def greedy() -> list[list[Any]]:
    """Decisions of scripts/inference.py where checkpoints and accuracies are those of a made-up pool."""
    from domainbed.scripts import inference

    rows = []
    for case in range(cases.GREEDY_CASES):
        stored, score = cases.greedy_pool(case)
        accepted: list[str] = []

        def results(folders: list[str], *ignored: Any, score: Any = score) -> dict[str, Any]:
            return {"train_acc": score(folders), "test_acc": 0.0, "length": len(folders), "folders": folders}

        def printed(found: dict[str, Any], accepted: list[str] = accepted) -> None:
            if "final" in found:
                accepted[:] = found["folders"]

        inference._get_args = lambda: Namespace(
            data_dir="", dataset="Debug224", test_env=0, weight_selection="greedy", trial_seed=0
        )
        inference.datasets.Debug224.__init__ = lambda *a, **k: None
        inference.create_splits = lambda *a: [[0]]
        inference.get_dict_folder_to_score = lambda args, stored=stored: dict(stored)
        inference.get_wa_results = results
        inference.print_results = printed
        with contextlib.redirect_stdout(io.StringIO()):
            inference.main()
        rows.append([case, list(accepted)])
    return rows


def losses() -> dict[str, list[float]]:
    """The first losses of the official ERM, from weights and images that both sides make from seeds."""
    import torch
    import torchvision
    from domainbed import algorithms

    found = {}
    for name, case in cases.TRAININGS.items():
        start, auxiliary = cases.resnet18(0), cases.resnet18(1)
        torchvision.models.resnet18 = lambda pretrained, start=start: cases.twin(start)
        hparams = {"resnet18": True, "resnet_dropout": 0.0, "lp_steps": case["lp_steps"]}
        hparams |= {"lr": case["lr"], "weight_decay": case["weight_decay"]}
        with tempfile.TemporaryDirectory() as folder:
            paths = {}
            if case["lp_steps"]:
                paths["auxiliary"] = str(Path(folder) / "featurizer_last.pkl")
                state = {f"network.{key}": value for key, value in auxiliary.state_dict().items()}
                torch.save(
                    {key: value for key, value in state.items() if ".fc." not in key}, paths["auxiliary"]
                )
            algorithm = algorithms.ERM(
                (3, 224, 224),
                cases.CLASSES,
                hparams,
                what_is_trainable=case["what_is_trainable"],
                dict_featurizers_aux=dict.fromkeys(paths.values(), 1.0),
            )
        algorithm.classifier.load_state_dict(cases.head().state_dict())
        with contextlib.redirect_stdout(io.StringIO()):
            found[name] = [algorithm.update(cases.minibatches(step))["loss"] for step in range(cases.STEPS)]
    return found


RECORDS = {
    "splits": splits,
    "draws": draws,
    "run_seeds": run_seeds,
    "assignments": assignments,
    "fusing": fusing,
    "losses": losses,
    "greedy": greedy,  # last: it replaces functions of the official module
}


def path_of(name: str) -> Path:
    return HERE / f"{name}.json"


def encode(value: Any) -> str:
    """One element a line, so that a difference can be read."""
    if isinstance(value, list):
        return "[\n" + ",\n".join(json.dumps(element) for element in value) + "\n]\n"
    return json.dumps(value, indent=1) + "\n"


def differ(ours: Any, theirs: Any) -> bool:
    """Exactly, but losses to 1e-5: processors round them differently."""
    if isinstance(ours, dict):
        return any(abs(a - b) > 1e-5 for name in ours for a, b in zip(ours[name], theirs[name], strict=True))
    return ours != theirs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.checkout))
    failed = []
    for name, make in RECORDS.items():
        made = json.loads(encode(make()))
        if arguments.write:
            path_of(name).write_text(encode(made))
        elif differ(made, json.loads(path_of(name).read_text())):
            failed.append(name)
        print(f"{name}: {'written' if arguments.write else 'differs' if name in failed else 'equal'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
