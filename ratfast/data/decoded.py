"""Images decoded for evaluation: resized without keeping the aspect, not augmented, kept as uint8."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import torch

from ratfast.data.backend import Backend, open_backend
from ratfast.data.files import Progress, read_image
from ratfast.data.folders import DomainDataset
from ratfast.errors import InputError

_BATCH = 64
_STREAM_THREADS = 2


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
    if len(paths):
        with closing(_open(backend, image_size, len(paths), out.device, threads)) as opened:
            _decode_rows(out, range(len(paths)), paths, opened, progress)
    return out.permute(0, 3, 1, 2)


def _open(backend: str, image_size: int, images: int, device: torch.device, threads: int | None) -> Backend:
    return open_backend(
        backend, image_size=image_size, max_batch=min(_BATCH, images), device=device, threads=threads
    )


def _decode_rows(
    out: torch.Tensor,
    rows: np.ndarray | Sequence[int],
    paths: Sequence[str | os.PathLike[str]],
    opened: Backend,
    progress: Progress | None = None,
) -> None:
    """Decode the files into rows of `out`, uint8 (N, S, S, 3), reading one batch ahead."""
    reading = [opened.pool.submit(read_image, path) for path in paths[:_BATCH]]
    for start in range(0, len(paths), _BATCH):
        following = paths[start + _BATCH : start + 2 * _BATCH]
        ahead = [opened.pool.submit(read_image, path) for path in following]
        pixels = opened.resize([future.result() for future in reading]).permute(0, 2, 3, 1)
        out[torch.as_tensor(rows[start : start + _BATCH], device=out.device)] = pixels.to(out.device)
        reading = ahead
        if progress is not None:
            progress(min(start + _BATCH, len(paths)), len(paths))


@dataclass(eq=False)
class _Kept:
    """Some images of a domain, decoded."""

    rows: np.ndarray  # (K,) of the domain
    pixels: torch.Tensor  # uint8 (K, S, S, 3)


class DecodedImages:
    """Images of a domain in some order, as uint8, handed out in batches: never all of them are copied at once.

    Get them from a `DecodedCache`.
    """

    def __init__(
        self,
        paths: Sequence[str],
        places: list[tuple[torch.Tensor, np.ndarray, np.ndarray]],
        image_size: int,
        device: torch.device,
        backend: str,
        threads: int | None,
    ) -> None:
        self._paths = paths
        self._places = places  # of kept pixels: the images that are among them, and where
        self._size = image_size
        self._device = device
        self._backend = backend
        self._threads = threads

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, cut: slice) -> DecodedImages:
        """Some of the images that lie one after the other, of none of which a copy is made."""
        start, stop, _ = cut.indices(len(self))
        places = []
        for pixels, images, positions in self._places:
            low, high = np.searchsorted(images, (start, stop))
            if low < high:
                places.append((pixels, images[low:high] - start, positions[low:high]))
        return DecodedImages(
            self._paths[start:stop], places, self._size, self._device, self._backend, self._threads
        )

    def split(self, size: int) -> Iterator[torch.Tensor]:
        """Yields uint8 (at most `size`, 3, S, S), channels-last; not to be written to.

        Batches of images that lie together where they are kept are views of that memory, all others copies. Images
        that are not kept are decoded here.

        Raises:
            InputError: an image cannot be decoded; names it.
        """
        if not len(self):
            yield self._room(0).permute(0, 3, 1, 2)  # as torch splits an empty tensor
            return
        cuts = [slice(start, min(start + size, len(self))) for start in range(0, len(self), size)]
        if sum(len(images) for _, images, _ in self._places) == len(self):
            yield from (self._batch(cut, None) for cut in cuts)
            return
        # While a batch is used, the next one is decoded: on so few threads since a run's loader keeps its own.
        threads = self._threads or min(_STREAM_THREADS, len(os.sched_getaffinity(0)))
        opened = _open(self._backend, self._size, size, self._device, threads)
        with closing(opened), ThreadPoolExecutor(1, thread_name_prefix="ratfast-ahead") as ahead:
            following = ahead.submit(self._batch, cuts[0], opened)
            for cut in [*cuts[1:], None]:
                batch = following.result()
                if cut is not None:
                    following = ahead.submit(self._batch, cut, opened)
                yield batch

    def tensor(self) -> torch.Tensor:
        """All images at once, (N, 3, S, S)."""
        return next(self.split(max(1, len(self))))

    def _batch(self, cut: slice, opened: Backend | None) -> torch.Tensor:
        start, stop = cut.start, cut.stop
        out = None
        missing = np.ones(stop - start, bool)
        for pixels, images, positions in self._places:
            low, high = np.searchsorted(images, (start, stop))
            found, at = images[low:high] - start, positions[low:high]
            if len(found) == stop - start and np.array_equal(at, np.arange(at[0], at[0] + len(at))):
                return pixels[at[0] : at[0] + len(at)].permute(0, 3, 1, 2)
            if len(found):
                out = self._room(stop - start) if out is None else out
                chosen = pixels[torch.as_tensor(at, device=pixels.device)]
                out[torch.as_tensor(found, device=out.device)] = chosen.to(out.device)
                missing[found] = False
        out = self._room(stop - start) if out is None else out
        rows = np.flatnonzero(missing)
        if rows.size:
            _decode_rows(out, rows, [self._paths[start + row] for row in rows], opened)
        return out.permute(0, 3, 1, 2)

    def _room(self, count: int) -> torch.Tensor:
        return torch.empty((count, self._size, self._size, 3), dtype=torch.uint8, device=self._device)


@dataclass(eq=False, kw_only=True)
class DecodedCache:
    """Decodes each evaluation image once per process and serves any subset of them.

    Safe to share between threads. An image is decoded when it is first asked for, and kept on the device if there is
    room within `max_device_bytes`, else on the CPU if there is room within `max_bytes`; else it is decoded anew
    whenever its batch is.

    Args:
        device: where images are decoded, and kept if there is room.
        backend: "auto", "dali" or "torchvision".
        max_bytes: most memory to use on the CPU; no limit if None.
        max_device_bytes: most memory to use on `device`, if that is not the CPU; no limit if None.
        threads: decoding threads; if None as many as this process may use, at most 3 for what is kept, 2 for the rest.
        progress: told how far a decoding is.
    """

    device: torch.device | str = "cpu"
    backend: str = "auto"
    max_bytes: int | None = None
    max_device_bytes: int | None = None
    threads: int | None = None
    progress: Progress | None = None
    _kept: dict[tuple[str, str, int], list[_Kept]] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        self.device = torch.device(self.device)

    @property
    def nbytes(self) -> int:
        """Memory of the images kept, in bytes."""
        return sum(kept.pixels.numel() for parts in self._kept.values() for kept in parts)

    def get(
        self,
        dataset: DomainDataset,
        domain: int,
        image_size: int,
        indices: np.ndarray | Sequence[int] | None = None,
    ) -> DecodedImages:
        """Images of a domain; those that can be kept are decoded first.

        Args:
            dataset: the images.
            domain: index of the domain.
            image_size: side S, in pixels.
            indices: which samples, in which order; all of the domain, in its order, if None.

        Raises:
            InputError: there is no such domain or sample, or an image cannot be decoded; names it.
        """
        chosen = dataset.domains[dataset.domain_index(int(domain))]
        count = len(chosen)
        rows = np.arange(count) if indices is None else np.asarray(indices, np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= count):
            outside = rows.max() if rows.max() >= count else rows.min()
            raise InputError(
                f"domain {chosen.name!r} of dataset {dataset.name} has images 0 to {count - 1}, "
                f"but image {outside} was asked for"
            )
        with self._lock:
            parts = self._kept.setdefault((str(dataset.root), chosen.name, image_size), [])
            wanted = np.zeros(count, bool)
            wanted[rows] = True
            for kept in parts:
                wanted[kept.rows] = False
            # In the order in which they are asked for first, so that the same batches can be views.
            first_uses = np.sort(np.unique(rows, return_index=True)[1])
            missing = rows[first_uses][wanted[rows[first_uses]]]
            for device, most in self._rooms(3 * image_size**2):
                new, missing = missing[:most], missing[most:]
                if new.size:
                    parts.append(self._decoded(chosen.paths, new, image_size, device))
        places = []
        for kept in parts:
            position = np.full(count, -1)
            position[kept.rows] = np.arange(len(kept.rows))
            images = np.flatnonzero(position[rows] >= 0)
            if images.size:
                places.append((kept.pixels, images, position[rows[images]]))
        return DecodedImages(
            [chosen.paths[row] for row in rows.tolist()],
            places,
            image_size,
            self.device,
            self.backend,
            self.threads,
        )

    def clear(self) -> None:
        """Forget every image."""
        with self._lock:
            self._kept.clear()

    def _rooms(self, image_bytes: int) -> Iterator[tuple[torch.device, int]]:
        """Where images are kept, in the order of preference, and how many more have room there."""
        cpu = torch.device("cpu")
        limits = {self.device: self.max_device_bytes} | {cpu: self.max_bytes}
        for device, limit in limits.items():
            parts = [kept.pixels for parts in self._kept.values() for kept in parts]
            used = sum(pixels.numel() for pixels in parts if pixels.device.type == device.type)
            yield device, sys.maxsize if limit is None else max(0, limit - used) // image_bytes

    def _decoded(self, paths: Sequence[str], rows: np.ndarray, size: int, device: torch.device) -> _Kept:
        pixels = torch.empty((len(rows), size, size, 3), dtype=torch.uint8, device=device)
        chosen = [paths[row] for row in rows.tolist()]
        with closing(_open(self.backend, size, len(rows), self.device, self.threads)) as opened:
            _decode_rows(pixels, range(len(rows)), chosen, opened, self.progress)
        return _Kept(rows, pixels)
