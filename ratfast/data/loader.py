"""Training batches: endless, prefetched, and each reproducible from the seed and its step alone."""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import torch

from ratfast.data.augmentation import Augmentation, Draws, draw_augmentation, draw_samples
from ratfast.data.backend import Backend, open_backend
from ratfast.data.files import EncodedImage, read_image
from ratfast.data.folders import DomainDataset
from ratfast.data.training_cache import TrainingCache
from ratfast.errors import InputError


class Batch(NamedTuple):
    """The images of one step, `batch_size` of each training domain, domain after domain.

    Attributes:
        images: (domains * batch_size, 3, S, S) float32 or bfloat16, channels-last, normalised.
        labels: int64 (domains * batch_size,).
    """

    images: torch.Tensor
    labels: torch.Tensor


class _Prepared(NamedTuple):
    batch: Batch
    ready: torch.cuda.Event | None


_Item = torch.Tensor | EncodedImage  # decoded before, or not


class Loader:
    """Makes training batches; build it with `build_loader`.

    Samples are drawn with replacement within each domain, as DomainBed's infinite loaders draw them.
    Iterating decodes ahead in the background; leaving the loop stops that. Its whole state is the seed and the
    number of the next step (`state_dict`). Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        samples: Sequence[tuple[list[str], np.ndarray]],
        backend: Backend,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        augmentation: Augmentation | None,
        prefetch: int,
        cache: TrainingCache | None,
    ) -> None:
        self._samples = samples
        self._backend = backend
        self._batch_size = batch_size
        self._seed = seed
        self._device = device
        self._augmentation = augmentation
        self._prefetch = prefetch
        self._lock = threading.Lock()
        self._cache = cache
        self._next = 0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._producers: list[_Producer] = []
        self._closed = False
        # Threads that decode while the interpreter shuts down would crash it.
        atexit.register(self.close)

    @property
    def backend(self) -> str:
        """Name of the decoding backend in use."""
        return self._backend.name

    @property
    def batch_size(self) -> int:
        """Images per domain and batch."""
        return self._batch_size

    @property
    def largest_batch(self) -> int:
        """Images of all domains in a batch, and the most that `augment` takes."""
        return self._batch_size * len(self._samples)

    def augment(self, paths: Sequence[str], draws: Draws) -> torch.Tensor:
        """Make a batch of other images, as those of training are made, on the same threads.

        Args:
            paths: at most `largest_batch` files.
            draws: of as many images.

        Returns:
            (N, 3, S, S), like the images of a `Batch`.

        Raises:
            InputError: an image is missing, damaged or cannot be decoded; names the file.
        """
        self._check_open()
        images = list(self._backend.pool.map(read_image, paths))
        with self._making():
            made = Batch(self._backend.augment(images, draws), torch.empty(0, device=self._device))
            prepared = self._prepared(made)
        return self._hand_over(prepared).images

    def batch_at(self, step: int) -> Batch:
        """Make the batch of one step, whatever came before it.

        Args:
            step: number of the step, from 0.

        Returns:
            The batch, on the loader's device.

        Raises:
            InputError: an image is missing, damaged or cannot be decoded; names the file.
        """
        self._check_open()
        return self._hand_over(self._make(step, self._start_reading(step)))

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over all batches from the next step of the loader's state on, and count them there."""
        for batch in self.batches(self._next):
            self._next += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """What decides the batches that iterating will yield next: `seed` and `step`."""
        return {"seed": self._seed, "step": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another loader of the same images and batch size was; iterators already begun are not moved.

        Args:
            state: from `state_dict`.

        Raises:
            InputError: it is not such a state.
        """
        if set(state) != {"seed", "step"} or not all(isinstance(value, int) for value in state.values()):
            raise InputError(
                f"a loader's state must hold the integers seed and step, but it is {dict(state)}"
            )
        if state["step"] < 0:
            raise InputError(f"a loader's step must not be negative, but it is {state['step']}")
        self._seed, self._next = state["seed"], state["step"]

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Iterate over batches, decoding ahead in the background.

        Args:
            start: step of the first batch.
            stop: step before which to end; never ends if None.

        Yields:
            The batches of steps `start`, `start + 1`, ...

        Raises:
            InputError: as `batch_at`.
        """
        self._check_open()
        producer = _Producer(self, start, stop, self._prefetch)
        self._producers.append(producer)
        try:
            while (prepared := producer.next()) is not None:
                yield self._hand_over(prepared)
        finally:
            producer.stop()
            with contextlib.suppress(ValueError):
                self._producers.remove(producer)

    def close(self) -> None:
        """Stop the background threads and release the backend; may be called more than once."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        for producer in list(self._producers):
            producer.stop()
        with self._lock:
            self._backend.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the loader is closed")

    def _positions(self, step: int) -> np.ndarray:
        if step < 0:
            raise InputError(f"a step must not be negative, but it is {step}")
        return draw_samples(self._seed, step, [len(paths) for paths, _ in self._samples], self._batch_size)

    def _start_reading(self, step: int) -> list[Future[_Item]]:
        return [
            self._backend.pool.submit(self._fetch, paths[position])
            for (paths, _), row in zip(self._samples, self._positions(step), strict=True)
            for position in row.tolist()
        ]

    def _fetch(self, path: str) -> _Item:
        kept = None if self._cache is None else self._cache.get(path)
        return read_image(path) if kept is None else kept

    def _make(self, step: int, reading: list[Future[_Item]]) -> _Prepared:
        images = [future.result() for future in reading]
        draws = draw_augmentation(self._augmentation, self._seed, step, len(images))
        labels = np.concatenate(
            [labels[row] for (_, labels), row in zip(self._samples, self._positions(step), strict=True)]
        )
        with self._making():
            return self._prepared(
                Batch(self._augmented(images, draws), torch.from_numpy(labels).to(self._device))
            )

    @contextlib.contextmanager
    def _making(self) -> Iterator[None]:
        """The backend is the caller's alone, on the loader's stream."""
        with self._lock, torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext():
            yield

    def _prepared(self, batch: Batch) -> _Prepared:
        return _Prepared(batch, self._stream.record_event() if self._stream else None)

    def _augmented(self, images: list[_Item], draws: Draws) -> torch.Tensor:
        if self._cache is None:
            return self._backend.augment(images, draws)
        encoded = {image.path: image for image in images if isinstance(image, EncodedImage)}
        pixels = self._backend.shrink(list(encoded.values()), self._cache.side) if encoded else []
        self._cache.keep(list(encoded), pixels)
        decoded = dict(zip(encoded, pixels, strict=True))
        found = [decoded[image.path] if isinstance(image, EncodedImage) else image for image in images]
        # A batch is made on one device, the first image's: what is kept on the CPU may meet what was just decoded.
        return self._backend.augment_decoded([image.to(found[0].device) for image in found], draws)

    def _hand_over(self, prepared: _Prepared) -> Batch:
        """Order the caller's stream after the one the batch was made on."""
        if prepared.ready is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(prepared.ready)
            for tensor in prepared.batch:
                tensor.record_stream(current)
        return prepared.batch


class _Producer:
    """A thread that makes batches into a bounded queue: reads step n + 1 while step n is decoded."""

    def __init__(self, loader: Loader, start: int, stop: int | None, depth: int) -> None:
        self._loader = loader
        self._start, self._end = start, stop
        self._queue: queue.Queue[_Prepared | BaseException | None] = queue.Queue(max(1, depth))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ratfast-prefetch", daemon=True)
        self._thread.start()

    def next(self) -> _Prepared | None:
        """The next batch, or None after the last; raises what the thread raised."""
        while not self._stopping.is_set():
            try:
                item = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                raise item
            return item
        return None

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopping.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            step = self._start
            reading = self._loader._start_reading(step) if self._end is None or step < self._end else None
            while reading is not None and not self._stopping.is_set():
                more = self._end is None or step + 1 < self._end
                ahead = self._loader._start_reading(step + 1) if more else None
                self._put(self._loader._make(step, reading))
                step, reading = step + 1, ahead
            self._put(None)
        except BaseException as error:  # handed to the consumer
            self._put(error)

    def _put(self, item: _Prepared | BaseException | None) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.2)
                return


def build_loader(
    dataset: DomainDataset,
    indices: Mapping[int, np.ndarray],
    *,
    batch_size: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    device: torch.device | str = "cpu",
    augmentation: Augmentation | None = Augmentation(),  # noqa: B008 - frozen
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
    cache: TrainingCache | None = None,
    prefetch: int = 2,
    threads: int | None = None,
) -> Loader:
    """Build the loader of a training run.

    Args:
        dataset: the images.
        indices: which samples of which domain to train on: domain index to sample indices. Domains come in
            the order of their index.
        batch_size: images per domain and step.
        image_size: side S of the images made, in pixels.
        mean: normalisation's mean of RGB in [0, 1].
        std: normalisation's standard deviation of RGB in [0, 1].
        seed: the run's seed; with the step it decides everything random.
        device: where the batches are made.
        augmentation: what is drawn; None only resizes.
        dtype: of the images, torch.float32 or torch.bfloat16.
        backend: "auto", "dali" or "torchvision"; see `ratfast.data.backend.open_backend`.
        cache: keeps the images decoded, at its resolution; each is decoded every time if None.
        prefetch: batches made ahead.
        threads: threads that decode; as many as this process may use, at most 3, if None.

    Returns:
        The loader.

    Raises:
        InputError: a domain does not exist, has no samples to train on or an index outside it, or a number
            is out of range.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, but it is {batch_size}")
    if not indices:
        raise InputError(f"no domain of dataset {dataset.name} was given to train on")
    samples = []
    for number in sorted(indices):
        domain = dataset.domains[dataset.domain_index(int(number))]
        chosen = np.asarray(indices[number], np.int64)
        if chosen.size == 0:
            raise InputError(f"domain {domain.name!r} of dataset {dataset.name} has no images to train on")
        outside = chosen[(chosen < 0) | (chosen >= len(domain))]
        if outside.size:
            raise InputError(
                f"domain {domain.name!r} of dataset {dataset.name} has images 0 to {len(domain) - 1}, "
                f"but image {outside[0]} was given to train on"
            )
        samples.append(([domain.paths[i] for i in chosen.tolist()], domain.labels[chosen]))
    device = torch.device(device)
    opened = open_backend(
        backend,
        image_size=image_size,
        max_batch=batch_size * len(samples),
        device=device,
        mean=mean,
        std=std,
        dtype=dtype,
        threads=threads,
    )
    return Loader(
        samples,
        opened,
        batch_size=batch_size,
        seed=seed,
        device=device,
        augmentation=augmentation,
        prefetch=prefetch,
        cache=cache,
    )
