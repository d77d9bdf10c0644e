"""A plan carried out on a Ray cluster: the machines share the output folder, or a store, and Ray shares out the tasks.

Ray starts a task when those it needs are done, on any machine with a free GPU (or processors, where there is none).
When its process or its machine is lost, or it failed, Ray starts it again, elsewhere if need be, and the training goes
on from its last state in the output folder, or in the store, if there is one: each machine then has an output folder
of its own, under the same name. What is Ray's part is left to it: nothing here schedules.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ratfast.config import Recipe
from ratfast.errors import InputError
from ratfast.train.failures import Failure, failure_of, record_failure, unfinished
from ratfast.train.lock import PATIENCE_SECONDS, Holder
from ratfast.train.plan import Job, Plan, Task
from ratfast.train.progress import Display
from ratfast.train.remote import StoreError
from ratfast.train.settled import settle_recipe
from ratfast.train.shared import Shared
from ratfast.train.state import is_done
from ratfast.train.store import Store, open_store
from ratfast.train.worker import Event, RelayedView

if TYPE_CHECKING:
    from ratfast.train.context import Context

LOCAL = "local"
"""The address of a cluster of this machine alone, started for the command."""

FOLDER = "RATFAST_FOLDER"
"""Environment variable of a machine of the cluster: the folder that relative names refer to there, where it is not the
working directory of the command."""

_CONNECT_SECONDS = 10.0
_POLL_SECONDS = 0.5
_POST_SECONDS = 10.0


@dataclass(frozen=True)
class Site:
    """What tells a worker that it is where the command is.

    Attributes:
        folder: the working directory, to which relative paths refer.
        holder: the process that holds the output folder, or the store.
    """

    folder: str
    holder: Holder | None


@contextlib.contextmanager
def connected(address: str, workers: int | None) -> Iterator[Any]:
    """Connects to a cluster and yields the module `ray`.

    Args:
        address: `"local"`, `"auto"`, `"host:port"` or `"ray://host:port"`.
        workers: how many tasks at a time on the local one; as many as there are processors or GPUs if None.

    Raises:
        InputError: Ray is not installed, or there is no cluster at that address.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError('train.ray needs Ray, expected pip install "ratfast[ray]"') from error
    options: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False} if address == LOCAL else {}
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # as Ray recommends; silences its warning
    try:
        _require_listener(address)
        ray.init(address, log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"train.ray is {address!r}, and Ray cannot connect there ({reason[:200]}), expected local, auto, "
            "host:port or ray://host:port of a running cluster"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Raises OSError if nobody listens at an address of host and port, which Ray would find out after minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()


def device_of(ray: Any, name: str) -> torch.device:
    """Where workers train: for `"auto"` on GPUs, if any machine of the cluster has one. Each sees the one it is given.

    Raises:
        InputError: no machine has what is asked for.
    """
    gpus = ray.cluster_resources().get("GPU", 0) > 0
    if name != "cpu" and (name, gpus) != ("auto", False):
        if not gpus:
            raise InputError(f"train.device is {name!r}, and no machine of the Ray cluster has a GPU")
        return torch.device("cuda")
    return torch.device("cpu")


def carry_out(ray: Any, plan: Plan, shared: Shared, store: Store, display: Display) -> None:
    """Carries out all tasks that are not done.

    Args:
        ray: the module, connected.
        plan: the tasks.
        shared: what is the same for all of them.
        store: the output folder, which all machines must see under the same name unless there is a store.
        display: shows what workers tell.

    Raises:
        UnfinishedError: some failed, all others are done.
    """
    retries = shared.recipe.train.retries
    options = {
        "num_cpus": shared.threads or 1,
        "num_gpus": int(shared.device.startswith("cuda")),
        "max_retries": retries,
        "retry_exceptions": retries > 0,
        "max_calls": 0,  # a process keeps what tasks share, such as decoded images
    }
    remote = ray.remote(**options)(_work)
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()
    shared_place, site = ray.put(shared), Site(os.getcwd(), store.holder())
    needs = plan.prerequisites()
    places: dict[str, Any] = {}
    for task in plan.tasks:
        if not is_done(task, store.output):
            needed = [places[name] for name in sorted(needs[task.name]) if name in places]
            named = remote.options(name=task.name)
            places[task.name] = named.remote(task, [shared_place], site, mailbox, *needed)
    try:
        _follow(ray, list(places.values()), mailbox, display)
    except BaseException:
        # The trainings that go on save their states, as they do on Ctrl-C.
        for place in places.values():
            ray.cancel(place, force=False)
        ray.wait(list(places.values()), num_returns=len(places), timeout=PATIENCE_SECONDS)
        raise
    _conclude(ray, plan, places, retries, store)


def _follow(ray: Any, pending: list[Any], mailbox: Any, display: Display) -> None:
    """Shows what workers tell until every task has an outcome."""
    while True:
        _, pending = ray.wait(pending, num_returns=len(pending), timeout=_POLL_SECONDS)
        with contextlib.suppress(
            ray.exceptions.RayActorError
        ):  # the machine of the mailbox was lost; Ray has another
            for event in ray.get(mailbox.take.remote()):
                getattr(display, event.kind)(*event.values)
        if not pending:
            return


def _conclude(ray: Any, plan: Plan, places: dict[str, Any], retries: int, store: Store) -> None:
    """Raises UnfinishedError if a task failed."""
    failed: list[tuple[str, Failure, int]] = []
    waiting = []
    for task in plan.tasks:
        if task.name not in places:
            continue
        try:
            outcome = ray.get(places[task.name])
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            outcome = failure_of(cause if isinstance(cause, Exception) else error)
            if isinstance(error, ray.exceptions.WorkerCrashedError | ray.exceptions.NodeDiedError):
                outcome = Failure("its worker, or the machine of it, was lost")
        if any(name in waiting or name in {entry[0] for entry in failed} for name in task.starts):
            waiting.append(task.name)
        elif isinstance(outcome, Failure):
            failed.append((task.name, outcome, 1 if outcome.input_is_wrong else 1 + retries))
            record_failure(task, outcome, store)
    if failed:
        raise unfinished(failed, waiting)


class Mailbox:
    """Where workers leave what they tell, as an actor on the machine of the command."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def post(self, event: Event) -> None:
        """Leaves an event."""
        self._events.append(event)

    def take(self) -> list[Event]:
        """All events since the last time."""
        taken, self._events = self._events, []
        return taken


class Sender:
    """Puts events into a mailbox, in their order and without waiting.

    Args:
        mailbox: the actor.
    """

    def __init__(self, mailbox: Any):
        self._mailbox = mailbox
        self._last: Any = None

    def __call__(self, event: Event) -> None:
        """Begins to send it."""
        self._last = self._mailbox.post.remote(event)

    def wait(self) -> None:
        """Waits until all of them have arrived: who hears that a task has ended then finds everything that it told."""
        import ray

        last, self._last = self._last, None
        if last is not None:
            with contextlib.suppress(ray.exceptions.RayError):  # the mailbox was lost, or is out of reach
                ray.get(last, timeout=_POST_SECONDS)


_contexts: dict[Site, Context] = {}
_senders: dict[Site, Sender] = {}


def _work(task: Task, shared: list[Any], site: Site, mailbox: Any, *needed: Failure | None) -> Failure | None:
    """One task in a process of Ray's: None, or the failure that another trial would not mend."""
    lost = next((outcome for outcome in needed if outcome is not None), None)
    if lost is not None:
        return lost
    from ratfast.train import work

    try:
        context = _context_of(shared[0], site, mailbox)
        context.store.fetch_task(task)  # a process before may have come as far as that
        if isinstance(task, Job):
            context.store.fetch_state(task)
        with work.kernels(context.recipe):
            work.carry_out(task, context)
        context.store.keep_done(task)
    except InputError as error:
        return failure_of(error)
    finally:
        if site in _senders:
            _senders[site].wait()
    return None


def _context_of(place: Any, site: Site, mailbox: Any) -> Context:
    """The context of this process, kept from task to task."""
    if site not in _contexts:
        import ray

        from ratfast.train.context import open_context

        shared: Shared = ray.get(place)
        store = _open_store(shared.recipe, site)
        _senders[site] = Sender(mailbox)
        _contexts[site] = open_context(shared, store, RelayedView(_senders[site]))
    return _contexts[site]


def _open_store(recipe: Recipe, site: Site) -> Store:
    """The output folder, and the store if there is one, as this machine sees them."""
    where = f"{socket.gethostname()} does not see"
    folder = os.environ.get(FOLDER, site.folder)
    try:
        if recipe.output.store is not None:
            os.makedirs(folder, exist_ok=True)
        os.chdir(folder)
    except OSError as error:
        expected = (
            "a shared one"
            if recipe.output.store is None
            else f"one that it can make, or {FOLDER} to name one"
        )
        raise InputError(f"the machine {where} the folder {folder}, expected {expected}") from error
    store = open_store(recipe)
    try:
        holder = store.holder()
        if store.remote is not None:
            settle_recipe(recipe, store.output)
    except (InputError, StoreError) as error:
        raise type(error)(f"on the machine {socket.gethostname()}, {error}") from error
    if holder != site.holder:
        raise InputError(f"the machine {where} {store} of the command, expected a shared one")
    return store
