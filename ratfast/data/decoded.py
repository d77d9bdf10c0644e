"""Images decoded for evaluation: resized without keeping the aspect, not augmented, kept as uint8."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ratfast.data.backend import open_backend
from ratfast.data.files import Progress, read_image
from ratfast.data.folders import DomainDataset
from ratfast.errors import InputError

_BATCH = 64


def decode(
    paths: Sequence[str | os.PathLike[str]],
    image_size: int,
    *,
    device: torch.device | str = "cpu",
    backend: str = "auto",
    progress: Progress | None = None,
    threads: int | None = None,
) -> torch.Tensor:
    """Decode images for evaluation: `Resize((S, S))`, bilinear with antialiasing.

    Args:
        paths: the files.
        image_size: side S, in pixels.
        device: where the images are made.
        backend: "auto", "dali" or "torchvision".
        progress: told how far it is.
        threads: decoding threads; as many as this process may use, at most 3, if None.

    Returns:
        uint8 (N, 3, S, S), channels-last.

    Raises:
        InputError: a file is missing, damaged or cannot be decoded; names it.
    """
    if image_size < 1:
        raise InputError(f"the image size must be at least 1, but it is {image_size}")
    out = torch.empty((len(paths), image_size, image_size, 3), dtype=torch.uint8, device=device)
    _decode_rows(out, range(len(paths)), paths, backend, progress, threads, out.device)
    return out.permute(0, 3, 1, 2)


def _decode_rows(
    out: torch.Tensor,
    rows: Sequence[int],
    paths: Sequence[str | os.PathLike[str]],
    backend: str,
    progress: Progress | None,
    threads: int | None,
    device: torch.device,
) -> None:
    """Decode the files on `device` into rows of `out`, uint8 (N, S, S, 3), reading one batch ahead."""
    if not len(paths):
        return
    opened = open_backend(
        backend,
        image_size=out.shape[1],
        max_batch=min(_BATCH, len(paths)),
        device=device,
        threads=threads,
    )
    starts = range(0, len(paths), _BATCH)
    try:
        reading = [opened.pool.submit(read_image, path) for path in paths[:_BATCH]]
        for start in starts:
            following = paths[start + _BATCH : start + 2 * _BATCH]
            ahead = [opened.pool.submit(read_image, path) for path in following]
            pixels = opened.resize([future.result() for future in reading]).permute(0, 2, 3, 1)
            out[torch.as_tensor(rows[start : start + _BATCH], device=out.device)] = pixels.to(out.device)
            reading = ahead
            if progress is not None:
                progress(min(start + _BATCH, len(paths)), len(paths))
    finally:
        opened.close()


@dataclass(eq=False)
class _Store:
    pixels: torch.Tensor  # uint8 (N, S, S, 3); rows not decoded yet are untouched memory
    done: np.ndarray  # bool (N,)


class DecodedCache:
    """Decodes each evaluation image once per process and serves any subset of them.

    Safe to share between threads. An image is decoded when it is first asked for. A domain is kept on the device if
    there is room within `max_device_bytes`, else on the CPU if there is room within `max_bytes`; else what is asked
    for is decoded anew each time.

    Args:
        device: where images are decoded, and kept if there is room.
        backend: "auto", "dali" or "torchvision".
        max_bytes: most memory to use on the CPU; no limit if None.
        max_device_bytes: most memory to use on `device`, if that is not the CPU; no limit if None.
        progress: told how far a decoding is.
    """

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        max_bytes: int | None = None,
        max_device_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._device = torch.device(device)
        self._backend = backend
        self._limits = {torch.device("cpu"): max_bytes}
        if self._device.type != "cpu":
            self._limits = {self._device: max_device_bytes} | self._limits  # the first that has room
        self._progress = progress
        self._stores: dict[tuple[str, str, int], _Store] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Memory set aside for the domains kept, in bytes."""
        return sum(store.pixels.numel() for store in self._stores.values())

    def get(
        self,
        dataset: DomainDataset,
        domain: int,
        image_size: int,
        indices: np.ndarray | Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Images of a domain.

        Args:
            dataset: the images.
            domain: index of the domain.
            image_size: side S, in pixels.
            indices: which samples, in which order; all of the domain, in its order, if None.

        Returns:
            uint8 (len(indices), 3, S, S), channels-last, where the domain is kept. Not to be written to.

        Raises:
            InputError: there is no such domain or sample, or an image cannot be decoded; names it.
        """
        chosen_domain = dataset.domains[dataset.domain_index(int(domain))]
        count = len(chosen_domain)
        rows = np.arange(count) if indices is None else np.asarray(indices, np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= count):
            outside = rows.max() if rows.max() >= count else rows.min()
            raise InputError(
                f"domain {chosen_domain.name!r} of dataset {dataset.name} has images 0 to {count - 1}, "
                f"but image {outside} was asked for"
            )
        with self._lock:
            store = self._store((str(dataset.root), chosen_domain.name, image_size), count)
            if store is None:
                paths = [chosen_domain.paths[i] for i in rows.tolist()]
                return decode(
                    paths, image_size, device=self._device, backend=self._backend, progress=self._progress
                )
            missing = np.unique(rows[~store.done[rows]])
            if missing.size:
                paths = [chosen_domain.paths[i] for i in missing.tolist()]
                _decode_rows(
                    store.pixels, missing.tolist(), paths, self._backend, self._progress, None, self._device
                )
                store.done[missing] = True
        pixels = store.pixels
        if indices is not None:
            pixels = pixels[torch.as_tensor(rows, device=pixels.device)]
        return pixels.permute(0, 3, 1, 2)

    def clear(self) -> None:
        """Forget every image."""
        with self._lock:
            self._stores.clear()

    def _store(self, key: tuple[str, str, int], count: int) -> _Store | None:
        if key in self._stores:
            return self._stores[key]
        shape = (count, key[2], key[2], 3)
        for device, limit in self._limits.items():
            used = sum(s.pixels.numel() for s in self._stores.values() if s.pixels.device == device)
            if limit is None or used + math.prod(shape) <= limit:
                pixels = torch.empty(shape, dtype=torch.uint8, device=device)
                self._stores[key] = _Store(pixels, np.zeros(count, bool))
                return self._stores[key]
        return None
