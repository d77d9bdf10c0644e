"""What a recipe amounts to: every training with its seeds and where it starts from, and every average of them.

A plan is pure data, free of torch. It is the same every time for the same recipe and data sets, which is what lets an
interrupted command find what it has already done. Which task needs which others done is in `Plan.prerequisites`: what
follows from it, an order or several at a time, is for whoever carries the plan out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ratfast import catalogue, protocol
from ratfast.config import Recipe
from ratfast.data import DomainDataset, scan
from ratfast.errors import InputError
from ratfast.train import records
from ratfast.train.rows import SWEEPS, along_names, row_names
from ratfast.train.sources import Source, given_sources, same_data

PRETRAINED = "pre-trained"
FUSED = "fused"


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        stage: `"probe"` (linear probe), `"auxiliary"`, or the sweep on the target: `"target"`, `"plain"`, `"vanilla"`,
            `"fusing"`.
        name: the run's folder below the output folder, such as `"target/trial0-run03"`.
        dataset: the data set trained on.
        test_env: index of the domain held out entirely; None trains on all domains.
        trial_seed: seeds the split of every domain into train and validation images.
        hparams_seed: seeds the draw of learning rate, weight decay and dropout; 0 draws the defaults.
        probe: name of the probe whose head it starts from; None for a new head.
        source: what its featurizer starts from: `PRETRAINED`, the name of an auxiliary job, a file, or `FUSED`.
        probe_steps: updates of the head alone at the beginning.
        steps: updates in all.
        fused: sources and their coefficients, where the start is their interpolation.
        along: averages along the run that are kept: names of `ratfast.train.rows.ALONG`.
    """

    stage: str
    name: str
    dataset: str
    test_env: int | None
    trial_seed: int
    hparams_seed: int
    probe: str | None
    source: str
    probe_steps: int
    steps: int
    fused: tuple[tuple[str, float], ...] = ()
    along: tuple[str, ...] = ()

    @property
    def run_seed(self) -> int:
        """DomainBed's seed of this run: of the new head, the batches and dropout."""
        if self.stage == "probe":
            return protocol.PROBE_SEED
        test_env = -1 if self.test_env is None else self.test_env
        return protocol.run_seed(self.dataset, test_env, self.hparams_seed, self.trial_seed)

    @property
    def start(self) -> str:
        """What a person reads of where it starts from."""
        if self.stage == "vanilla":
            return f"{self.source}, new head"
        return self.source

    @property
    def starts(self) -> frozenset[str]:
        """All that it starts from: names of other trainings, files, `PRETRAINED`."""
        named = {self.source, *(source for source, _ in self.fused), *([self.probe] if self.probe else [])}
        return frozenset(named - {FUSED})


@dataclass(frozen=True)
class Average:
    """One average of members.

    Attributes:
        method: what it is called in the summary, such as `"uniform"`, `"soup-greedy_trial1"`, `"dagger"`.
        greedy: members are chosen by validation accuracy; otherwise all are averaged.
        members: the trainings.
    """

    method: str
    greedy: bool
    members: tuple[Job, ...]

    @property
    def name(self) -> str:
        """Its files below the output folder, without their suffixes."""
        return f"averages/{self.method}"

    @property
    def starts(self) -> frozenset[str]:
        """The names of the trainings that it is of."""
        return frozenset(job.name for job in self.members)


Task: TypeAlias = Job | Average


@dataclass(frozen=True)
class Plan:
    """All trainings of a recipe and the averages of them, in an order in which each finds what it starts from.

    Attributes:
        jobs: the trainings.
        averages: the averages that are made in the end.
        test_env: index of the target's held-out domain.
        sweeps: by name, the runs of each sweep on the target in order; sweeps may share runs.
        sources: the auxiliary sources.
    """

    jobs: tuple[Job, ...]
    averages: tuple[Average, ...]
    test_env: int
    sweeps: Mapping[str, tuple[Job, ...]]
    sources: tuple[Source, ...]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Everything that is to be done, in order."""
        return (*self.jobs, *self.averages)

    def prerequisites(self) -> dict[str, frozenset[str]]:
        """By the name of each task, the tasks that must be done before it: a graph without cycles."""
        names = {task.name for task in self.tasks}
        return {task.name: task.starts & names for task in self.tasks}

    def members(self, trial_seed: int, sweep: str = "target") -> list[Job]:
        """The fine-tunings of one trial of a sweep, the ones that are averaged."""
        return [job for job in self.sweeps[sweep] if job.trial_seed == trial_seed]

    @property
    def trial_seeds(self) -> list[int]:
        """Every trial that has members, ascending."""
        return sorted({job.trial_seed for jobs in self.sweeps.values() for job in jobs})


def scan_datasets(recipe: Recipe) -> dict[str, DomainDataset]:
    """The target and the auxiliary data sets of a recipe by name, as their folders are.

    Raises:
        InputError: a folder is missing or of the wrong form.
    """
    return {
        name: scan(catalogue.find_folder(recipe.data.dir, name), name)
        for name in [recipe.data.target, *recipe.data.aux]
    }


def find_test_env(target: DomainDataset, test_env: int | str) -> int:
    """Index of the held-out domain of `target`, given by index or name.

    Raises:
        InputError: there is no such domain, or none is left to train on.
    """
    target.require_several_domains()
    return target.domain_index(test_env)


def training_steps(recipe: Recipe, dataset: str) -> int:
    """Updates of a fine-tuning on a data set."""
    return recipe.train.steps or protocol.training_steps(dataset)


def _probe_steps(recipe: Recipe, steps: int) -> int:
    """Updates of the head alone at the start of a run from auxiliary weights; at least one update is left."""
    asked = recipe.train.probe_steps
    return min(protocol.probe_steps(steps) if asked is None else asked, steps - 1)


def evaluation_interval(recipe: Recipe, dataset: str) -> int:
    """Updates between evaluations: the protocol's for the data set, or ten in a run too short for that."""
    if recipe.train.eval_every is not None:
        return recipe.train.eval_every
    return min(protocol.evaluation_interval(dataset), max(1, training_steps(recipe, dataset) // 10))


def run_arguments(recipe: Recipe, job: Job) -> dict[str, Any]:
    """The arguments of a run as DomainBed records them, with the folders of this recipe."""
    path_init = str(Path(recipe.output.dir) / job.probe / records.CHECKPOINT) if job.probe else ""
    aux_dir = {"target": "auxiliary", "fusing": "auxiliary", "plain": "none", "vanilla": "none"}.get(
        job.stage
    )
    return protocol.run_arguments(
        job.dataset,
        -1 if job.test_env is None else job.test_env,
        job.hparams_seed,
        job.trial_seed,
        data_dir=recipe.data.dir or "",
        path_init=path_init,
        aux_dir="" if aux_dir is None else aux_dir,
        fusing_range=protocol.FUSING_RANGE if job.stage == "fusing" else -1,
    )


def make_plan(recipe: Recipe, datasets: Mapping[str, DomainDataset], say: Any = lambda line: None) -> Plan:
    """Lists the trainings of `recipe`.

    The target's fine-tunings start in turn from the pre-trained weights and from each auxiliary source, as
    `ratfast.protocol.auxiliary` assigns them. A run that starts from the pre-trained weights and a probed head is the
    same in the sweeps with and without auxiliary weights, and is trained once.

    Args:
        recipe: what to do.
        datasets: by name, the target and all auxiliary data sets.
        say: told what is passed over.

    Raises:
        InputError: the held-out domain does not exist, an auxiliary data set is the target, or a row has nothing to
            start from.
    """
    train, target = recipe.train, recipe.data.target
    for name in recipe.data.aux:
        if same_data(name, target):
            raise InputError(
                f"data.aux names {name!r}, which by its name is the target {target}, expected other data sets: "
                "auxiliary trainings see every domain, the held-out one too"
            )
    test_env = find_test_env(datasets[target], recipe.data.test_env)
    rows = row_names(recipe.train.rows)
    sweeps = {name for row in rows for name in SWEEPS[row]}
    with_auxiliary = bool(sweeps & {"target", "fusing"})
    trained = recipe.data.aux if with_auxiliary else ()

    jobs = [_probe(recipe, dataset, None) for dataset in trained]
    auxiliary = {
        dataset: [_auxiliary(recipe, dataset, run) for run in range(train.aux_runs)] for dataset in trained
    }
    jobs += [job for runs in auxiliary.values() for job in runs]
    by_seed = recipe.protocol.settled().auxiliary_order == "seed"
    sources = [_trained_source(recipe, name, runs, by_seed) for name, runs in auxiliary.items()]
    if with_auxiliary:
        sources += given_sources(recipe.model.aux_weights, target, by_seed, say)
    if "fusing" in sweeps and not sources:
        raise InputError(
            "train.rows names fusing, which interpolates auxiliary weights, expected data.aux or model.aux_weights"
        )
    if sweeps - {"vanilla"}:
        jobs.append(_probe(recipe, target, test_env))
    found: dict[str, list[Job]] = {name: [] for name in sorted(sweeps)}
    for trial_seed in range(train.seed, train.seed + train.trials):
        for run in range(train.runs):
            for sweep in found:
                found[sweep].append(_member(recipe, sweep, test_env, trial_seed, run, sources))
    unique = {job.name: job for name in _SWEEP_ORDER if name in found for job in found[name]}
    jobs += unique.values()
    found = {name: [unique[job.name] for job in found[name]] for name in found}
    return Plan(
        tuple(jobs),
        tuple(_averages(rows, found)),
        test_env,
        {name: tuple(runs) for name, runs in found.items()},
        tuple(sources),
    )


_SWEEP_ORDER = ("vanilla", "target", "fusing", "plain")
_AVERAGED_ROWS = {"ratatouille": ("target", ""), "soups": ("plain", "soup-")}


def average_key(name: str, trial_seed: int, trials: int) -> str:
    """What an average of one trial is called."""
    return f"{name}_trial{trial_seed}" if trials > 1 else name


def _averages(rows: Sequence[str], sweeps: Mapping[str, Sequence[Job]]) -> Iterator[Average]:
    """The averages of the members of every trial.

    With one trial the methods are `uniform` and `greedy`, and `soup-uniform` and `soup-greedy` without auxiliary
    weights; with more, each trial has its own (`uniform_trial1`) and `dagger` averages the members of all trials, as
    in the paper. Its `val` is that on the first trial's splits, of which the members of other trials have trained on
    parts.
    """
    for row in rows:
        if row not in _AVERAGED_ROWS:
            continue
        sweep, prefix = _AVERAGED_ROWS[row]
        trials = sorted({job.trial_seed for job in sweeps[sweep]})
        for trial_seed in trials:
            members = tuple(job for job in sweeps[sweep] if job.trial_seed == trial_seed)
            for name in ("uniform", "greedy"):
                yield Average(average_key(prefix + name, trial_seed, len(trials)), name == "greedy", members)
        if len(trials) > 1:
            yield Average(prefix + "dagger", False, tuple(sweeps[sweep]))


def _probe(recipe: Recipe, dataset: str, held_out: int | None) -> Job:
    # One probe serves every trial, as in the official release.
    steps = recipe.train.head_steps or training_steps(recipe, dataset)
    return Job(
        stage="probe",
        name=f"probe/{dataset}",
        dataset=dataset,
        test_env=held_out,
        trial_seed=recipe.train.seed,
        hparams_seed=0,
        probe=None,
        source=PRETRAINED,
        probe_steps=steps,
        steps=steps,
    )


def _auxiliary(recipe: Recipe, dataset: str, run: int) -> Job:
    return Job(
        stage="auxiliary",
        name=f"auxiliary/{dataset}/run{run:02}",
        dataset=dataset,
        test_env=None,
        trial_seed=recipe.train.seed,
        hparams_seed=run,
        probe=f"probe/{dataset}",
        source=PRETRAINED,
        probe_steps=0,
        steps=training_steps(recipe, dataset),
    )


def _trained_source(recipe: Recipe, dataset: str, runs: Sequence[Job], by_seed: bool) -> Source:
    if not by_seed:
        runs = sorted(runs, key=lambda job: protocol.run_folder(run_arguments(recipe, job)))
    return Source(dataset, tuple(job.name for job in runs), dataset)


def _member(
    recipe: Recipe, sweep: str, test_env: int, trial_seed: int, run: int, sources: Sequence[Source]
) -> Job:
    """A run of a sweep on the target."""
    target = recipe.data.target
    steps = training_steps(recipe, target)
    runs = {source.name: source.runs for source in sources}
    counts = {name: len(found) for name, found in runs.items()}
    name, number = protocol.auxiliary(run, list(runs), counts)
    source, probe_steps, fused, along = PRETRAINED, 0, (), ()
    if sweep == "fusing":
        starts = [PRETRAINED, *(runs[name][run % counts[name]] for name in sorted(runs))]
        seed = protocol.run_seed(target, test_env, run, trial_seed)
        fused = tuple(zip(starts, protocol.fusing_coefficients(seed, len(starts)), strict=True))
        source, probe_steps = FUSED, _probe_steps(recipe, steps)
    elif sweep == "target" and name is not None:
        source, probe_steps = runs[name][number], _probe_steps(recipe, steps)
    elif sweep in ("target", "plain"):
        along = along_names(recipe.train.rows)
        if name is None:
            sweep = "target"  # the run is in both sweeps
    return Job(
        stage=sweep,
        name=f"{sweep}/trial{trial_seed}-run{run:02}",
        dataset=target,
        test_env=test_env,
        trial_seed=trial_seed,
        hparams_seed=run,
        probe=None if sweep == "vanilla" else f"probe/{target}",
        source=source,
        probe_steps=probe_steps,
        steps=steps,
        fused=fused,
        along=along,
    )
