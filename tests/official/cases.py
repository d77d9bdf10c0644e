"""The cases on which ratfast and the official code are compared: made from seeds, the same on both sides."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

DOMAINS = {"VLCS": 4, "PACS": 4, "OfficeHome": 4, "TerraIncognita": 4, "DomainNet": 6}


def digest(value: Any) -> str:
    """A short hash of a JSON-able value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def split_arguments() -> Iterator[tuple[int, float, int, int]]:
    """A thousand arguments: images, held-out share, trial, domain."""
    chosen = random.Random(0)
    for _ in range(1000):
        n = chosen.choice([chosen.randrange(0, 50), chosen.randrange(50, 6000)])
        fraction = chosen.choice([0.2, 0.2, 0.1, 0.25, round(chosen.random() * 0.99, 3)])
        yield n, fraction, chosen.randrange(0, 6), chosen.randrange(0, 6)


def draw_arguments() -> Iterator[tuple[int, int]]:
    """Hyperparameter seed and trial of the sixty runs."""
    for trial_seed in range(3):
        for hparams_seed in range(20):
            yield hparams_seed, trial_seed


def sweep_arguments() -> Iterator[tuple[str, int]]:
    """Every data set with every held-out domain, and with none."""
    for dataset, domains in DOMAINS.items():
        for test_env in range(-1, domains):
            yield dataset, test_env


def assignment_arguments() -> Iterator[tuple[str, list[str], int]]:
    """Target, auxiliary folders, runs on each."""
    for target in DOMAINS:
        yield target, list(DOMAINS), 4
    yield "PACS", ["PACS", "PACS2", "VLCS"], 4
    yield "PACS", ["DomainNet", "OfficeHome", "VLCS"], 3
    yield "VLCS", ["Zoo", "Apes"], 1
    yield "VLCS", ["VLCS"], 2


def fusing_arguments() -> Iterator[tuple[int, int]]:
    """Seed of the run, and number of initialisations."""
    for seed in (0, 1, 7, 12345, 2**31 - 1):
        for count in (1, 2, 5):
            yield seed, count


GREEDY_CASES = 200


def greedy_pool(case: int) -> tuple[dict[str, float], Callable[[list[str]], float]]:
    """Stored scores of runs, and the accuracy of a soup of some of them; coarse, so that ties happen."""
    chosen = random.Random(case)
    stored = {f"run{run:02}": chosen.randrange(0, 8) / 8 for run in range(chosen.randrange(1, 21))}

    def score(names: list[str]) -> float:
        return int(digest([case, sorted(names)]), 16) % 12 / 12

    return stored, score


SWEEPS = {
    # Data set: domains, and the accuracies that there are. Of tenths the means depend on the order of adding.
    "PACS": (4, 10),
    "VLCS": (4, 3),
    "DomainNet": (6, 1000),
}


def sweep_records() -> Iterator[list[dict[str, Any]]]:
    """Runs of made-up sweeps, as the rows of `results.jsonl`: ties, missing runs, restarts, runs that hold out two."""
    chosen = random.Random(0)
    for dataset, (domains, parts) in SWEEPS.items():
        for algorithm in ("ERM", "CORAL", "Ratatouille, uniform"):
            for trial_seed in range(3):
                for test_env in range(domains):
                    for hparams_seed in range(4):
                        held_out = [[test_env]]
                        if dataset == "PACS" and algorithm == "ERM":
                            held_out += [sorted((test_env, other)) for other in range(test_env)]
                        for test_envs in held_out:
                            if algorithm == "CORAL" and chosen.random() < 0.4:
                                continue
                            arguments = {
                                "dataset": dataset, "algorithm": algorithm, "test_envs": test_envs,
                                "trial_seed": trial_seed, "hparams_seed": hparams_seed,
                            }  # fmt: skip
                            rows = [
                                {
                                    **{
                                        f"env{env}_{half}_acc": chosen.randrange(parts + 1) / parts
                                        for env in range(domains)
                                        for half in ("in", "out")
                                    },
                                    "step": step,
                                    "args": arguments,
                                }
                                for step in (0, 100, 200)
                            ]
                            yield rows[:2] + rows if chosen.random() < 0.1 else rows  # restarted


CLASSES = 3
STEPS = 20
TRAININGS: dict[str, dict[str, Any]] = {
    "everything": {"what_is_trainable": "all", "lp_steps": 0, "lr": 5e-5, "weight_decay": 1e-4},
    "probe": {"what_is_trainable": "classifier", "lp_steps": 0, "lr": 5e-5, "weight_decay": 0.0},
    "from an auxiliary featurizer": {
        "what_is_trainable": "all", "lp_steps": 7, "lr": 3e-5, "weight_decay": 1e-6,
    },
}  # fmt: skip


def resnet18(seed: int) -> Any:
    """A ResNet-18 from a seed that behaves like a trained one.

    Its batch-norm statistics are those of noise, the same for every seed, as in fine-tunings that leave them alone;
    its residual branches are small. (In a random network as torch makes it, Adam's first steps carry one rounding to
    the third digit of the loss within twenty steps, in torch itself from one memory format to another.)
    """
    import torch
    from torchvision.models.resnet import (  # not `torchvision.models.resnet18`, which is replaced
        BasicBlock,
        ResNet,
    )

    torch.manual_seed(0)
    network = ResNet(BasicBlock, [2, 2, 2, 2]).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    noise = np.random.RandomState(0).standard_normal((32, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        network(torch.from_numpy(noise))
        generator = torch.Generator().manual_seed(seed)
        for parameter in network.parameters():
            scale = float(parameter.std()) if parameter.ndim > 1 else 1.0
            parameter += 0.05 * seed * scale * torch.randn(parameter.shape, generator=generator)
        for name, parameter in network.named_parameters():
            if name.endswith("bn2.weight"):
                parameter *= 0.1
    return network.eval()


def twin(network: Any) -> Any:
    """An equal network that is trained without changing the first."""
    return copy.deepcopy(network)


def head() -> Any:
    """The classifier that training starts from."""
    import torch

    torch.manual_seed(3)
    return torch.nn.Linear(512, CLASSES)


def minibatches(step: int) -> list[tuple[Any, Any]]:
    """The images and labels of a step, for each of two training domains."""
    import torch

    chosen = np.random.RandomState(100 + step)
    batches = []
    for domain in range(2):
        labels = chosen.randint(0, CLASSES, 4)
        images = chosen.standard_normal((4, 3, 4, 4)) + 0.5 * labels[:, None, None, None] + 0.2 * domain
        images = images.repeat(8, 2).repeat(8, 3)
        batches.append((torch.from_numpy(images.astype(np.float32)), torch.from_numpy(labels)))
    return batches
