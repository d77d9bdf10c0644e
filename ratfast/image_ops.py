"""The torch operators of images: from uint8 pixels to a batch, in one pass.

`transform_images_` crops, resizes, flips, changes colours and normalises as torchvision's transforms do with PIL
images, to the bit; `normalise_images_` is for images that only have to be normalised. The native libraries register
implementations for the CPU and for CUDA; where they are not loaded, torchvision and torch themselves do it
(`ratfast.image_reference`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ratfast import image_reference, native
from ratfast.image_reference import COLOUR_BITS as COLOUR_BITS

OUTPUT_DTYPES = (torch.uint8, torch.float32, torch.bfloat16)

_library = torch.library.Library("ratfast", "FRAGMENT")
_library.define(
    "transform_images_(Tensor(a!) out, Tensor[] images, Tensor boxes, Tensor flips, Tensor factors, "
    "Tensor operations, Tensor scale, Tensor shift, int threads) -> ()"
)
_library.impl("transform_images_", image_reference.transform_images_, "CompositeExplicitAutograd")
_library.define(
    "normalise_images_(Tensor(a!) out, Tensor images, Tensor scale, Tensor shift, int threads) -> ()"
)
_library.impl("normalise_images_", image_reference.normalise_images_, "CompositeExplicitAutograd")
native.load_torch_libraries()


def transform_images_(
    out: Tensor,
    images: Sequence[Tensor],
    boxes: Tensor,
    flips: Tensor,
    factors: Tensor,
    operations: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    threads: int = 1,
) -> None:
    """Makes a batch of N images: crop, antialiased bilinear resize, flip, colours, normalisation.

    Each step rounds to 8 bits as PIL does, the resize after each of its two axes; contrast is about the mean grey of
    the resized image, after brightness; the hue is shifted in an HSV of 8 bits a channel.

    Args:
        out: (N, H, W, 3) uint8, float32 or bfloat16, contiguous, on the CPU or a CUDA device; written. Values are
            `x * scale[c] + shift[c]` of x from 0 to 255, or x itself in uint8.
        images: N tensors (h, w, 3) uint8 on the device of `out`, each row without gaps.
        boxes: (N, 4) int64 on the CPU, like all that follows: top, left, height and width of the crop, in pixels.
        flips: (N,) int64, nonzero mirrors left and right.
        factors: (N, 4) float32: brightness, contrast and saturation as torchvision's `adjust_*` take them, and the
            hue shift in 256ths of a turn, 0 to 255.
        operations: (N,) int64: the sum of the COLOUR_BITS of what to carry out.
        scale: (3,) float32.
        shift: (3,) float32.
        threads: of the CPU.

    Raises:
        RuntimeError: a tensor has another shape, type or device, or a box does not lie in its image.
    """
    arguments = (out, list(images), boxes, flips, factors, operations, scale, shift, threads)
    if _is_native(out):
        torch.ops.ratfast.transform_images_(*arguments)
    else:
        image_reference.transform_images_(*arguments)


def normalise_images_(out: Tensor, images: Tensor, scale: Tensor, shift: Tensor, *, threads: int = 1) -> None:
    """Normalises images: `x * scale[c] + shift[c]`, the numbers that `transform_images_` makes of the same pixels.

    Args:
        out: (N, H, W, 3) float32 or bfloat16, contiguous, on the CPU or a CUDA device; written.
        images: (N, H, W, 3) uint8, contiguous, on the device of `out`.
        scale: (3,) float32 on the CPU.
        shift: (3,) float32 on the CPU.
        threads: of the CPU.

    Raises:
        RuntimeError: a tensor has another shape, type or device.
    """
    if _is_native(out):
        torch.ops.ratfast.normalise_images_(out, images, scale, shift, threads)
    else:
        image_reference.normalise_images_(out, images, scale, shift, threads)


def scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """What `scale` and `shift` of the operators are for `(x / 255 - mean) / std`.

    Args:
        mean: of each channel of images in [0, 1].
        std: of each channel, likewise.

    Returns:
        Two tensors (3,) float32.
    """
    mean, std = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    return (1 / (255 * std)).float(), (-mean / std).float()


def _is_native(out: Tensor) -> bool:
    """Whether the dispatcher leads to native code that runs; on the CPU it leads to what there is."""
    return not out.is_cuda or (native.covers("cuda") and native.check_cuda(out.device.index or 0))
