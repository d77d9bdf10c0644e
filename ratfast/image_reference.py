"""The operators of images by torchvision on PIL images and by torch: the fallback where no native library loads, and
the oracle of the tests. See `ratfast.image_ops` for the arguments, which nothing here checks.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

COLOUR_BITS = {"brightness": 1, "contrast": 2, "saturation": 4, "hue": 8, "grayscale": 16}
"""The colour operations, in the order they are carried out, and their bits in `operations`."""


def transform_images_(
    out: Tensor,
    images: list[Tensor],
    boxes: Tensor,
    flips: Tensor,
    factors: Tensor,
    operations: Tensor,
    scale: Tensor,
    shift: Tensor,
    threads: int,
) -> None:
    """Crops, resizes, flips, recolours and normalises one image after the other, on the host."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    height, width = out.shape[1:3]
    for n, image in enumerate(images):
        picture = Image.fromarray(image.cpu().numpy())
        box = boxes[n].tolist()
        picture = F.resized_crop(picture, *box, [height, width], InterpolationMode.BILINEAR, antialias=True)
        if flips[n]:
            picture = F.horizontal_flip(picture)
        chosen, (brightness, contrast, saturation, hue) = int(operations[n]), factors[n].tolist()
        if chosen & COLOUR_BITS["brightness"]:
            picture = F.adjust_brightness(picture, brightness)
        if chosen & COLOUR_BITS["contrast"]:
            picture = F.adjust_contrast(picture, contrast)
        if chosen & COLOUR_BITS["saturation"]:
            picture = F.adjust_saturation(picture, saturation)
        if chosen & COLOUR_BITS["hue"]:
            picture = _hue_shifted(picture, int(hue))
        if chosen & COLOUR_BITS["grayscale"]:
            picture = F.rgb_to_grayscale(picture, num_output_channels=3)
        pixels = torch.from_numpy(np.array(picture))
        if out.dtype != torch.uint8:
            pixels = pixels.float() * scale + shift
        out[n] = pixels.to(out.dtype)


def normalise_images_(out: Tensor, images: Tensor, scale: Tensor, shift: Tensor, threads: int) -> None:
    """Scales and shifts, one operation after the other."""
    out.copy_(images.float().mul_(scale.to(out.device)).add_(shift.to(out.device)))


def _hue_shifted(picture: Image.Image, shift: int) -> Image.Image:
    # torchvision's adjust_hue, whose argument in turns would have to round to this shift.
    hue, saturation, value = picture.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(shift)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
