"""Data sets of real photographs for benchmarks: some domains of JPEG files of one size."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageStat

# Debian's package opencv-doc has some 230 photographs; scikit-learn brings two.
FOLDER = Path(os.environ.get("RATFAST_BENCH_PHOTOGRAPHS", "/usr/share/doc/opencv-doc"))


def photographs() -> list[Image.Image]:
    """Colour photographs of at least 0.15 megapixels that are not near-blank."""
    from sklearn.datasets import load_sample_images

    found = [Image.fromarray(image) for image in load_sample_images().images]
    for path in sorted(FOLDER.rglob("*.jp*g")):
        try:
            image = Image.open(path)
            if image.mode == "RGB" and image.width * image.height >= 150_000:
                image.load()
                if ImageStat.Stat(image.convert("L")).stddev[0] >= 25:
                    found.append(image)
        except OSError:
            continue
    return found


def write_dataset(root: Path, width: int, height: int, count: int, domains: int = 3) -> Path:
    """Writes `root/domain?/class?/N.jpg`, `count` files of quality 90 cut from the photographs."""
    sources, rng = photographs(), np.random.default_rng(0)
    for number in range(count):
        image = sources[number % len(sources)]
        factor = max(width / image.width, height / image.height) * rng.uniform(1, 1.3)
        size = (round(image.width * factor) + 1, round(image.height * factor) + 1)
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = rng.integers(0, size[0] - width + 1), rng.integers(0, size[1] - height + 1)
        path = root / f"domain{number % domains}" / f"class{number % 7}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.crop((left, top, left + width, top + height)).save(path, quality=90)
    return root
