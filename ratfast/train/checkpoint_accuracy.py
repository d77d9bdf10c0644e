"""The accuracy of a saved checkpoint, computed exactly as training computes it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ratfast import checkpoints, data, models
from ratfast.errors import InputError
from ratfast.train import host
from ratfast.train.evaluation import accuracy
from ratfast.train.progress import Display


def build_network(
    path: Path, dataset: data.DomainDataset, backbone: str | None, image_size: int | None
) -> models.Classifier:
    """The network that a checkpoint says it is of, or that the caller says; its weights are not filled in.

    Args:
        path: the checkpoint.
        dataset: what it is to be evaluated on.
        backbone: name of the network, where the checkpoint does not say.
        image_size: pixels, where the checkpoint does not say.

    Raises:
        InputError: the network is not known, or was trained for other classes than the data set's.
    """
    stored = checkpoints.read_metadata(path).get("model", {})
    image_size = image_size or stored.get("image_size")
    if image_size is None or not (backbone or "backbone" in stored):
        raise InputError(f"{path} does not say which network it is of, expected --backbone and --image-size")
    classes = stored.get("classes") or list(dataset.classes)
    if list(dataset.classes) != classes:
        raise InputError(
            f"{path} was trained for {len(classes)} classes ({', '.join(classes[:3])}, ...), "
            f"{dataset.root} has {len(dataset.classes)} ({', '.join(dataset.classes[:3])}, ...), expected the same"
        )
    if backbone is None or backbone == stored.get("backbone"):
        try:
            return models.from_description(stored | {"image_size": image_size})
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    return models.build(backbone, len(classes), image_size=image_size, classes=classes)


def fill_network(model: models.Classifier, weights: dict[str, Tensor], path: Path) -> None:
    """Copies a state dict into the network, names and shapes as they must be.

    Args:
        model: the network.
        weights: its new weights.
        path: where they come from, for the error.

    Raises:
        InputError: names or shapes are not the network's.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in weights]
    unknown = [name for name in weights if name not in expected]
    reshaped = [name for name in expected if name in weights and weights[name].shape != expected[name].shape]
    if missing or unknown or reshaped:
        example = (reshaped or missing or unknown)[0]
        raise InputError(
            f"{path} does not hold the weights of {model.backbone} with {len(expected)} tensors: {len(missing)} "
            f"names missing, {len(unknown)} unknown, {len(reshaped)} of another shape, for example {example}"
        )
    model.load_state_dict(weights)


def checkpoint_accuracy(
    path: Path,
    folder: Path,
    *,
    domain: str | None = None,
    backbone: str | None = None,
    image_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    on_bad_image: str = "error",
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint on the domains of a data set, every image of each.

    Args:
        path: the checkpoint.
        folder: the data set: `<domain>/<class>/<image>`.
        domain: index or name of the only domain to evaluate; all by default.
        backbone: name of the network, where the checkpoint does not say.
        image_size: pixels, where the checkpoint does not say.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto`, `float32` or `bfloat16`.
        on_bad_image: `error`, or `skip` to leave out images that cannot be read.
        console: where progress is shown; standard error by default.

    Returns:
        `checkpoint`, `dataset`, and `domains`: by name `accuracy` (a fraction), `correct` and `images`; with
        `skip` also `left_out`: the files that cannot be read, each with its defect.

    Raises:
        InputError: the checkpoint or the data set is wrong, or they do not fit each other.
    """
    where = host.find_device(device)
    host.prepare(where, None)
    weights = checkpoints.load(path)
    dataset = data.scan(folder)
    everything = range(len(dataset.domains))
    chosen = everything if domain is None else [dataset.domain_index(domain)]
    model = build_network(path, dataset, backbone, image_size)
    fill_network(model, weights, path)
    model.to(where, memory_format=torch.channels_last)
    domains = {}
    with Display(console) as display:
        paths = [path for index in chosen for path in dataset.domains[index].paths]
        left_out: list[data.BadImage] = []
        if on_bad_image == "skip":
            progress = partial(display.count, "decoding every image")
            left_out = data.find_bad_images(paths, decode=True, progress=progress)
            dataset = dataset.leave_out(image.path for image in left_out)
        else:
            data.check_images(paths, progress=partial(display.count, "checking images"))
        for index in chosen:
            entry = dataset.domains[index]
            usable = entry.usable()
            if not len(usable):
                raise InputError(f"no image of domain {entry.name!r} of {dataset.root} can be read")
            labels = torch.as_tensor(entry.labels[usable], device=where)
            # Each image is used once: nothing is kept.
            cache = data.DecodedCache(device=where, max_bytes=0, max_device_bytes=0)
            images = cache.get(dataset, index, model.image_size, usable)
            fraction = accuracy(
                model,
                images,
                labels,
                host.find_precision(precision, where),
                progress=partial(display.count, f"evaluating {entry.name}"),
            )
            correct = round(fraction * len(labels))
            domains[entry.name] = {"accuracy": fraction, "correct": correct, "images": len(labels)}
    result = {"checkpoint": str(path), "dataset": dataset.name, "domains": domains}
    return result | ({"left_out": dict(left_out)} if on_bad_image == "skip" else {})
