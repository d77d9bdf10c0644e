"""Image files of every kind, and a small dataset of folders, for the tests of ratfast.data."""

import importlib.util

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

BACKENDS = [
    pytest.param(
        "dali",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("nvidia.dali") is None, reason="DALI is not installed"
        ),
    ),
    "torchvision",
]


@pytest.fixture(params=BACKENDS)
def backend_name(request):
    return request.param


@pytest.fixture(scope="session")
def photographs():
    return [Image.fromarray(image).resize((320, 213)) for image in load_sample_images().images]


@pytest.fixture(scope="session")
def formats(photographs, tmp_path_factory):
    """One file of each format and pixel layout, by name."""
    folder = tmp_path_factory.mktemp("formats")
    image = photographs[0]
    alpha = image.convert("RGBA")
    alpha.putalpha(Image.fromarray(np.tile(np.arange(320, dtype=np.uint16) % 256, (213, 1)).astype(np.uint8)))
    turned = Image.Exif()
    turned[0x0112] = 6
    made = {
        "rgb.jpg": (image, {"quality": 90}),
        "full-chroma.jpg": (image, {"subsampling": 0}),
        "progressive.jpg": (image, {"progressive": True}),
        "turned.jpg": (image, {"exif": turned}),
        "grey.jpg": (image.convert("L"), {}),
        "cmyk.jpg": (image.convert("CMYK"), {}),
        "rgb.png": (image, {}),
        "grey.png": (image.convert("L"), {}),
        "grey-alpha.png": (alpha.convert("LA"), {}),
        "alpha.png": (alpha, {}),
        "palette.png": (image.quantize(40), {}),
        "palette-transparent.png": (image.quantize(40), {"transparency": 3}),
        "bilevel.png": (image.convert("1"), {}),
        "sixteen.png": (Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257), {}),
        "lossy.webp": (image, {}),
        "lossless.webp": (image, {"lossless": True}),
        "alpha.webp": (alpha, {}),
        "plain.bmp": (image, {}),
        "plain.tif": (image, {}),
        "plain.ppm": (image, {}),
        "grey.pgm": (image.convert("L"), {}),
    }
    files = {}
    for name, (picture, options) in made.items():
        picture.save(folder / name, **options)
        files[name] = str(folder / name)
    return files


@pytest.fixture(scope="session")
def root(photographs, tmp_path_factory):
    """A dataset of 3 domains, 2 classes and 10 images of mixed sizes and formats per domain."""
    folder = tmp_path_factory.mktemp("dataset") / "Pictures"
    for d, domain in enumerate(("art", "photo", "sketch")):
        for number in range(10):
            label = ("cat", "dog")[number % 2]
            path = folder / domain / label / f"{number}.{('jpg', 'png', 'webp')[number % 3]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = (
                photographs[number % 2].rotate(10 * number).resize((40 + 7 * number, 90 - 5 * number - 9 * d))
            )
            picture.save(path)
    return folder
