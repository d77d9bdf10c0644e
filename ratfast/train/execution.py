"""A whole recipe: data, probes, auxiliary and target fine-tunings, averages, summary."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ratfast import config, protocol
from ratfast.config import Recipe
from ratfast.errors import InputError
from ratfast.train import host, on_ray, records
from ratfast.train.agenda import Agenda
from ratfast.train.averages import forget_averages, read_averages
from ratfast.train.context import Context
from ratfast.train.failures import failure_of, record_failure
from ratfast.train.leakage import warn_of_shared_images
from ratfast.train.left_out import LEFT_OUT, write_left_out
from ratfast.train.lock import locked_output, refuse_if_locked
from ratfast.train.plan import Job, Plan, make_plan
from ratfast.train.progress import Display
from ratfast.train.remote import StoreError
from ratfast.train.settled import fetch_recipe, settled_recipe
from ratfast.train.shared import Shared
from ratfast.train.start import check_sources
from ratfast.train.state import is_done, read_run
from ratfast.train.store import Store, open_store
from ratfast.train.summary import TABLE, describe_protocol, summarise, write_table
from ratfast.train.tasks import Tasks
from ratfast.train.work import carry_out_and_keep, kernels
from ratfast.train.workers import Workers


def run(recipe: Recipe, console: Console | None = None) -> dict[str, Any]:
    """Carries out `recipe`; what an earlier, interrupted call finished is not done again.

    Args:
        recipe: what to do. With `train.workers` 1 everything happens in this process; with more, each training or
            average in one of so many processes; with `train.ray`, on a cluster.
        console: where progress is shown; standard error by default.

    Returns:
        The content of `summary.json`, as `ratfast.train.summary.summarise` describes it.

    Raises:
        InputError: the recipe, a data set or a checkpoint is wrong, or another command is writing there.
        UnfinishedError: trainings or averages failed; everything that does not need their tasks is done.
        StoreError: `output.store` could not be read or written; what is done is in the output folder.
    """
    recipe = config.validated(recipe)
    with Display(console) as display:
        if recipe.train.ray is None:
            return _run(recipe, display, None)
        with on_ray.connected(recipe.train.ray, recipe.train.workers) as ray:
            return _run(recipe, display, ray)


def _run(recipe: Recipe, display: Display, ray: Any) -> dict[str, Any]:
    """Carries it out here, or on the cluster that `ray`, the module, is connected to."""
    device = host.find_device("cpu" if ray else recipe.train.device)
    host.prepare(device, recipe.train.threads)
    store = open_store(recipe)
    if store.remote is None:
        refuse_if_locked(store.output, display.say)
        context, plan = _prepare(recipe, device, store, display)
        with locked_output(store.output, display.say) as lock:
            return _finish(plan, context, lock, ray)
    with locked_output(store.output, display.say) as lock, _held(store, display):
        fetch_recipe(recipe, store)
        store.fetch([LEFT_OUT])
        context, plan = _prepare(recipe, device, store, display)
        return _finish(plan, context, lock, ray)


@contextlib.contextmanager
def _held(store: Store, display: Display) -> Iterator[None]:
    """Holds the store. That it cannot be used at all is found out here."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(store.held(display.say))
        except StoreError as error:
            raise InputError(
                f"output.store: {error}, expected a place that exists and that your credentials may write to"
            ) from error
        yield


def _prepare(recipe: Recipe, device: torch.device, store: Store, display: Display) -> tuple[Context, Plan]:
    """Everything that can be found to be wrong before anything is trained."""
    tasks = Tasks(recipe, device, display)
    plan = make_plan(recipe, tasks.datasets, display.say)
    for dataset, test_env in sorted({(job.dataset, job.test_env) for job in plan.jobs}, key=str):
        tasks.check_split(dataset, test_env)
    if not all(is_done(job, store.output) for job in plan.jobs):
        check_sources(plan, recipe, display)
        warn_of_shared_images(tasks.datasets, recipe.data.target, plan.test_env)
        say_what_is_special(plan, recipe, display)
    return Context(recipe, tasks, device, _precision(recipe, device), store, display), plan


def _finish(plan: Plan, context: Context, lock: int, ray: Any) -> dict[str, Any]:
    """Carries out what is not done, and sums all of it up."""
    store, output = context.store, context.output
    with settled_recipe(context.recipe, store, plan):
        if context.tasks.left_out:
            write_left_out(output, context.tasks.left_out)
            store.keep([LEFT_OUT])
        store.fetch_done(plan.tasks)
        _look_at_what_is_done(plan, context)
        if not all(is_done(task, output) for task in plan.tasks):
            _carry_out(plan, context, lock, ray)
            store.fetch_done(plan.tasks)  # what other machines did, and what could not be put there before
        for sweep, jobs in plan.sweeps.items():
            for job in jobs:
                records.link(output / sweep / Path(job.name).name, output / job.name)
        summary = summarise(plan, context, read_averages(plan, output))
        write_table(plan, context, summary)
        records.write_json(output / records.SUMMARY, summary)
        _keep_summary(summary, store)
    return summary


def _keep_summary(summary: Mapping[str, Any], store: Store) -> None:
    """Puts the table and the summary into the store, and gets the weights that the summary names."""
    if store.read(records.SUMMARY) != (store.output / records.SUMMARY).read_text(encoding="utf-8"):
        store.keep_folder(TABLE)
        store.keep([records.SUMMARY])
    files = [member["checkpoint"] for member in summary["members"]]
    files += [file for row in summary["rows"] for file in row["files"]]
    store.fetch(sorted({Path(file).relative_to(store.output).as_posix() for file in files}))


def _precision(recipe: Recipe, device: torch.device) -> str:
    official = recipe.train.precision == "auto" and recipe.protocol.name == "official"
    return host.find_precision("float32" if official else recipe.train.precision, device)


def _look_at_what_is_done(plan: Plan, context: Context) -> None:
    """Shows what is done already, and takes away averages that are to be made again."""
    if not all(is_done(job, context.output) for job in plan.jobs):
        forget_averages(plan, context.store)
    for job in plan.jobs:
        if is_done(job, context.output):
            _check_run(job, context)
    context.display.expect(sum(job.steps for job in plan.jobs))
    for job in plan.jobs:
        if is_done(job, context.output):
            context.display.made(job.name, job.steps)
            context.display.say(f"{job.name}: already done")


def _carry_out(plan: Plan, context: Context, lock: int, ray: Any) -> None:
    """Carries out the tasks that are not done yet: on Ray, in workers, or in this process."""
    recipe, device, store = context.recipe, context.device, context.store
    datasets, threads = context.tasks.datasets, recipe.train.threads
    if ray:
        device = on_ray.device_of(ray, recipe.train.device)
        shared = Shared(recipe, datasets, str(device), _precision(recipe, device), threads or 1)
        on_ray.carry_out(ray, plan, shared, store, context.display)
        return
    workers = host.find_workers(recipe, device)
    if workers > 1:
        gpus = host.gpus_for_workers(device)
        threads = threads or host.share_of_processors(workers)
        shared = Shared(recipe, datasets, "cuda" if gpus else str(device), context.precision, threads)
        with Workers(workers, shared, gpus, lock, context.display) as several:
            several.carry_out(plan, store)
        return
    with kernels(recipe):
        _carry_out_here(plan, context)


def _carry_out_here(plan: Plan, context: Context) -> None:
    """Carries them out in this process, one by one.

    One that was given something wrong, such as a learning rate that its loss does not survive, holds up only those
    that need it. Before any training is done that ends the command instead: the recipe as a whole may be wrong.

    Raises:
        UnfinishedError: some failed, all others are done.
    """
    output = context.output
    agenda = Agenda(plan, lambda task: is_done(task, output), retries=0)
    while (task := agenda.next()) is not None:
        try:
            carry_out_and_keep(task, context)
        except InputError as error:
            if not any(is_done(job, output) for job in plan.jobs):
                raise
            failure = failure_of(error)
            context.display.end(task.name)
            context.display.say(f"{task.name}: {failure.sentence}; given up")
            record_failure(task, failure, context.store)
            agenda.failed(task, failure)
        else:
            agenda.done(task)
    agenda.close()


def _check_run(job: Job, context: Context) -> None:
    """Raises InputError if a finished run started from something else than it would now, or its weights are gone."""
    if context.store.remote is None and not (context.output / job.name / records.CHECKPOINT).is_file():
        raise InputError(
            f"the weights of {job.name} are not in the output folder {context.output}, expected --store with the one "
            "that they were kept in"
        )
    started = read_run(job, context.output)["initialisation"]
    if started != job.source:
        raise InputError(
            f"{context.output / job.name} started from {started}, and would now from {job.source}: the auxiliary "
            "weights or their order have changed, expected the same or another --output"
        )


def say_what_is_special(plan: Plan, recipe: Recipe, display: Display) -> None:
    """Prints the protocol's switches, and which auxiliary runs no target run starts from."""
    display.say(describe_protocol(recipe))
    unused = protocol.unused_auxiliary(
        recipe.train.runs, {source.name: len(source.runs) for source in plan.sources}
    )
    if unused and "target" in plan.sweeps:
        listed = ", ".join(f"{count} of {name}" for name, count in unused.items())
        display.say(f"auxiliary runs that no run starts from, with train.runs {recipe.train.runs}: {listed}")
