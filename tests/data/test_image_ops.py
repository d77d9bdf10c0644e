"""The image operator against torchvision's transforms on PIL images, to the bit."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_cases import SCALE, SHIFT, photograph_like, random_arguments
from PIL import Image
from torchvision.transforms import functional as F

from ratfast import image_ops, image_reference, native
from ratfast.image_ops import COLOUR_BITS, normalise_images_, scale_and_shift, transform_images_

# Before version 13, Pillow always resized columns first (see lowers_first in csrc/core/image_formula.h).
COLUMNS_FIRST = int(PIL.__version__.split(".")[0]) < 13


def transformed(arguments, size=(48, 64), dtype=torch.uint8, threads=1, function=transform_images_):
    images, boxes, flips, factors, operations = arguments
    out = torch.full((len(images), *size, 3), 77, dtype=dtype)
    function(out, images, boxes, flips, factors, operations, SCALE, SHIFT, threads=threads)
    return out


def resized(image, height, width):
    zero = torch.zeros(1, dtype=torch.int64)
    box = torch.tensor([[0, 0, *image.shape[:2]]])
    return transformed(([image], box, zero, torch.zeros(1, 4), zero), (height, width))[0].numpy()


@settings(max_examples=300, deadline=None)
@given(*[st.integers(1, 300)] * 4, st.integers(0, 2**32 - 1))
def test_resize_is_pillows(height, width, out_height, out_width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((out_width, out_height), Image.Resampling.BILINEAR))
    found = resized(torch.from_numpy(image), out_height, out_width)
    assert np.abs(found.astype(int) - expected).max() <= (1 if COLUMNS_FIRST else 0)


@pytest.mark.parametrize("size", [(224, 224), (1, 1), (3, 500), (511, 2)])
def test_resize_of_large_images(size):
    image = photograph_like(np.random.default_rng(1), 1777, 2301)
    expected = np.asarray(Image.fromarray(image.numpy()).resize(size[::-1], Image.Resampling.BILINEAR))
    assert np.abs(resized(image, *size).astype(int) - expected).max() <= (1 if COLUMNS_FIRST else 0)


@pytest.mark.parametrize("name", COLOUR_BITS)
@pytest.mark.parametrize("factor", [0.0, 0.3, 0.99, 1.0, 1.3, 5.0])
def test_colours_are_torchvisions(name, factor):
    """At the images' own size, where nothing is resized, and against torchvision's functions in turns and factors."""
    images = [photograph_like(np.random.default_rng(n), 60, 80) for n in range(4)]
    values = {"brightness": factor, "contrast": factor, "saturation": factor, "hue": (factor / 10) % 0.5}
    wrapped = int(np.array(values["hue"] * 255).astype(np.uint8))
    factors = torch.tensor([[*list(values.values())[:3], wrapped]] * 4, dtype=torch.float32)
    operations = torch.full((4,), COLOUR_BITS[name])
    boxes = torch.tensor([[0, 0, 60, 80]] * 4)
    out = transformed((images, boxes, torch.zeros(4, dtype=torch.int64), factors, operations), (60, 80))
    for image, found in zip(images, out, strict=True):
        picture = Image.fromarray(image.numpy())
        if name == "grayscale":
            expected = F.to_grayscale(picture, 3)
        else:
            expected = getattr(F, f"adjust_{name}")(picture, values[name])
        assert np.array_equal(found.numpy(), np.asarray(expected))


def test_every_colour_and_hue():
    """The hue of all 2^24 colours would take minutes; every 5th level of each channel, and all near-greys."""
    levels = np.arange(0, 256, 5)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    greys = np.clip(
        np.arange(256)[:, None, None] + np.array([[0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 0, 1]]), 0, 255
    )
    colours = np.concatenate([grid, greys.reshape(-1, 3)]).astype(np.uint8)
    image = torch.from_numpy(np.resize(colours, (len(colours) // 64, 64, 3)))
    for shift in (0, 1, 77, 128, 255):
        one = torch.ones(1, dtype=torch.int64)
        arguments = (
            [image],
            torch.tensor([[0, 0, *image.shape[:2]]]),
            0 * one,
            torch.full((1, 4), float(shift)),
            8 * one,
        )
        found = transformed(arguments, tuple(image.shape[:2]))
        assert torch.equal(found, transformed(arguments, tuple(image.shape[:2]), function=_reference))


def _reference(*arguments, threads):
    image_reference.transform_images_(*arguments, threads)


@pytest.mark.parametrize("dtype", image_ops.OUTPUT_DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_all_of_it(dtype, threads):
    arguments = random_arguments(threads, 25)
    found = transformed(arguments, dtype=dtype, threads=threads)
    expected = transformed(arguments, dtype=dtype, function=_reference)
    if COLUMNS_FIRST:
        assert (found.float() - expected.float()).abs().mean() < 0.1
    else:
        assert torch.equal(found, expected)


def many_numbers():
    """Bytes of what both operators make, infinities and NaN among them."""
    images = transformed(random_arguments(9, 30))
    scale, shift = torch.tensor([0.017, torch.inf, -torch.inf]), torch.tensor([-2.1, 3e38, torch.inf])
    return b"".join(
        made.view(torch.uint8).numpy().tobytes()
        for made in (
            images,
            normalised(images),
            normalised(images, torch.bfloat16),
            normalised(images, torch.bfloat16, scale=scale, shift=shift).nan_to_num(5.0),
        )
    )


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same_bits(capability):
    if native.status().cpu_capability is None:
        pytest.skip("no native code")
    code = (
        "import sys; sys.path.insert(0, 'tests/data'); import hashlib, torch, test_image_ops as t;"
        "print(hashlib.sha256(t.many_numbers()).hexdigest())"
    )
    environment = os.environ | {"RATFAST_CPU_CAPABILITY": capability}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == hashlib.sha256(many_numbers()).hexdigest()


def test_parts_of_larger_memory():
    """Rows with gaps between them, crops to the very end, and nothing written beside the output."""
    whole = photograph_like(np.random.default_rng(2), 90, 120)
    view = whole[3:88, 5:117]
    one = torch.ones(1, dtype=torch.int64)
    box = torch.tensor([[40, 60, 45, 52]])
    arguments = ([view], box, one, torch.zeros(1, 4), 0 * one)
    copied = ([view.contiguous()], *arguments[1:])
    room = torch.full((3, 24, 24, 3), 9, dtype=torch.uint8)
    transform_images_(room[1:2], *arguments, SCALE, SHIFT)
    assert torch.equal(room[1], transformed(copied, (24, 24))[0])
    assert (room[0] == 9).all() and (room[2] == 9).all()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"boxes": torch.tensor([[0, 0, 9, 8], [0, 1, 8, 8]])}, "box 1 does not lie"),
        ({"boxes": torch.tensor([[0, 0, 0, 8], [0, 0, 8, 8]])}, "box 0 does not lie"),
        ({"boxes": torch.tensor([[2**62, 0, 2**62, 8], [0, 0, 8, 8]])}, "box 0 does not lie"),
        ({"boxes": torch.zeros(2, 4)}, "boxes"),
        ({"flips": torch.zeros(3, dtype=torch.int64)}, "flips"),
        ({"images": [torch.zeros(9, 8, 3), torch.zeros(8, 8, 3)]}, "image 0"),
        ({"images": [torch.zeros(3, 9, 8, dtype=torch.uint8).permute(1, 2, 0)] * 2}, "side by side"),
        ({"out": torch.zeros(2, 4, 4, 3, dtype=torch.float64)}, "uint8, float32 or bfloat16"),
        ({"out": torch.zeros(2, 3, 4, 4).permute(0, 2, 3, 1)}, "contiguous"),
    ],
)
def test_bad_arguments(change, complaint):
    if native.status().cpu_capability is None:
        pytest.skip("no native code: torchvision refuses in its own words")
    zeros = torch.zeros(2, dtype=torch.int64)
    good = {
        "out": torch.zeros(2, 4, 4, 3),
        "images": [torch.zeros(9, 8, 3, dtype=torch.uint8), torch.zeros(8, 8, 3, dtype=torch.uint8)],
        "boxes": torch.tensor([[0, 0, 9, 8], [0, 0, 8, 8]]),
        "flips": zeros,
        "factors": torch.zeros(2, 4),
        "operations": zeros,
        "scale": SCALE,
        "shift": SHIFT,
    }
    transform_images_(**good)
    with pytest.raises(RuntimeError, match=complaint):
        transform_images_(**(good | change))


def normalised(pixels, dtype=torch.float32, threads=1, scale=SCALE, shift=SHIFT):
    out = torch.full((len(pixels) + 1, *pixels.shape[1:]), 7).to(dtype)
    normalise_images_(out[1:], pixels, scale, shift, threads=threads)
    assert (out[0] == 7).all()
    return out[1:]


def test_normalise_is_torchvisions():
    pixels = torch.arange(256, dtype=torch.uint8).view(4, 8, 8, 1).repeat(1, 1, 1, 3)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    found = normalised(pixels, scale=scale_and_shift(mean, std)[0], shift=scale_and_shift(mean, std)[1])
    expected = F.normalize(pixels.permute(0, 3, 1, 2).float() / 255, mean, std)
    torch.testing.assert_close(found.permute(0, 3, 1, 2), expected, rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
def test_normalise_gives_the_bits_of_the_whole_pass(count, height, width, dtype, threads, seed):
    """Whatever the boundary that images of odd sizes lie on, and that the output lies on."""
    pixels = torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    )
    none = torch.zeros(count, dtype=torch.int64)
    boxes = torch.tensor([[0, 0, height, width]] * count)
    whole = transformed((list(pixels), boxes, none, torch.zeros(count, 4), none), (height, width), dtype)
    assert torch.equal(normalised(pixels, dtype, threads), whole)
    expected = torch.empty_like(whole)
    image_reference.normalise_images_(expected, pixels, SCALE, SHIFT, 1)
    assert torch.equal(whole, expected)


def test_normalise_many_on_threads():
    pixels = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (9, 171, 173, 3), dtype=np.uint8))
    assert torch.equal(normalised(pixels, threads=4), normalised(pixels))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"images": torch.zeros(2, 4, 4, 3)}, "images must be"),
        ({"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8).permute(0, 2, 3, 1)}, "images must be"),
        ({"images": torch.zeros(2, 4, 5, 3, dtype=torch.uint8)}, "shape of out"),
        ({"images": torch.zeros(3, 4, 4, 3, dtype=torch.uint8)}, "out must be"),
        ({"out": torch.zeros(2, 4, 4, 3, dtype=torch.uint8)}, "float32 or bfloat16"),
        ({"out": torch.zeros(2, 4, 4, 3, dtype=torch.float64)}, "float32 or bfloat16"),
        ({"scale": torch.ones(4)}, "scale"),
    ],
)
def test_bad_arguments_of_normalise(change, complaint):
    if native.status().cpu_capability is None:
        pytest.skip("no native code: torch refuses in its own words")
    good = {
        "out": torch.zeros(2, 4, 4, 3),
        "images": torch.zeros(2, 4, 4, 3, dtype=torch.uint8),
        "scale": SCALE,
        "shift": SHIFT,
    }
    normalise_images_(**good)
    with pytest.raises(RuntimeError, match=complaint):
        normalise_images_(**(good | change))


def test_without_native_code():
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); sys.path.insert(0, 'tests/data');"
        "import test_image_ops as t; out = t.transformed(t.random_arguments(4, 3), dtype=t.torch.float32);"
        "print(float(out.double().sum()))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"RATFAST_NATIVE": "0"},
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = transformed(random_arguments(4, 3), dtype=torch.float32, function=_reference)
    assert float(done.stdout.split()[-1]) == pytest.approx(float(expected.double().sum()), rel=1e-9)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", image_ops.OUTPUT_DTYPES)
def test_on_cuda(cuda, dtype):
    arguments = random_arguments(11, 70)
    expected = transformed(arguments, dtype=dtype)
    images, *rest = arguments
    out = torch.empty_like(expected, device=cuda)
    transform_images_(out, [image.to(cuda) for image in images], *rest, SCALE, SHIFT)
    assert torch.equal(out.cpu(), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", image_ops.OUTPUT_DTYPES[1:])
@pytest.mark.parametrize("side", [5, 224])
def test_normalise_on_cuda(cuda, dtype, side):
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (70, side, side, 3), dtype=np.uint8))
    for first in (0, 1):
        images = pixels[first:].contiguous()
        on_device = pixels.to(cuda)[first:]
        out = torch.empty(on_device.shape, dtype=dtype, device=cuda)
        normalise_images_(out, on_device, SCALE, SHIFT)
        assert torch.equal(out.cpu(), normalised(images, dtype))
