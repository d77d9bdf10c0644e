"""A tiny set of data sets, and a recipe that trains on them in seconds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ratfast import config

CLASSES = ("blue", "green", "red")
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220)}


def write_dataset(root: Path, domains: tuple[str, ...], images: int = 5, seed: int = 0) -> None:
    """Squares of a colour (the class) on a gray of its own per domain, with noise."""
    random = np.random.default_rng(seed)
    for number, domain in enumerate(domains):
        for label in CLASSES:
            folder = root / domain / label
            folder.mkdir(parents=True)
            for index in range(images):
                pixels = random.normal(60 + 50 * number, 25, (24, 24, 3))
                pixels[6:18, 6:18] = COLOURS[label] + random.normal(0, 25, (12, 12, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`Shapes` (three domains), `Near` and `Far` (two each)."""
    root = tmp_path_factory.mktemp("data")
    write_dataset(root / "Shapes", ("dark", "grey", "light"))
    write_dataset(root / "Near", ("one", "two"), seed=1)
    write_dataset(root / "Far", ("one", "two"), seed=2)
    return root


@pytest.fixture(scope="session")
def backbone_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a ResNet-18 in place of pre-trained ones."""
    import torchvision

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


def tiny_values(data_dir: Path, backbone_file: Path, output: Path) -> dict:
    """The recipe's values as a mapping of sections."""
    return {
        "data": {
            "dir": str(data_dir),
            "target": "Shapes",
            "test_env": 1,
            "aux": ["Far", "Near"],
            "image_size": 32,
            "holdout_fraction": 0.4,
            "backend": "torchvision",
        },
        "model": {"backbone": "resnet18", "weights": str(backbone_file)},
        "train": {
            "batch_size": 2,
            "steps": 3,
            "head_steps": 2,
            "eval_every": 2,
            "runs": 3,
            "aux_runs": 1,
            "lr_scale": 20.0,
            "device": "cpu",
        },
        "output": {"dir": str(output)},
    }


def smallest_values(data_dir: Path, folder: Path) -> dict:
    """Values of a recipe with one auxiliary data set and two members whose network is a megabyte.

    Args:
        data_dir: of the images.
        folder: where the network's initial weights are written; the output folder is `output` of wherever it runs.
    """
    import torchvision

    torch.manual_seed(0)
    weights = folder / "shufflenet.pth"
    torch.save(torchvision.models.shufflenet_v2_x0_5().state_dict(), weights)
    values = tiny_values(data_dir, weights, Path("output"))
    values["model"]["backbone"] = "torchvision/shufflenet_v2_x0_5"
    values["data"]["aux"] = ["Near"]
    values["train"] |= {"threads": 1, "runs": 2}
    return values


@pytest.fixture
def recipe(data_dir: Path, backbone_file: Path, tmp_path: Path) -> config.Recipe:
    """A recipe of one target, two auxiliary data sets and three members."""
    return config.from_dict(tiny_values(data_dir, backbone_file, tmp_path / "output"))
