"""The CUDA image pass, compiled for the host: indexing and arithmetic, where there is no GPU."""

import ctypes

import pytest
import torch
from image_cases import SCALE, SHIFT, random_arguments

from ratfast.image_ops import OUTPUT_DTYPES, normalise_images_, transform_images_

from .conftest import compile_on_host


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> ctypes.CDLL:
    """The library under test."""
    return compile_on_host("image.cu", "image_entry.cpp", tmp_path_factory.mktemp("image"))


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.mark.parametrize("dtype", OUTPUT_DTYPES)
@pytest.mark.parametrize(("count", "size"), [(1, (17, 16)), (5, (40, 31)), (40, (9, 13))])
def test_it_makes_the_cpus_bits(kernels, dtype, count, size):
    images, boxes, flips, factors, operations = random_arguments(count, count, longest=90)
    expected = torch.empty(count, *size, 3, dtype=dtype)
    transform_images_(expected, images, boxes, flips, factors, operations, SCALE, SHIFT)
    found = torch.full((count + 1, *size, 3), 7).to(dtype)
    status = kernels.transform(
        count,
        (ctypes.c_void_p * count)(*[image.data_ptr() for image in images]),
        (ctypes.c_longlong * count)(*[image.stride(0) for image in images]),
        pointer(boxes),
        pointer(flips),
        pointer(factors),
        pointer(operations),
        pointer(found),
        OUTPUT_DTYPES.index(dtype),
        *size,
        pointer(SCALE),
        pointer(SHIFT),
    )
    assert status == 0
    assert torch.equal(found[:count], expected)
    assert (found[count] == 7).all()


@pytest.mark.parametrize("dtype", OUTPUT_DTYPES[1:])
@pytest.mark.parametrize(
    ("count", "size", "offset"), [(1, (1, 1), 0), (2, (3, 5), 0), (3, (64, 64), 0), (3, (64, 63), 1)]
)
def test_normalised_to_the_cpus_bits(kernels, dtype, count, size, offset):
    """In several chunks for the larger ones; from and to memory that lies on no boundary where there is an offset."""
    values = count * size[0] * size[1] * 3
    shape = (count, *size, 3)
    pixels = torch.randint(0, 256, (values + offset,), dtype=torch.uint8)[offset:]
    expected = torch.empty(shape, dtype=dtype)
    normalise_images_(expected, pixels.view(shape), SCALE, SHIFT)
    room = torch.full((values + offset + 8,), 7).to(dtype)
    found = room[offset:]
    code = OUTPUT_DTYPES.index(dtype)
    status = kernels.normalise(
        pointer(pixels), count, pointer(found), code, *size, pointer(SCALE), pointer(SHIFT)
    )
    assert status == 0
    assert torch.equal(found[:values].view(shape), expected)
    assert (found[values:] == 7).all() and (room[:offset] == 7).all()
