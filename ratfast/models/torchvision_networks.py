"""torchvision's image classifiers without their last layer."""

from __future__ import annotations

import difflib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import URLError

import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import interpolate_embeddings
from torchvision.ops import StochasticDepth

from ratfast.errors import InputError
from ratfast.models.classifier import Featurizer
from ratfast.models.registry import IMAGENET, TORCHVISION, Normalisation

_DOWNLOAD_TIMEOUT_SECONDS = 30.0
_CLASSES = 1000  # of every network here, as torchvision makes them


def make(name: str, image_size: int) -> Featurizer:
    """The network called `name`, randomly initialised, its last linear layer replaced by the identity.

    Its own dropout and stochastic depth are switched off: regularisation is the recipe's.

    Raises:
        InputError: torchvision has no such classifier, or it cannot take images of this size.
    """
    plain = _plain(name)
    options: dict[str, Any] = {}
    if plain.startswith("vit_"):
        options["image_size"] = image_size
    elif plain.startswith("maxvit"):
        options["input_size"] = (image_size, image_size)
    elif plain in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    try:
        network = torchvision.models.get_model(plain, weights=None, **options)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(f"the backbone {name} cannot take images of {image_size} pixels: {error}") from error
    for module in network.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.0
    heads = [
        (path, module)
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == _CLASSES
    ]
    if not heads:
        raise InputError(f"the backbone {name} has no linear layer at its end, expected another")
    path, head = heads[-1]
    parent, _, last = path.rpartition(".")
    setattr(network.get_submodule(parent), last, nn.Identity())
    return Featurizer(network, head.in_features, head=path)


def normalisation(name: str) -> Normalisation:
    """What the images must be normalised with: as for the pre-trained weights."""
    preset = _weights(_plain(name)).transforms()
    mean, std = getattr(preset, "mean", IMAGENET.mean), getattr(preset, "std", IMAGENET.std)
    return Normalisation(tuple(mean), tuple(std))


def default_state(name: str, image_size: int) -> dict[str, Tensor]:
    """The ImageNet weights, by torchvision's own download: `IMAGENET1K_V1`, which the paper started from.

    Where there are none of that name, the first that torchvision lists. A vision transformer's position embeddings are
    interpolated to the size of the images.

    Raises:
        InputError: the file is neither in torch's cache nor to be downloaded.
    """
    weights = _weights(_plain(name))
    try:
        with _socket_timeout(_DOWNLOAD_TIMEOUT_SECONDS):
            state = weights.get_state_dict(progress=False, check_hash=True)
    except PermissionError:
        raise
    except (URLError, OSError, RuntimeError, EOFError) as error:
        reason = str(getattr(error, "reason", "") or error or type(error).__name__).rstrip(".")
        raise InputError(
            f"the ImageNet weights of {name} could not be downloaded from {weights.url} ({reason}); "
            "pass a weights file with --weights PATH"
        ) from error
    if "encoder.pos_embedding" in state:
        state = interpolate_embeddings(image_size, state["conv_proj.weight"].shape[-1], state)
    return state


def _plain(name: str) -> str:
    plain = name.removeprefix(TORCHVISION)
    known = torchvision.models.list_models(module=torchvision.models)
    if plain in known:
        return plain
    nearest = difflib.get_close_matches(plain, known, n=1)
    hint = f"; did you mean {TORCHVISION + nearest[0]!r}?" if nearest else ""
    raise InputError(f"torchvision has no image classifier {plain!r}{hint}")


def _weights(plain: str) -> Any:
    found = torchvision.models.get_model_weights(plain)
    return next((weights for weights in found if weights.name == "IMAGENET1K_V1"), next(iter(found)))


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Bounds the wait for a connection: torch's download sets no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
