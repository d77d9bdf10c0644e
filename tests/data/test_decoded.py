import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from ratfast.data import DecodedCache, decode, scan
from ratfast.data import decoded as module
from ratfast.errors import InputError


def test_decode_is_domainbeds(root, backend_name, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 4)  # several batches, the last one short
    paths = scan(root).domains[0].paths
    told = []
    found = decode(
        paths, 48, backend=backend_name, progress=lambda done, total: told.append((done, total)), threads=1
    )
    assert found.shape == (10, 3, 48, 48) and found.dtype == torch.uint8
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert told == [(4, 10), (8, 10), (10, 10)]
    for path, image in zip(paths, found, strict=True):
        expected = np.asarray(transforms.Resize((48, 48))(Image.open(path).convert("RGB"))).astype(int)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_nothing_to_decode(backend_name):
    assert decode([], 16, backend=backend_name).shape == (0, 3, 16, 16)


def test_bad_size(root):
    for size in (0, -3):
        with pytest.raises(InputError, match="at least 1"):
            decode(scan(root).domains[0].paths, size)


def test_bad_file(root, backend_name, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"text")
    with pytest.raises(InputError, match=r"bad\.jpg is not an image"):
        decode([*scan(root).domains[0].paths, bad], 16, backend=backend_name)


@pytest.fixture
def decodings(monkeypatch):
    """Number of images of each call that decoded something."""
    counts = []
    original = module._decode_rows

    def counting(out, rows, paths, *rest):
        counts.append(len(paths))
        return original(out, rows, paths, *rest)

    monkeypatch.setattr(module, "_decode_rows", counting)
    return counts


def test_each_image_is_decoded_once(root, decodings):
    dataset = scan(root)
    cache = DecodedCache(backend="torchvision")
    whole = decode(dataset.domains[1].paths, 16, backend="torchvision")
    decodings.clear()
    rows = np.array([7, 2, 7, 0])
    found = cache.get(dataset, 1, 16, rows)
    assert torch.equal(found, whole[torch.from_numpy(rows)])
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert decodings == [3]
    assert torch.equal(cache.get(dataset, 1, 16, [2, 0]), whole[[2, 0]])
    assert decodings == [3]
    assert torch.equal(cache.get(dataset, 1, 16), whole)
    assert decodings == [3, 7]
    cache.get(dataset, 1, 20, [0])
    cache.get(dataset, 0, 16, [0])
    assert decodings == [3, 7, 1, 1]
    assert cache.nbytes == 10 * 3 * (16 * 16 * 2 + 20 * 20)
    cache.clear()
    assert cache.nbytes == 0


def test_a_new_scan_of_the_same_folder_is_the_same_dataset(root, decodings):
    cache = DecodedCache(backend="torchvision")
    cache.get(scan(root), 0, 16)
    cache.get(scan(root), 0, 16)
    assert decodings == [10]


def test_memory_limit(root, decodings):
    dataset = scan(root)
    cache = DecodedCache(backend="torchvision", max_bytes=10 * 3 * 16 * 16)
    first = cache.get(dataset, 0, 16)
    for _ in range(2):
        assert torch.equal(
            cache.get(dataset, 1, 16, [3]), decode([dataset.domains[1].paths[3]], 16, backend="torchvision")
        )
    assert torch.equal(cache.get(dataset, 0, 16), first)
    assert cache.nbytes == 10 * 3 * 16 * 16


def test_wrong_index(root):
    with pytest.raises(InputError, match="images 0 to 9, but image 10"):
        DecodedCache().get(scan(root), 0, 16, [10])
    with pytest.raises(InputError, match="but image -1"):
        DecodedCache().get(scan(root), 0, 16, [-1])
    with pytest.raises(InputError, match="no domain 3"):
        DecodedCache().get(scan(root), 3, 16)


def test_after_a_failure_the_image_is_still_missing(root, tmp_path, monkeypatch):
    dataset = scan(root)
    cache = DecodedCache(backend="torchvision")

    def fail(*_):
        raise InputError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(module, "read_image", fail)
        with pytest.raises(InputError, match="broken"):
            cache.get(dataset, 0, 16, [1])
    expected = decode([dataset.domains[0].paths[1]], 16, backend="torchvision")
    assert torch.equal(cache.get(dataset, 0, 16, [1]), expected)


def test_the_first_place_that_has_room(root):
    """The device, then the CPU, then nowhere: on the meta device, which keeps no pixels, in place of a GPU."""
    dataset, size = scan(root), 10 * 3 * 16 * 16
    cache = DecodedCache(device="meta", max_device_bytes=size, max_bytes=size)
    places = [cache._store((str(dataset.root), name, 16), 10) for name in dataset.domain_names]
    assert [None if place is None else place.pixels.device.type for place in places] == ["meta", "cpu", None]
    assert cache.nbytes == 2 * size


@pytest.mark.cuda
def test_on_cuda_and_beside_it(root, cuda):
    dataset, size = scan(root), 10 * 3 * 16 * 16
    cache = DecodedCache(device=cuda, max_device_bytes=size, backend="torchvision")
    kept = [cache.get(dataset, domain, 16, [3, 1]) for domain in range(2)]
    assert [images.device.type for images in kept] == ["cuda", "cpu"]
    for domain, images in enumerate(kept):
        paths = [dataset.domains[domain].paths[i] for i in (3, 1)]
        assert torch.equal(images.cpu(), decode(paths, 16, backend="torchvision"))


def test_evaluation_is_torchvisions_on_the_demonstration(tmp_path, backend_name):
    """To the bit what DomainBed's resize gives on PIL images, hence the same predictions; within 1/255 on average of
    torchvision's antialiased resize of tensors."""
    from ratfast.data import demo

    folder = demo.prepare(tmp_path / "demo")
    dataset = scan(folder / demo.TARGET.name)
    for domain in dataset.domains:
        paths = domain.paths[::9]
        for path, image in zip(paths, decode(paths, 64, backend=backend_name, threads=2), strict=True):
            picture = Image.open(path).convert("RGB")
            assert np.array_equal(image.permute(1, 2, 0), np.asarray(transforms.Resize((64, 64))(picture)))
            pixels = transforms.functional.pil_to_tensor(picture)
            expected = transforms.functional.resize(pixels, [64, 64], antialias=True)
            assert (image.float() - expected.float()).abs().mean() <= 1
