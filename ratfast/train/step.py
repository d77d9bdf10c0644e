"""One update of a training: operation by operation, or as a CUDA graph that is replayed.

An update has two parts. `prepare` may be interrupted and begun again with another update in between; `apply` changes
the model, and has to be let finish. Neither waits for a CUDA device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ratfast.data import Batch
from ratfast.errors import InputError
from ratfast.models import Classifier

WARM_UP = 3
"""Updates before the capture: in them libraries choose their kernels, and the optimizer finds its rows."""

Loss = Callable[[Classifier, Batch], Tensor]
"""The mean loss of a batch, with a graph for what is to be trained."""


def head_loss(model: Classifier, batch: Batch) -> Tensor:
    """Cross-entropy with a graph for the head alone: a third of the work of one through the backbone."""
    with torch.no_grad():
        features = model.features(batch.images)
    return F.cross_entropy(model.head(features), batch.labels)


def full_loss(model: Classifier, batch: Batch) -> Tensor:
    """Cross-entropy with a graph for the whole model."""
    return F.cross_entropy(model(batch.images), batch.labels)


def compiled(loss: Loss) -> Loss:
    """The same loss by `torch.compile`, for batches of one shape.

    What was compiled for an earlier training goes: it is of a network with other names, classes or dropout, and after
    some of those torch would compile no more and say so only in a log.

    Raises:
        InputError: by the returned function, if the network cannot be compiled.
    """
    from torch._dynamo.exc import TorchDynamoException  # a second that others need not wait

    torch.compiler.reset()
    function = torch.compile(loss, dynamic=False)

    def compute(model: Classifier, batch: Batch) -> Tensor:
        try:
            return function(model, batch)
        except TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f'train.compile is on, and torch.compile failed ({reason}), expected "off" or what it needs, such as '
                "a C++ compiler"
            ) from error

    return compute


class Step(Protocol):
    """Makes updates."""

    def prepare(self, batch: Batch) -> None:
        """All of an update that leaves the model as it is."""
        ...

    def apply(self) -> None:
        """The rest of the update that was prepared."""
        ...


class EagerStep:
    """Gradients, then the optimizer's step, each operation started by itself.

    Args:
        compute: the loss of a batch, with a graph.
        optimizer: leaves the gradients zero.
        loss_sum: every loss is added to it.
    """

    def __init__(
        self, compute: Callable[[Batch], Tensor], optimizer: torch.optim.Optimizer, loss_sum: Tensor
    ) -> None:
        self._compute = compute
        self._optimizer = optimizer
        self._loss_sum = loss_sum
        self._loss: Tensor | None = None

    def prepare(self, batch: Batch) -> None:
        """Computes the gradients."""
        loss = self._compute(batch)
        loss.backward()
        self._loss = loss.detach()

    def apply(self) -> None:
        """Steps the optimizer."""
        self._optimizer.step()
        self._loss_sum += self._loss
        self._loss = None


class GraphedStep:
    """Another step's updates, captured once and replayed with one launch instead of some thousand.

    The first updates are the other step's own, and so are those of batches of other shapes. Where the capture fails,
    all of them are.

    Args:
        eager: what is captured: it has to do the same on every batch, and to put nothing on the host.
        say: told, in a sentence, if the capture fails.
        capture: makes a function that repeats what a given one does, without doing it.
    """

    def __init__(
        self,
        eager: Step,
        say: Callable[[str], None],
        capture: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ) -> None:
        self._eager = eager
        self._say = say
        self._capture_with = capture or capture_on_cuda
        self._made = 0
        self._inputs: Batch | None = None  # where the replayed operations read
        self._replay: Callable[[], None] | None = None
        self._replays = False  # the update that was prepared

    def prepare(self, batch: Batch) -> None:
        """Brings the batch to where the graph reads it; or as the other step."""
        if self._made == WARM_UP:
            self._capture(batch)
        self._replays = self._replay is not None and _alike(batch, self._inputs)
        if self._replays:
            for kept, given in zip(self._inputs, batch, strict=True):
                kept.copy_(given, non_blocking=True)
        else:
            self._eager.prepare(batch)

    def apply(self) -> None:
        """Replays the whole update; or as the other step."""
        if self._replays:
            self._replay()
        else:
            self._eager.apply()
        self._made += 1

    def _capture(self, batch: Batch) -> None:
        inputs = Batch(*(tensor.clone() for tensor in batch))

        def update() -> None:
            self._eager.prepare(inputs)
            self._eager.apply()

        try:
            self._replay = self._capture_with(update)
            self._inputs = inputs
        except (RuntimeError, InputError) as error:
            self._made += 1  # not tried again
            reason = str(error).partition("\n")[0]
            self._say(f"updates are made without a CUDA graph, since one could not be captured: {reason}")


def capture_on_cuda(function: Callable[[], None]) -> Callable[[], None]:
    """A function that repeats on the device what `function` would do there, by a CUDA graph.

    Raises:
        RuntimeError: something in it cannot be captured; nothing of it has been done then.
    """
    graph = torch.cuda.CUDAGraph()
    # What the threads that make batches do meanwhile is no part of it, and allowed.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        function()
    return graph.replay


def _alike(batch: Batch, other: Batch | None) -> bool:
    return other is not None and all(
        a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride()
        for a, b in zip(batch, other, strict=True)
    )
