"""DomainBed's and ModelRatatouille's splits, hyperparameter draws, seeds and assignments, to the bit.

Sources: facebookresearch/DomainBed (`lib/misc.py`, `hparams_registry.py`, `scripts/sweep.py`) and
facebookresearch/ModelRatatouille (the same files), the code behind arXiv 2007.01434 and arXiv 2212.10445.
The numbers of the protocol stand here and nowhere else, those of single data sets in `ratfast.catalogue`. Needs
numpy only.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ratfast import catalogue
from ratfast.errors import InputError

ALGORITHM = "ERM"
"""The training algorithm of every run; a part of the run's seed."""

HOLDOUT_FRACTION = 0.2
"""Share of each domain that is held out for validation (the out-split)."""

STEPS = catalogue.DEFAULT_STEPS
"""Optimizer steps of a run: DomainBed counts from 0 to 5000 inclusive."""

PROBE_STEPS = 200
"""The hyperparameter `lp_steps`: the head alone is trained up to and with the step of this number."""

PROBE_SEED = 0
"""Seed of a linear probe that a sweep shares, whatever the sweep (the default of `--seed`)."""

RUNS = 20
"""Fine-tunings per trial: hyperparameter seeds 0 to 19."""

TRIALS = 3
"""Trials, each with its own splits and its own hyperparameter draws."""

RUNS_PER_SOURCE = 4
"""Auxiliary fine-tunings per auxiliary dataset: hyperparameter seeds 0 to 3 of trial 0."""

FUSING_RANGE = 4.0
"""Range of the uniform draw whose exponential gives the fusing coefficients (`--fusing_range`)."""

BATCH_SIZE = 32
"""Images per training domain and step."""


def seed_hash(*args: Any) -> int:
    """Derive a seed from anything printable: DomainBed's `misc.seed_hash`.

    Args:
        *args: what the seed depends on. The hash is taken of `str(args)`, so 1 and 1.0 differ, and numpy
            scalars differ from Python numbers.

    Returns:
        An integer in [0, 2**31).
    """
    return int(hashlib.md5(str(args).encode("utf-8")).hexdigest(), 16) % (2**31)


def split(
    n: int, holdout_fraction: float = HOLDOUT_FRACTION, trial_seed: int = 0, env: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Split the samples of a domain into training and validation: DomainBed's `misc.split_dataset`.

    Args:
        n: number of samples in the domain.
        holdout_fraction: share held out, in [0, 1); the number held out is rounded down.
        trial_seed: the trial.
        env: index of the domain within the dataset.

    Returns:
        `(in_indices, out_indices)`, int64 arrays in DomainBed's order; the out-split comes first in the
        shuffle.

    Raises:
        InputError: `n` is negative or the fraction is outside [0, 1).
    """
    if n < 0:
        raise InputError(f"the number of samples to split must not be negative, but it is {n}")
    if not 0 <= holdout_fraction < 1:
        raise InputError(f"holdout_fraction must be in [0, 1), but it is {holdout_fraction}")
    keys = list(range(n))
    np.random.RandomState(seed_hash(int(trial_seed), int(env))).shuffle(keys)
    order = np.array(keys, dtype=np.int64)
    held_out = int(n * holdout_fraction)
    return order[held_out:], order[:held_out]


def hparams(hparams_seed: int, trial_seed: int = 0) -> dict[str, Any]:
    """Draw the hyperparameters of a run: ModelRatatouille's `hparams_registry`.

    The draws do not depend on the dataset or the held-out domain. Seed 0 is the default, the same in every
    trial, and has no weight decay and no dropout.

    Args:
        hparams_seed: number of the run within the trial (0 to 19 in the paper).
        trial_seed: the trial.

    Returns:
        `lr`, `weight_decay` (L2 of Adam), `resnet_dropout`, `batch_size` (images per training domain),
        `lp_steps` and `data_augmentation`, as Python numbers.

    Raises:
        InputError: a seed is negative.
    """
    if hparams_seed < 0 or trial_seed < 0:
        raise InputError(f"seeds must not be negative, but they are {hparams_seed} and {trial_seed}")
    fixed = {"data_augmentation": True, "batch_size": BATCH_SIZE, "lp_steps": PROBE_STEPS}
    if hparams_seed == 0:
        return fixed | {"lr": 5e-5, "weight_decay": 0.0, "resnet_dropout": 0.0}
    seed = seed_hash(int(hparams_seed), int(trial_seed))

    def choice(name: str, values: Sequence[float]) -> float:
        return float(np.random.RandomState(seed_hash(seed, name)).choice(values))

    return fixed | {
        "lr": choice("lr", [1e-5, 3e-5, 5e-5]),
        "weight_decay": choice("weight_decay", [1e-4, 1e-6]),
        "resnet_dropout": choice("resnet_dropout", [0.0, 0.1, 0.5]),
    }


def run_seed(dataset: str, test_env: int, hparams_seed: int, trial_seed: int = 0) -> int:
    """Seed of everything else in a run: DomainBed's `scripts/sweep.py`.

    Args:
        dataset: name of the dataset.
        test_env: index of the held-out domain; -1 for an auxiliary run, which holds out none.
        hparams_seed: number of the run within the trial.
        trial_seed: the trial.

    Returns:
        An integer in [0, 2**31).
    """
    return seed_hash(str(dataset), ALGORITHM, [int(test_env)], int(hparams_seed), int(trial_seed))


def auxiliary_sources(target: str, datasets: Iterable[str]) -> list[str]:
    """Auxiliary datasets for a target, in the order the assignment counts them.

    As in the official code, a dataset is left out where its name starts with the target's.

    Args:
        target: name of the target dataset.
        datasets: names of the datasets at hand.

    Returns:
        The names, sorted.
    """
    return sorted(name for name in datasets if not name.startswith(target))


def auxiliary(
    hparams_seed: int, sources: Sequence[str], runs_per_source: int | Mapping[str, int] = RUNS_PER_SOURCE
) -> tuple[str | None, int]:
    """Say from which auxiliary fine-tuning a run starts: ModelRatatouille's `misc.get_featurizer_aux`.

    With 4 sources of 4 runs each, 20 runs use each of the 16 auxiliary fine-tunings once and the pre-trained
    weights 4 times. The official code numbers the runs of a source by the md5 of their arguments, paths
    included (`run_folder`); here they are just numbers.

    Args:
        hparams_seed: number of the run within the trial.
        sources: names of the auxiliary datasets; counted in sorted order.
        runs_per_source: fine-tunings per auxiliary dataset, or for each dataset how many.

    Returns:
        `(source, run)`: the auxiliary dataset and the number of the run on it, or `(None, 0)` for the
        pre-trained weights.

    Raises:
        InputError: the seed is negative, or there are no runs per source.
    """
    if hparams_seed < 0:
        raise InputError(f"hparams_seed must not be negative, but it is {hparams_seed}")
    position = hparams_seed % (len(sources) + 1)
    source = None if position == 0 else sorted(sources)[position - 1]
    runs = runs_per_source
    if isinstance(runs, Mapping):
        runs = 1 if source is None else runs.get(source, 0)
    if runs < 1:
        raise InputError(f"runs_per_source must be at least 1, but it is {runs}")
    return (None, 0) if source is None else (source, hparams_seed % runs)


def unused_auxiliary(runs: int, runs_per_source: Mapping[str, int]) -> dict[str, int]:
    """How many auxiliary fine-tunings of each source no run starts from; sources of which all are used are left out.

    Where the number of runs of a source and the number of sources plus one have a common divisor, or where there are
    few runs, the rule of `auxiliary` skips some.

    Args:
        runs: fine-tunings on the target in a trial.
        runs_per_source: auxiliary fine-tunings of each source.
    """
    names = list(runs_per_source)
    used = {auxiliary(run, names, runs_per_source) for run in range(runs)}
    left = {
        name: count - sum(source == name for source, _ in used) for name, count in runs_per_source.items()
    }
    return {name: count for name, count in left.items() if count}


def run_arguments(
    dataset: str,
    test_env: int,
    hparams_seed: int,
    trial_seed: int,
    *,
    data_dir: str = "",
    path_init: str = "",
    aux_dir: str = "",
    fusing_range: float = -1,
) -> dict[str, Any]:
    """The arguments that ModelRatatouille's `scripts/sweep.py` gives a run.

    Args:
        dataset: name of the dataset.
        test_env: index of the held-out domain; -1 for an auxiliary run.
        hparams_seed: number of the run within the trial.
        trial_seed: the trial.
        data_dir: folder of the datasets.
        path_init: file of the network with the probed head; empty for a new head.
        aux_dir: folder of the auxiliary runs, or "none".
        fusing_range: range of the fusing draw; negative to start from one auxiliary run only.
    """
    return {
        "trial_seed": int(trial_seed),
        "path_init": path_init,
        "dataset": dataset,
        "algorithm": ALGORITHM,
        "test_envs": [int(test_env)],
        "hparams_seed": int(hparams_seed),
        "data_dir": data_dir,
        "aux_dir": aux_dir,
        "fusing_range": fusing_range,
        "seed": run_seed(dataset, test_env, hparams_seed, trial_seed),
    }


def run_folder(arguments: Mapping[str, Any]) -> str:
    """Name of the folder of a run in DomainBed's sweeps: the md5 of its arguments (`run_arguments`)."""
    return hashlib.md5(json.dumps(dict(arguments), sort_keys=True).encode("utf-8")).hexdigest()


def fusing_coefficients(seed: int, count: int, fusing_range: float = FUSING_RANGE) -> list[float]:
    """Coefficients of the interpolation between several initialisations (fusing).

    `exp(range * u_i) / sum_j exp(range * u_j)` with `u` uniform on [0, 1), from Python's generator seeded
    with the run's seed.

    Args:
        seed: the run's seed (`run_seed`).
        count: number of initialisations; the first is the pre-trained weights.
        fusing_range: range of the draw.

    Returns:
        `count` positive numbers that sum to 1.
    """
    generator = random.Random(seed)
    weights = [math.exp(fusing_range * generator.random()) for _ in range(count)]
    total = sum(weights)
    return [weight / total for weight in weights]


def selection_score(accuracies: Sequence[float]) -> float:
    """The mean that runs and steps are chosen by: numpy's, as in DomainBed.

    Adding up in another order or with less rounding makes different means of accuracies whose means are equal, and
    the other way round, so that of two runs that are as good another one would be chosen.

    Args:
        accuracies: on the training domains' out-splits, in the order of the domains; at least one.
    """
    return float(np.mean(list(accuracies)))


def training_steps(dataset: str) -> int:
    """Optimizer steps of a full run on a data set, by its name in the catalogue or any other."""
    entry = catalogue.find(dataset)
    return entry.steps if entry else catalogue.DEFAULT_STEPS


def evaluation_interval(dataset: str) -> int:
    """Steps between evaluations of a full run on a data set, by its name in the catalogue or any other."""
    entry = catalogue.find(dataset)
    return entry.interval if entry else catalogue.DEFAULT_INTERVAL


def probe_steps(steps: int, full: int = STEPS) -> int:
    """Updates of the head alone at the start of a run of `steps` updates from an auxiliary featurizer.

    The official code compares the number of updates already made with `lp_steps` after an update, so that its 200
    are 201 updates. A shorter run has its share of that.

    Args:
        steps: optimizer steps of the run.
        full: optimizer steps of the full run that a probe of 201 updates belongs to.

    Returns:
        `(PROBE_STEPS + 1) * steps / full` rounded, at least 1 and at most 201.

    Raises:
        InputError: `steps` is below 1.
    """
    if steps < 1:
        raise InputError(f"a run must have at least 1 step, but it has {steps}")
    updates = PROBE_STEPS + 1
    return max(1, min(updates, round(updates * steps / full)))
