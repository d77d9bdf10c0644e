"""Checkpoints written while the process goes on with something else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from ratfast import checkpoints


class Writer:
    """Writes one checkpoint at a time in the background.

    Use it as a context manager: leaving it waits until everything is on the disk.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ratfast-writer")
        self._writing: Future[None] | None = None

    def save(
        self,
        tensors: Mapping[str, Tensor],
        path: Path,
        metadata: Mapping[str, Any],
        then: Callable[[], None] | None = None,
    ) -> None:
        """Copies what is given, and begins to write it, whole or not at all.

        Args:
            tensors: by name.
            path: the file.
            metadata: JSON-able.
            then: called in the background once the file is on the disk.

        Raises:
            OSError: the one before could not be written, such as on a full disk.
        """
        self.wait()  # so that no more than one copy is held
        copies = {name: _copy(tensor) for name, tensor in tensors.items()}
        self._writing = self._thread.submit(_write, copies, path, copy.deepcopy(metadata), then)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being written."""
        return self._writing is None or self._writing.done()

    def wait(self) -> None:
        """Waits until what was given is on the disk.

        Raises:
            OSError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()


def _write(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any], then: Callable[[], None] | None
) -> None:
    checkpoints.save(tensors, path, metadata)
    if then is not None:
        then()


def _copy(tensor: Tensor) -> Tensor:
    detached = tensor.detach()
    return detached.clone() if detached.device.type == "cpu" else detached.to("cpu")
