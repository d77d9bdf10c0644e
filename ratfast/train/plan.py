"""What a recipe amounts to: every training, in order, with its seeds and where it starts from.

A plan is pure data. It is the same every time for the same recipe and data sets, which is what lets an interrupted
command find what it has already done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ratfast import protocol
from ratfast.config import Recipe
from ratfast.data import DomainDataset

PRETRAINED = "pre-trained"


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        stage: `"probe"` (linear probe), `"auxiliary"` or `"target"` (fine-tunings).
        name: the run's folder below the output folder, such as `"target/trial0/run03"`.
        dataset: the data set trained on.
        test_env: index of the domain held out entirely; None trains on all domains.
        trial_seed: seeds the split of every domain into train and validation images.
        hparams_seed: seeds the draw of learning rate, weight decay and dropout; 0 draws the defaults.
        probe: name of the probe whose head it starts from; None for a new head.
        source: what its featurizer starts from: `PRETRAINED`, the name of an auxiliary job, or a file.
        probe_steps: updates of the head alone at the beginning.
        steps: updates in all.
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

    @property
    def run_seed(self) -> int:
        """DomainBed's seed of this run: of the new head, the batches and dropout."""
        test_env = -1 if self.test_env is None else self.test_env
        return protocol.run_seed(self.dataset, test_env, self.hparams_seed, self.trial_seed)


@dataclass(frozen=True)
class Plan:
    """All trainings of a recipe, in an order in which each finds what it starts from.

    Attributes:
        jobs: the trainings.
        test_env: index of the target's held-out domain.
    """

    jobs: tuple[Job, ...]
    test_env: int

    def members(self, trial_seed: int) -> list[Job]:
        """The target fine-tunings of one trial, the ones that are averaged."""
        return [job for job in self.jobs if job.stage == "target" and job.trial_seed == trial_seed]

    @property
    def trial_seeds(self) -> list[int]:
        """Every trial that has members, ascending."""
        return sorted({job.trial_seed for job in self.jobs if job.stage == "target"})


def find_test_env(target: DomainDataset, test_env: int | str) -> int:
    """Index of the held-out domain of `target`, given by index or name.

    Raises:
        InputError: there is no such domain, or none is left to train on.
    """
    target.require_several_domains()
    return target.domain_index(test_env)


def _probe_steps(recipe: Recipe) -> int:
    """Updates of the head alone at the start of a run from auxiliary weights; at least one update is left."""
    steps = recipe.train.steps
    asked = recipe.train.probe_steps
    return min(protocol.probe_steps(steps) if asked is None else asked, steps - 1)


def evaluation_interval(recipe: Recipe, dataset: str) -> int:
    """Updates between evaluations: the protocol's for the data set, or ten in a run too short for that."""
    if recipe.train.eval_every is not None:
        return recipe.train.eval_every
    return min(protocol.evaluation_interval(dataset), max(1, recipe.train.steps // 10))


def make_plan(recipe: Recipe, datasets: Mapping[str, DomainDataset]) -> Plan:
    """Lists the trainings of `recipe`.

    The target's fine-tunings start in turn from the pre-trained weights and from each auxiliary source, as
    `ratfast.protocol.auxiliary` assigns them.

    Args:
        recipe: what to do.
        datasets: by name, the target and all auxiliary data sets.

    Raises:
        InputError: the held-out domain does not exist.
    """
    train, target = recipe.train, recipe.data.target
    test_env = find_test_env(datasets[target], recipe.data.test_env)
    head_steps = train.steps if train.head_steps is None else train.head_steps
    first_seed = train.seed

    def probe(dataset: str, held_out: int | None) -> Job:
        # One probe serves every trial, as in the official release.
        return Job(
            stage="probe",
            name=f"probe/{dataset}",
            dataset=dataset,
            test_env=held_out,
            trial_seed=first_seed,
            hparams_seed=0,
            probe=None,
            source=PRETRAINED,
            probe_steps=head_steps,
            steps=head_steps,
        )

    def auxiliary(dataset: str, run: int) -> Job:
        return Job(
            stage="auxiliary",
            name=f"auxiliary/{dataset}/run{run:02}",
            dataset=dataset,
            test_env=None,
            trial_seed=first_seed,
            hparams_seed=run,
            probe=f"probe/{dataset}",
            source=PRETRAINED,
            probe_steps=0,
            steps=train.steps,
        )

    def member(trial_seed: int, run: int) -> Job:
        source, probe_steps = PRETRAINED, 0
        chosen, sub_run = protocol.auxiliary(run, sources, train.aux_runs)
        if chosen is not None:
            source = auxiliary(chosen, sub_run).name if chosen in recipe.data.aux else chosen
            probe_steps = _probe_steps(recipe)
        return Job(
            stage="target",
            name=f"target/trial{trial_seed}/run{run:02}",
            dataset=target,
            test_env=test_env,
            trial_seed=trial_seed,
            hparams_seed=run,
            probe=f"probe/{target}",
            source=source,
            probe_steps=probe_steps,
            steps=train.steps,
        )

    sources = [*recipe.data.aux, *recipe.model.aux_weights]
    trial_seeds = range(first_seed, first_seed + train.trials)
    jobs = [probe(dataset, None) for dataset in recipe.data.aux]
    jobs += [auxiliary(dataset, run) for dataset in recipe.data.aux for run in range(train.aux_runs)]
    jobs.append(probe(target, test_env))
    jobs += [member(trial_seed, run) for trial_seed in trial_seeds for run in range(train.runs)]
    return Plan(tuple(jobs), test_env)
