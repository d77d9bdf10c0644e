"""The official code and ratfast side by side, on real images: same losses, same averages, same greedy decisions.

    python tests/official/beside.py CHECKOUT            # of facebookresearch/ModelRatatouille

Runs the official linear probes, an auxiliary training, target trainings and weight averaging, each as its own script
has it, on the demonstration's digits (as folders called PACS and VLCS), twenty updates each at 224 pixels. Then
ratfast does the same from the same files and the batches that the official loaders gave, with its own loop, optimizer
and network. Replaced in the official code, from outside: the pre-trained weights (there is no network here to download
them from), the lengths and batch size, the number of worker processes, dropout (0), and `torch.load`'s default, which
current versions of torch changed. Takes some minutes on two cores.

    --double            both in float64, where rounding cannot hide a difference of formulas (three times as long)
    --channels-last     ours in the memory format of ratfast's trainer instead of the official code's

In float32 what differs are roundings of convolutions, which Adam's first steps carry on: a gradient that is nearly
zero moves its weight by the whole learning rate, one way or the other. Within twenty updates of everything that makes
up to 1e-4 of a loss, in torch itself from one memory format to another; probes stay at 2e-7.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import cases

from ratfast import checkpoints, models, protocol
from ratfast.arena import Arena
from ratfast.averaging import Pool, average_files, greedy_soup
from ratfast.data import Batch, decode, demo, scan
from ratfast.train.evaluation import accuracy
from ratfast.train.fit import Schedule, Training
from ratfast.train.validation import PlainImages, Validator

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
"""Of a loss, after which the two count as different."""

LP_STEPS, BATCH, TEST_ENV, SIZE = 5, 4, 1, 224
FOLDERS = {"PACS": ("Digits", 12), "VLCS": ("RotatedMNIST", 6)}
CLASSES = ("0", "1", "2")


def link_images(root: Path) -> None:
    """A part of the demonstration, under names that the official code knows."""
    source = demo.prepare()
    for name, (own, images) in FOLDERS.items():
        for domain in sorted((source / own).iterdir())[:4]:
            for label in CLASSES:
                folder = root / name / domain.name / label
                folder.mkdir(parents=True)
                for path in sorted((domain / label).iterdir())[:images]:
                    (folder / path.name).symlink_to(path)


class Official:
    """The official scripts, with what they read from outside replaced, and what they do recorded.

    Attributes:
        losses: of the last training, by step.
        batches: of the last training: images and labels by step.
        head: the classifier that the last training started from.
    """

    def __init__(self, root: Path, pretrained: Any, steps: int):
        import torchvision
        from domainbed import algorithms, datasets, hparams_registry
        from domainbed.scripts import train

        self.root = root
        self.steps = steps
        torchvision.models.resnet18 = lambda **_: cases.twin(pretrained)
        load = torch.load
        torch.load = lambda *a, **k: load(*a, **{"weights_only": False, **k})
        for name in FOLDERS:
            kind = getattr(datasets, name)
            kind.N_STEPS, kind.CHECKPOINT_FREQ, kind.N_WORKERS = steps, steps, 0
        for name in ("default_hparams", "random_hparams"):
            setattr(hparams_registry, name, self._small(getattr(hparams_registry, name)))
        update = algorithms.ERM.update

        def recorded_update(algorithm: Any, minibatches: Any) -> dict[str, float]:
            images, labels = (torch.cat(parts) for parts in zip(*minibatches, strict=True))
            self.batches.append(Batch(images, labels))
            if not self.losses:
                self.head = {k: v.clone() for k, v in algorithm.classifier.state_dict().items()}
            found = update(algorithm, minibatches)
            self.losses.append(found["loss"])
            return found

        algorithms.ERM.update = recorded_update
        self._train = train

    @staticmethod
    def _small(draw: Any) -> Any:
        def drawn(*arguments: Any) -> dict[str, Any]:
            changes = {"batch_size": BATCH, "lp_steps": LP_STEPS, "resnet_dropout": 0.0, "resnet18": True}
            return {**draw(*arguments), **changes}

        return drawn

    def train(self, dataset: str, test_env: int, output: str, **options: Any) -> Path:
        """Runs scripts/train.py."""
        self.losses, self.batches = [], []
        options |= {"dataset": dataset, "data_dir": str(self.root), "output_dir": str(self.root / output)}
        arguments = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
        arguments += ["--test_envs", str(test_env)]
        streams = sys.stdout, sys.stderr
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self._train.main(self._train.parse_args(arguments))
        finally:
            sys.stdout, sys.stderr = streams
        return self.root / output

    def average(self, selection: str) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor], list[str]]:
        """Runs scripts/inference.py: what it prints, the last average it made, the members it kept."""
        from domainbed import algorithms_inference
        from domainbed.scripts import inference

        printed: list[dict[str, Any]] = []
        made: dict[str, Any] = {}
        tried: list[list[str]] = []
        results, wa = inference.get_wa_results, algorithms_inference.WA

        class Kept(wa):
            def add_weights(self, network: Any) -> None:
                super().add_weights(network)
                made["network"] = self.network_wa

        def recorded(folders: list[str], *rest: Any) -> dict[str, Any]:
            tried.append(list(folders))
            return results(folders, *rest)

        algorithms_inference.WA, inference.get_wa_results = Kept, recorded
        inference.print_results = lambda found: printed.append(dict(found))
        argv = sys.argv
        sys.argv = [
            "inference", "--data_dir", str(self.root), "--input_dir", str(self.root / "target"), "--dataset",
            "PACS", "--test_env", str(TEST_ENV), "--weight_selection", selection, "--trial_seed", "0",
        ]  # fmt: skip
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                inference.main()
        finally:
            sys.argv = argv
            algorithms_inference.WA, inference.get_wa_results = wa, results
        rounds = [entry for entry in printed if "final" not in entry]
        kept = [folders[-1] for folders, entry in zip(tried, rounds, strict=False) if entry.get("accept")]
        return printed, dict(made["network"].named_parameters()), kept


class Recorded:
    """The batches of a training that has been, as `ratfast.train.fit.Batches`."""

    def __init__(self, batches: list[Batch]):
        self._batches = batches

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        return iter(self._batches[start:stop])


def our_losses(
    official: Official,
    pretrained: Path,
    featurizer: Path | None,
    seed: int,
    probe_steps: int,
    memory_format: torch.memory_format,
) -> list[float]:
    """The losses of ratfast's loop on the batches that the official loop has just had, one for each update."""
    drawn = protocol.hparams(seed, 0)
    model = models.build("resnet18", len(CLASSES), weights=pretrained, image_size=SIZE)
    if featurizer is not None:
        models.load_featurizer(model.featurizer, featurizer, buffers=False)
    model.classifier.load_state_dict(official.head)
    model.to(memory_format=memory_format)
    batches = [Batch(b.images.contiguous(memory_format=memory_format), b.labels) for b in official.batches]
    training = Training(
        model,
        Arena(model),
        lambda **_: {"val": 0.0, "val_loss": 0.0},  # what it selects is not looked at here
        Schedule(official.steps, probe_steps, 1, drawn["lr"], drawn["weight_decay"], "float32"),
    )
    fitted = training.run(Recorded(batches), lambda images: None, lambda val: None)
    return [row["loss"] for row in fitted.rows]


def compare_losses(
    root: Path, pretrained: Path, official: Official, memory_format: torch.memory_format
) -> Iterator[tuple[str, list[float]]]:
    """Trains as the sweeps do, and yields how far apart the losses are at each update of each training."""

    def distances(featurizer: Path | None, seed: int, probe_steps: int) -> list[float]:
        found = our_losses(official, pretrained, featurizer, seed, probe_steps, memory_format)
        return [abs(a - b) for a, b in zip(found, official.losses, strict=True)]

    lp = official.train("VLCS", -1, "lp/VLCS", what_is_trainable="classifier")
    yield "probe of VLCS", distances(None, 0, official.steps)
    sweep = {"path_init": str(lp / "network_best.pkl"), "hparams_seed": 1}
    aux = official.train("VLCS", -1, "aux/VLCS_notest/run", seed=protocol.run_seed("VLCS", -1, 1), **sweep)
    yield "auxiliary training on VLCS", distances(None, 1, 0)
    lp = official.train("PACS", TEST_ENV, "lp/PACS", what_is_trainable="classifier")
    yield "probe of PACS", distances(None, 0, official.steps)
    for seed in range(4):
        target = {
            "path_init": str(lp / "network_best.pkl"),
            "aux_dir": str(root / "aux"),
            "hparams_seed": seed,
        }
        run_seed = protocol.run_seed("PACS", TEST_ENV, seed)
        official.train("PACS", TEST_ENV, f"target/run{seed}", seed=run_seed, **target)
        source, _ = protocol.auxiliary(seed, ["VLCS"], 1)
        featurizer = None if source is None else aux / "featurizer_last.pkl"
        probe_steps = 0 if source is None else LP_STEPS + 1
        yield (
            f"target run {seed} from {source or 'the pre-trained weights'}",
            distances(featurizer, seed, probe_steps),
        )


def compare_averages(root: Path, official: Official) -> Iterator[tuple[str, Any]]:
    """Averages of the official checkpoints, decisions of the greedy selection, and accuracies."""
    dataset = scan(root / "PACS")
    files = {str(root / f"target/run{seed}"): root / f"target/run{seed}/model_best.pkl" for seed in range(4)}
    images = {
        env: PlainImages(decode(domain.paths, SIZE, backend="torchvision"), torch.as_tensor(domain.labels))
        for env, domain in enumerate(dataset.domains)
    }
    halves = {env: protocol.split(len(domain), 0.2, 0, env) for env, domain in enumerate(dataset.domains)}
    held_out = {
        (env, "out"): PlainImages(images[env].images[part], images[env].labels[part])
        for env, (_, part) in halves.items()
        if env != TEST_ENV
    }
    model = models.build("resnet18", len(CLASSES), image_size=SIZE)
    names = set(model.state_dict())

    def load(weights: dict[str, torch.Tensor]) -> None:
        model.load_state_dict({name: weights[name] for name in names})

    printed, parameters, _ = official.average("uniform")
    average_files(
        list(files.values()), root / "uniform.safetensors", buffers="keep"
    )  # `update_count` differs
    ours = checkpoints.load(root / "uniform.safetensors")
    farthest = max(
        float((ours[f"network.{name}"] - value.detach()).abs().max()) for name, value in parameters.items()
    )
    yield "uniform average: largest difference of a weight", farthest
    load(ours)
    test = accuracy(model, images[TEST_ENV].images, images[TEST_ENV].labels, "float32")
    yield "uniform average: test accuracy, official and ours", (printed[0]["test_acc"], test)

    scores = {}
    for folder, file in files.items():
        stored = json.loads(checkpoints.open_checkpoint(file).metadata["results"])
        scores[folder] = sum(stored[f"env{env}_out_acc"] for env in halves if env != TEST_ENV) / 3
        load(checkpoints.load(file))
        for half, part in zip(("in", "out"), halves[TEST_ENV], strict=True):
            own = accuracy(model, images[TEST_ENV].images[part], images[TEST_ENV].labels[part], "float32")
            recorded = stored[f"env{TEST_ENV}_{half}_acc"]
            yield (
                f"{Path(folder).name}: test accuracy on the {half}-split, official and ours",
                (recorded, own),
            )
    printed, _, kept = official.average("greedy")
    validator = Validator(model, held_out, "float32")
    pooled = []

    def evaluate(weights: dict[str, torch.Tensor]) -> float:
        load(weights)
        found = validator.scores().values()
        pooled.append(sum(score.correct for score in found) / sum(score.images for score in found))
        return pooled[-1]

    # Of equal scores the official order is that of the folder's listing: its own order is taken over.
    order = list((root / "target").iterdir())
    ranked = sorted(map(str, order), key=lambda folder: scores[folder], reverse=True)
    soup = greedy_soup(
        Pool.open([files[folder] for folder in ranked], buffers="keep"), evaluate, order=range(len(ranked))
    )
    theirs = [entry["train_acc"] for entry in printed if "final" not in entry]
    yield "greedy: validation accuracy at each candidate, official", theirs
    yield "greedy: validation accuracy at each candidate, ours", pooled
    chosen = [Path(ranked[index]).name for index in soup.members]
    yield "greedy: members, official and ours", ([Path(folder).name for folder in kept], chosen)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--steps", type=int, default=20, help="updates of each training")
    parser.add_argument("--double", action="store_true", help="both in float64; losses alone")
    parser.add_argument("--channels-last", action="store_true", help="ours in channels-last; losses alone")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.checkout))
    network, dtype = cases.resnet18(0), torch.float32
    if arguments.double:
        dtype = torch.float64
        torch.set_default_dtype(dtype)  # of new networks and of images
        network.double()
    memory_format = torch.channels_last if arguments.channels_last else torch.contiguous_format
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        link_images(root)
        torch.save(network.state_dict(), root / "pretrained.pth")
        official = Official(root, network, arguments.steps)
        for name, found in compare_losses(root, root / "pretrained.pth", official, memory_format):
            failed |= max(found) > TOLERANCE[dtype]
            print(
                f"{name}: losses differ by at most {max(found):.1e}, by {found[-1]:.1e} at the last update, "
                f"from {official.losses[0]:.4f} to {official.losses[-1]:.4f}",
                flush=True,
            )
        if not arguments.double and not arguments.channels_last:
            for name, value in compare_averages(root, official):
                if isinstance(value, tuple):
                    failed |= value[0] != value[1]
                elif isinstance(value, float):
                    failed |= value > 1e-6
                print(f"{name}: {value}", flush=True)
    print("differs" if failed else "equal")
    sys.exit(failed)


if __name__ == "__main__":
    main()
