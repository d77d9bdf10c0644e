"""Both decoders, and the pass behind them, against DomainBed's operations on PIL images: to the bit, on the CPU."""

import dataclasses
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from ratfast.data import Augmentation
from ratfast.data.augmentation import draw_augmentation
from ratfast.data.backend import _open_decoder, open_backend
from ratfast.data.files import read_image
from ratfast.errors import InputError

SIZE = 64
PLAIN = Augmentation(brightness=0, contrast=0, saturation=0, hue=0, grayscale=0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def open_for_test(name, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=SIZE, dtype=torch.float32):
    return open_backend(name, image_size=size, max_batch=64, mean=mean, std=std, dtype=dtype, threads=2)


@pytest.fixture(scope="module")
def images(formats):
    return [read_image(path) for path in formats.values()]


@pytest.fixture
def backend(backend_name):
    opened = open_for_test(backend_name)
    yield opened
    opened.close()


def test_resize_is_domainbeds(backend, formats, images):
    expected_transform = transforms.Resize((SIZE, SIZE))
    found = backend.resize(images)
    assert found.dtype == torch.uint8 and found.shape == (len(images), 3, SIZE, SIZE)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for (name, path), image in zip(formats.items(), found, strict=True):
        expected = np.asarray(expected_transform(Image.open(path).convert("RGB"))).astype(int)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected), name


def augmented(path, draws, row, operations):
    """The reference: DomainBed's operations on one PIL image."""
    functional = transforms.functional
    image = Image.open(path).convert("RGB")
    image = functional.resized_crop(image, *draws.box(row, image.height, image.width), [SIZE, SIZE])
    if draws.flip[row]:
        image = functional.hflip(image)
    for name in operations:
        adjust = getattr(functional, f"adjust_{name}", None)
        if adjust is not None:
            image = adjust(image, float(getattr(draws, name)[row]))
        elif draws.grayscale[row]:
            image = functional.to_grayscale(image, 3)
    return np.asarray(image).astype(int)


ALL = ("brightness", "contrast", "saturation", "hue", "grayscale")


@pytest.mark.parametrize(
    "operations", [(), ("brightness",), ("contrast",), ("saturation",), ("hue",), ("grayscale",), ALL]
)
def test_augmentation_is_torchvisions(backend, formats, images, operations):
    values = {"grayscale": 0.5} if operations == ("grayscale",) else {}
    values |= {name: 0.3 for name in operations if name != "grayscale"}
    draws = draw_augmentation(dataclasses.replace(PLAIN, **values), 5, 1, len(images))
    found = (backend.augment(images, draws) * 255).permute(0, 2, 3, 1).numpy()
    for row, (name, path) in enumerate(formats.items()):
        expected = augmented(path, draws, row, operations)
        assert np.abs(found[row] - expected).max() < 1e-3, name


def test_bfloat16_is_float32_rounded(backend_name, images):
    draws = draw_augmentation(Augmentation(), 5, 1, len(images))
    wide = open_for_test(backend_name, MEAN, STD)
    narrow = open_for_test(backend_name, MEAN, STD, dtype=torch.bfloat16)
    found = narrow.augment(images, draws)
    assert found.dtype == torch.bfloat16 and found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, wide.augment(images, draws).bfloat16())


def test_decoded_before(backend, formats, images):
    pixels = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))) for path in formats.values()]
    draws = draw_augmentation(Augmentation(), 5, 1, len(images))
    assert torch.equal(backend.augment_decoded(pixels, draws), backend.augment(images, draws))


@pytest.mark.parametrize("side", [1, 100, 212, 213, 500])
def test_shrink_is_torchvisions_resize(backend, formats, images, side):
    for (name, path), found in zip(formats.items(), backend.shrink(images, side), strict=True):
        expected = Image.open(path).convert("RGB")
        if side < min(expected.size):
            expected = transforms.Resize(side)(expected)
        assert np.array_equal(found.numpy(), np.asarray(expected)), name


def test_normalisation(backend_name, images):
    draws = draw_augmentation(PLAIN, 0, 0, len(images))
    raw, normalised = open_for_test(backend_name), open_for_test(backend_name, MEAN, STD)
    expected = transforms.functional.normalize(raw.augment(images, draws), MEAN, STD)
    found = normalised.augment(images, draws)
    assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_decoders_make_the_same_batch(images):
    pytest.importorskip("nvidia.dali")
    draws = draw_augmentation(Augmentation(), 11, 3, len(images))
    one, other = (open_for_test(name).augment(images, draws) for name in ("dali", "torchvision"))
    assert torch.equal(one, other)


def test_images_of_one_pixel_and_one_row(backend, tmp_path):
    paths = []
    for width, height in ((1, 1), (1, 40), (300, 1), (3, 2)):
        paths.append(tmp_path / f"{width}x{height}.png")
        Image.new("RGB", (width, height), (200, 100, 50)).save(paths[-1])
    tiny = [read_image(path) for path in paths]
    draws = draw_augmentation(PLAIN, 0, 0, len(tiny))
    expected = torch.tensor([200.0, 100.0, 50.0]).view(1, 3, 1, 1).expand(4, 3, SIZE, SIZE)
    torch.testing.assert_close(backend.resize(tiny).float(), expected)
    torch.testing.assert_close(backend.augment(tiny, draws) * 255, expected)


def test_the_same_batch_twice(backend, images):
    draws = draw_augmentation(Augmentation(), 1, 1, len(images))
    first = backend.augment(images, draws)
    backend.augment(images[:3], draw_augmentation(Augmentation(), 1, 2, 3))
    assert torch.equal(first, backend.augment(images, draws))


def test_a_file_that_only_fails_in_the_decoder(backend, images, formats, tmp_path):
    path = tmp_path / "damaged.png"
    with open(formats["rgb.png"], "rb") as file:
        data = bytearray(file.read())
    start = data.index(b"IDAT") + 4
    data[start : start + 2000] = bytes(2000)  # whole by its ends, garbage within
    path.write_bytes(data)
    damaged = [*images[:2], read_image(path), *images[2:4]]
    with pytest.raises(InputError, match=r"damaged\.png cannot be decoded"):
        backend.resize(damaged)
    with pytest.raises(InputError, match=r"damaged\.png cannot be decoded"):
        backend.augment(damaged, draw_augmentation(Augmentation(), 0, 0, 5))
    assert backend.resize(images[:2]).shape[0] == 2  # still usable


def test_what_dali_refuses_pil_decodes(images, photographs, tmp_path):
    pytest.importorskip("nvidia.dali")
    photographs[0].save(tmp_path / "odd.gif")
    odd = read_image(tmp_path / "odd.gif")
    disguised = dataclasses.replace(odd, format="PNG", mode="RGB")  # handed to DALI as it is
    backend = open_for_test("dali")
    batch = [*images[:2], disguised]
    expected = open_for_test("torchvision").resize(batch).float()
    for _ in range(2):
        assert (backend.resize(batch).float() - expected).abs().mean() < 0.3
    draws = draw_augmentation(PLAIN, 0, 0, 3)
    assert backend.augment(batch, draws).shape == (3, 3, SIZE, SIZE)


def test_names():
    assert open_for_test("torchvision").name == "torchvision"
    with pytest.raises(InputError, match=r"'pillow'.*auto, dali, torchvision"):
        open_for_test("pillow")
    with pytest.raises(InputError, match="at least 1"):
        open_for_test("torchvision", size=0)
    with pytest.raises(InputError, match=r"torch\.float16"):
        open_for_test("torchvision", dtype=torch.float16)


def decoder_for(name, device):
    with ThreadPoolExecutor(1) as pool:
        return _open_decoder(name, 4, torch.device(device), 1, pool)


def test_auto_takes_dali_on_gpus_alone(monkeypatch):
    dali_decoder = pytest.importorskip("ratfast.data.dali_decoder")
    monkeypatch.setattr(dali_decoder.DaliDecoder, "__init__", lambda *_: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoder_for("auto", "cuda").name == "dali"
        assert decoder_for("auto", "cpu").name == "torchvision"


def test_without_dali(monkeypatch):
    monkeypatch.setitem(sys.modules, "ratfast.data.dali_decoder", None)  # importing it fails
    assert decoder_for("auto", "cuda").name == "torchvision"
    with pytest.raises(InputError, match="nvidia-dali"):
        open_for_test("dali")


def test_dali_that_does_not_start(monkeypatch):
    dali_decoder = pytest.importorskip("ratfast.data.dali_decoder")

    def fail(*_):
        raise RuntimeError("no driver")

    monkeypatch.setattr(dali_decoder.DaliDecoder, "__init__", fail)
    with pytest.warns(UserWarning, match=r"DALI does not start \(no driver\)") as caught:
        assert decoder_for("auto", "cuda").name == "torchvision"
    assert len(caught) == 1
    with pytest.raises(RuntimeError, match="no driver"):
        open_for_test("dali")


def test_without_torchvisions_decoder(monkeypatch, images):
    from ratfast.data import torchvision_decoder

    expected = open_for_test("torchvision").resize(images)
    monkeypatch.setattr(torchvision_decoder, "_jpeg_operator", lambda: None)
    assert torch.equal(open_for_test("torchvision").resize(images), expected)


def test_the_gpu_pipeline_stays_on_the_gpu():
    """Its graph can be checked without a GPU, up to running it."""
    dali_decoder = pytest.importorskip("ratfast.data.dali_decoder")
    from nvidia.dali import Pipeline

    with Pipeline(batch_size=4, num_threads=1, device_id=None, prefetch_queue_depth=1, exec_dynamic=True):
        assert dali_decoder._decoded(on_gpu=True).device == "gpu"


@pytest.mark.cuda
def test_dali_on_cuda(cuda, images):
    pytest.importorskip("nvidia.dali")
    on_gpu = open_backend("dali", image_size=SIZE, max_batch=64, device=cuda, threads=2)
    on_cpu = open_for_test("torchvision")
    draws = draw_augmentation(Augmentation(), 11, 3, len(images))
    found, expected = on_gpu.augment(images, draws), on_cpu.augment(images, draws)
    assert found.device == cuda and found.is_contiguous(memory_format=torch.channels_last)
    assert ((found.cpu() - expected) * 255).abs().mean() < 3.0
    resized, expected = on_gpu.resize(images), on_cpu.resize(images)
    assert (resized.cpu().float() - expected.float()).abs().mean() < 1.5
    assert torch.equal(found, on_gpu.augment(images, draws))
