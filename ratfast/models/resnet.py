"""torchvision's ResNets (He et al. 2015, arXiv 1512.03385) without their last layer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import URLError

import torchvision
from torch import Tensor, nn

from ratfast.errors import InputError
from ratfast.models.classifier import Featurizer

_DOWNLOAD_TIMEOUT_SECONDS = 30.0


def make(name: str) -> Featurizer:
    """The ResNet called `name`, randomly initialised, its `fc` replaced by the identity."""
    network = torchvision.models.get_model(name, weights=None)
    n_outputs = network.fc.in_features
    network.fc = nn.Identity()
    return Featurizer(network, n_outputs)


def default_state(name: str) -> dict[str, Tensor]:
    """The ImageNet weights that the paper started from (`IMAGENET1K_V1`), by torchvision's own download.

    Raises:
        InputError: the file is neither in torch's cache nor to be downloaded.
    """
    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    try:
        with _socket_timeout(_DOWNLOAD_TIMEOUT_SECONDS):
            return weights.get_state_dict(progress=False, check_hash=True)
    except PermissionError:
        raise
    except (URLError, OSError, RuntimeError, EOFError) as error:
        reason = str(getattr(error, "reason", "") or error or type(error).__name__).rstrip(".")
        raise InputError(
            f"the ImageNet weights of {name} could not be downloaded from {weights.url} ({reason}); "
            "pass a weights file with --weights PATH"
        ) from error


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Bounds the wait for a connection: torch's download sets no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
