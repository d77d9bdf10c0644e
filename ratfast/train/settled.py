"""The recipe of an output folder: all that is carried out there is of one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ratfast import config
from ratfast.config import Recipe
from ratfast.errors import InputError
from ratfast.train import records
from ratfast.train.failures import forget_failure
from ratfast.train.plan import Plan
from ratfast.train.remote import StoreError
from ratfast.train.state import failure_file, is_done
from ratfast.train.store import Store

# What may differ between the command that began a recipe and the one that continues it: where and with what it is
# carried out, not what.
_FREE_KEYS = (
    "output.dir",
    "output.store",
    "data.dir",
    "data.decode_threads",
    "data.train_cache_gib",
    "data.eval_cache_gib",
    "data.eval_cache_device_gib",
    "train.threads",
    "train.device",
    "train.workers",
    "train.retries",
    "train.ray",
    "train.snapshot_seconds",
    "train.cuda_graph",
)


def require_same_recipe(found: Recipe, recipe: Recipe, place: str, option: str) -> None:
    """Raises InputError if runs of one recipe cannot be continued with another.

    Args:
        found: that of the runs.
        recipe: the other.
        place: where the runs are, for the error.
        option: the flag that names the place.
    """
    changed = [key for key in config.differences(found, recipe) if key not in _FREE_KEYS]
    if changed:
        raise InputError(
            f"{place} holds runs of another recipe (differing in {', '.join(changed)}), expected the same recipe or "
            f"another {option}"
        )


def settle_recipe(recipe: Recipe, output: Path) -> bool:
    """Writes the recipe into a new output folder and returns True; in one with runs, checks that it is the same.

    Raises:
        InputError: it is not.
    """
    path = output / records.RECIPE
    if path.is_file() and _has_runs(path.name for path in output.rglob("*")):
        require_same_recipe(config.load(path), recipe, f"the output folder {output}", "--output")
        return False
    output.mkdir(parents=True, exist_ok=True)
    records.write_text(path, recipe.to_toml())
    return True


def fetch_recipe(recipe: Recipe, store: Store) -> None:
    """Gets the recipe that a store holds runs of, if there is one.

    Raises:
        InputError: it is another one.
    """
    text = store.read(records.RECIPE)
    if text is None:
        return
    if not _has_runs(store.remote.sizes()):  # of a command that was killed early
        store.forget([records.RECIPE])
        return
    source = f"{store.remote.url}/{records.RECIPE}"
    found = config.from_values(config.parse_toml(text, source), source)
    require_same_recipe(found, recipe, str(store), "--store")
    store.fetch([records.RECIPE])


def _has_runs(names: Iterable[str]) -> bool:
    """Whether a run has been finished, or begun and left a state, by the names of files."""
    return any(Path(name).name == records.DONE or name.endswith(records.SNAPSHOT_SUFFIX) for name in names)


@contextlib.contextmanager
def settled_recipe(recipe: Recipe, store: Store, plan: Plan) -> Iterator[None]:
    """Holds an output folder and a store to a recipe while it is carried out.

    A recipe that fails before any of its runs is done is taken away again, so that a corrected one finds both as new.
    """
    output = store.output
    is_new = settle_recipe(recipe, output)
    if store.read(records.RECIPE) is None:
        store.keep([records.RECIPE])
    else:
        is_new = False  # runs of the recipe are in the store, if not here
    try:
        yield
    except BaseException:
        if is_new and not any(is_done(job, output) for job in plan.jobs):
            (output / records.RECIPE).unlink(missing_ok=True)
            for task in plan.tasks:
                forget_failure(task, output)
            with contextlib.suppress(StoreError):
                failures = [failure_file(task, Path()).as_posix() for task in plan.tasks]
                store.forget([records.RECIPE, *failures])
        raise
