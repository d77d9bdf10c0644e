"""Images per second into training and evaluation batches: this project against DomainBed's loader and torchvision v2.

`python benchmarks/record.py benchmarks/images.py` makes 3 domains of JPEG files from real photographs
(`photographs.py`), of 227x227 pixels as in PACS and 500x375 as in VLCS, and lets the contestants make batches of 32
images of each domain at 224x224, augmented and normalised, in float32 (bfloat16 on a GPU), in turns:

- `official-W-workers`: DomainBed's InfiniteDataLoader, ImageFolder and transforms on PIL images, W worker processes
  per domain; takes part where RATFAST_BENCH_DOMAINBED names a checkout of facebookresearch/DomainBed;
- `torchvision-v2-tensors`: decode_image and transforms.v2 on uint8 tensors, a DataLoader of one worker per domain;
- `ffcv-fewer-operations`: FFCV's loader, where it can be imported, on two workers and JPEG images in a file of its own
  kind; it resizes as cv2's INTER_AREA does and knows neither hue nor grayscale;
- `ratfast-torchvision`, `ratfast-dali`: every image decoded every time, by that decoder;
- `ratfast-cache-256`: from the training cache, filled before.

Evaluation is a pass over all images, as normalised batches of 64: `official` decodes each time (FastDataLoader),
`ratfast-kept` serves them from the cache of decoded images, as the trainer does. `floor-*` decodes whole images and
does nothing else, torchvision's decoder on as many threads as there are cores, DALI's on a GPU. Before it is timed,
every training contestant makes what its workers may have made ahead: a DataLoader two batches per worker. In
evaluation the official loader's first two batches of a domain are made ahead, to its favour.

Arguments: `--json FILE` (for record.py).

Environment:
    RATFAST_BENCH_DEVICE: cpu by default; on cuda, this project's batches are made there, in bfloat16.
    RATFAST_BENCH_THREADS: of this project's decoders; its own choice by default.
    RATFAST_BENCH_IMAGES: of each data set, 900 by default; too few of them would all be made ahead of an evaluation.
    RATFAST_BENCH_BATCHES: per measurement, 4 by default.
    RATFAST_BENCH_ROUNDS: how often each contestant is timed, 5 by default.
    RATFAST_BENCH_SIZES: 227x227,500x375 by default.
    RATFAST_BENCH_PHOTOGRAPHS: a folder of JPEG photographs.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from photographs import write_dataset
from processes import report
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from ratfast.data import DecodedCache, TrainingCache, build_loader, scan
from ratfast.data.backend import open_backend
from ratfast.data.files import read_image
from ratfast.models import Normalisation
from ratfast.train.evaluation import normalised

DEVICE = torch.device(os.environ.get("RATFAST_BENCH_DEVICE", "cpu"))
THREADS = int(os.environ["RATFAST_BENCH_THREADS"]) if "RATFAST_BENCH_THREADS" in os.environ else None
IMAGES = int(os.environ.get("RATFAST_BENCH_IMAGES", "900"))
BATCHES = int(os.environ.get("RATFAST_BENCH_BATCHES", "4"))
ROUNDS = int(os.environ.get("RATFAST_BENCH_ROUNDS", "5"))
SIZES = os.environ.get("RATFAST_BENCH_SIZES", "227x227,500x375").split(",")
DOMAINBED = os.environ.get("RATFAST_BENCH_DOMAINBED")
BATCH = 32  # of each domain
DOMAINS = 3
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

Step = Callable[[], Any]  # makes one batch of all domains, or one pass over all images


def official_loaders() -> Any:
    """DomainBed's module of loaders, from its checkout."""
    path = Path(DOMAINBED or "") / "domainbed" / "lib" / "fast_data_loader.py"
    spec = importlib.util.spec_from_file_location("official_loaders", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def official_augmentation() -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.7, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
            transforms.RandomGrayscale(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def official_training(folder: Path, workers: int) -> Step:
    loaders = [
        iter(
            official_loaders().InfiniteDataLoader(
                ImageFolder(str(domain), official_augmentation()), None, BATCH, workers
            )
        )
        for domain in sorted(folder.iterdir())
    ]
    return lambda: [next(loader) for loader in loaders]


def tensor_training(folder: Path) -> Step:
    from torchvision.io import ImageReadMode, decode_image, read_file
    from torchvision.transforms import v2

    augment = v2.Compose(
        [
            v2.RandomResizedCrop(224, scale=(0.7, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.3, 0.3, 0.3, 0.3),
            v2.RandomGrayscale(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )

    def load(path: str) -> torch.Tensor:
        return decode_image(read_file(path), ImageReadMode.RGB)

    def endless(domain: Path) -> Iterator[Any]:
        dataset = ImageFolder(str(domain), augment, loader=load)
        sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=10**6)
        return iter(DataLoader(dataset, BATCH, sampler=sampler, num_workers=1))

    loaders = [endless(domain) for domain in sorted(folder.iterdir())]
    return lambda: [next(loader) for loader in loaders]


def ffcv_training(folder: Path) -> Step:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import (
        NormalizeImage,
        RandomBrightness,
        RandomContrast,
        RandomHorizontalFlip,
        RandomSaturation,
        ToTensor,
        ToTorchImage,
    )
    from ffcv.writer import DatasetWriter

    images = torch.utils.data.ConcatDataset([ImageFolder(str(domain)) for domain in sorted(folder.iterdir())])
    path = folder.parent / f"{folder.name}.beton"
    fields = {"image": RGBImageField(write_mode="jpg"), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(images)
    augment = [
        RandomResizedCropRGBImageDecoder((224, 224), scale=(0.7, 1.0)),
        RandomHorizontalFlip(),
        RandomBrightness(0.3),
        RandomContrast(0.3),
        RandomSaturation(0.3),
        NormalizeImage(255 * np.array(MEAN), 255 * np.array(STD), np.float32),
        ToTensor(),
        ToTorchImage(),
    ]
    loader = Loader(
        str(path),
        BATCH * DOMAINS,
        num_workers=2,
        order=OrderOption.RANDOM,
        os_cache=True,
        pipelines={"image": augment, "label": [IntDecoder(), ToTensor()]},
    )
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    return lambda: next(batches)


def own_training(folder: Path, backend: str, side: int | None, closing: ExitStack) -> Step:
    dataset = scan(folder)
    loader = build_loader(
        dataset,
        {number: np.arange(len(domain)) for number, domain in enumerate(dataset.domains)},
        batch_size=BATCH,
        image_size=224,
        mean=MEAN,
        std=STD,
        seed=0,
        device=DEVICE,
        dtype=DTYPE,
        backend=backend,
        cache=None if side is None else TrainingCache(side),
        threads=THREADS,
    )
    closing.enter_context(loader)
    if side is not None:
        for step in range(4 * len(dataset) // (BATCH * DOMAINS)):
            loader.batch_at(step)
    batches = loader.batches()
    closing.callback(batches.close)

    def step() -> None:
        next(batches)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize(DEVICE)

    return step


def official_evaluation(folder: Path) -> Step:
    resize = transforms.Compose(
        [transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    loaders = [
        official_loaders().FastDataLoader(ImageFolder(str(domain), resize), 64, 1)
        for domain in sorted(folder.iterdir())
    ]
    return lambda: [sum(1 for _ in loader) for loader in loaders]


def own_evaluation(folder: Path) -> Step:
    dataset, cache = scan(folder), DecodedCache(device=DEVICE)
    model = SimpleNamespace(normalisation=Normalisation(tuple(MEAN), tuple(STD)))

    def step() -> None:
        room = None
        for domain in range(len(dataset.domains)):
            for batch in cache.get(dataset, domain, 224).split(64):
                made = normalised(batch.to(DEVICE), model, DTYPE, room)
                room = made if room is None else room
        if DEVICE.type == "cuda":
            torch.cuda.synchronize(DEVICE)

    return step


def decoding_alone(folder: Path, backend: str, closing: ExitStack) -> Step:
    """Reads and decodes as many images as a batch has, whole, without the pass."""
    paths = [path for domain in scan(folder).domains for path in domain.paths]
    device = DEVICE if backend == "dali" else "cpu"
    opened = open_backend(backend, image_size=224, max_batch=BATCH * DOMAINS, device=device, threads=THREADS)
    closing.callback(opened.close)
    turns = itertools.count()

    def step() -> None:
        first = next(turns) * BATCH * DOMAINS
        images = [read_image(paths[(first + i) % len(paths)]) for i in range(BATCH * DOMAINS)]
        boxes = np.array([[0, 0, image.height, image.width] for image in images], np.int64)
        opened._decoder.decode(images, boxes)

    return step


def contestants(folder: Path, closing: ExitStack) -> dict[str, dict[str, tuple[Callable[[], Step], int]]]:
    """By group and name: what starts a contestant, and the images that one step of it makes."""
    batch = BATCH * DOMAINS
    training: dict[str, tuple[Callable[[], Step], int]] = {}
    evaluation: dict[str, tuple[Callable[[], Step], int]] = {}
    if DOMAINBED:
        for workers in (1, 8):
            name = f"official-{workers}-workers"
            training[name] = (lambda workers=workers: official_training(folder, workers)), batch
        evaluation["official"] = (lambda: official_evaluation(folder)), IMAGES
    training["torchvision-v2-tensors"] = (lambda: tensor_training(folder)), batch
    if importlib.util.find_spec("ffcv"):
        training["ffcv-fewer-operations"] = (lambda: ffcv_training(folder)), batch
    backends = ["torchvision"] + (["dali"] if importlib.util.find_spec("nvidia.dali") else [])
    for name in backends:
        training[f"ratfast-{name}"] = (lambda name=name: own_training(folder, name, None, closing)), batch
    training["ratfast-cache-256"] = (lambda: own_training(folder, "torchvision", 256, closing)), batch
    floors = backends if DEVICE.type == "cuda" else ["torchvision"]
    for name in floors:
        training[f"floor-decode-{name}"] = (lambda name=name: decoding_alone(folder, name, closing)), batch
    evaluation["ratfast-kept"] = (lambda: own_evaluation(folder)), IMAGES
    return {"training": training, "evaluation": evaluation}


def measured(make: Callable[[], Step], images: int, repeats: int, ahead: int) -> list[float]:
    """Seconds of each round, per 1,000 images, after `ahead` steps that may have been made before."""
    step = make()
    for _ in range(ahead + 1):
        step()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(repeats):
            step()
        seconds.append((time.perf_counter() - start) / repeats / images * 1000)
    return seconds


def ahead(name: str) -> int:
    """Batches that a training contestant may have ready."""
    return 2 * int(name.split("-")[1]) if name.startswith("official") else 4


def main() -> None:
    """Measures every contestant on every size; prints a table, and with --json writes the benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        for size in SIZES:
            width, height = map(int, size.split("x"))
            folder = write_dataset(Path(temporary) / size, width, height, IMAGES)
            with ExitStack() as closing:
                groups = contestants(folder, closing)
            for group, members in groups.items():
                for name, (make, images) in members.items():
                    with closing:
                        seconds = measured(
                            make, images, *((BATCHES, ahead(name)) if group == "training" else (1, 1))
                        )
                    rate = round(1000 / float(np.median(seconds)), 1)
                    extra = {
                        "images_per_second": rate,
                        "device": str(DEVICE),
                        "seconds_are": "per 1,000 images",
                    }
                    found.append(
                        {"group": f"{group}, {size}", "contestant": name, "seconds": seconds, "extra": extra}
                    )
    report(found, parser.parse_args().json)


if __name__ == "__main__":
    main()
