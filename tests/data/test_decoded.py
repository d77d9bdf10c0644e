import io
import threading

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


def test_nothing_to_decode(root, backend_name):
    assert decode([], 16, backend=backend_name).shape == (0, 3, 16, 16)
    nothing = DecodedCache(backend=backend_name).get(scan(root), 0, 16, [])
    assert [batch.shape for batch in nothing.split(4)] == [(0, 3, 16, 16)] == [nothing.tensor().shape]


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
    assert torch.equal(found.tensor(), whole[torch.from_numpy(rows)])
    assert found.tensor().is_contiguous(memory_format=torch.channels_last)
    assert len(found) == 4
    assert decodings == [3]
    assert torch.equal(cache.get(dataset, 1, 16, [2, 0]).tensor(), whole[[2, 0]])
    assert decodings == [3]
    assert torch.equal(cache.get(dataset, 1, 16).tensor(), whole)
    assert decodings == [3, 7]
    cache.get(dataset, 1, 20, [0])
    cache.get(dataset, 0, 16, [0])
    assert decodings == [3, 7, 1, 1]
    assert cache.nbytes == 3 * (11 * 16 * 16 + 20 * 20)
    cache.clear()
    assert cache.nbytes == 0


def test_a_new_scan_of_the_same_folder_is_the_same_dataset(root, decodings):
    cache = DecodedCache(backend="torchvision")
    cache.get(scan(root), 0, 16)
    cache.get(scan(root), 0, 16)
    assert decodings == [10]


def test_memory_limit(root, decodings):
    """What is beyond it is decoded batch by batch whenever it is used, never as a whole."""
    dataset = scan(root)
    image = 3 * 16 * 16
    cache = DecodedCache(backend="torchvision", max_bytes=7 * image + 5)
    expected = decode(dataset.domains[0].paths, 16, backend="torchvision")
    decodings.clear()
    rows = [4, 9, 0, 1, 2, 5, 6, 3, 8, 7]
    images = cache.get(dataset, 0, 16, rows)
    assert decodings == [7] and cache.nbytes == 7 * image
    for _ in range(2):
        decodings.clear()
        batches = list(images.split(4))
        assert torch.equal(torch.cat(batches), expected[rows])
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert decodings == [1, 2]
    decodings.clear()
    other = cache.get(dataset, 1, 16, [3])
    assert decodings == [] and cache.nbytes == 7 * image
    assert torch.equal(other.tensor(), decode([dataset.domains[1].paths[3]], 16, backend="torchvision"))


@pytest.mark.parametrize("kept", [0, 4, 7, None])
def test_slices_are_the_images_that_lie_there(root, kept):
    dataset = scan(root)
    limit = None if kept is None else kept * 3 * 16 * 16
    rows = [4, 9, 0, 1, 2, 5, 6, 3, 8, 7]
    images = DecodedCache(backend="torchvision", max_bytes=limit).get(dataset, 0, 16, rows)
    whole = images.tensor()
    for cut in (slice(0, 4), slice(3, 9), slice(8, 12), slice(5, 5), slice(None, 2), slice(2, None)):
        assert len(images[cut]) == len(rows[cut])
        assert torch.equal(images[cut].tensor(), whole[cut])
        assert torch.equal(images[cut][1:3].tensor(), whole[cut][1:3])


def test_the_same_images_again_are_not_copied(root):
    """Nor is any run of consecutive ones, such as the whole domain in its order."""
    dataset = scan(root)
    cache = DecodedCache(backend="torchvision")
    rows = [7, 2, 9, 4, 0]
    first, again = (list(cache.get(dataset, 0, 16, rows).split(2)) for _ in range(2))
    assert [batch.data_ptr() for batch in first] == [batch.data_ptr() for batch in again]
    whole = list(cache.get(dataset, 1, 16).split(4))
    assert whole[1].data_ptr() == whole[0].data_ptr() + 4 * 3 * 16 * 16
    part = next(cache.get(dataset, 1, 16, np.arange(3, 6)).split(4))
    assert part.data_ptr() == whole[0].data_ptr() + 3 * 3 * 16 * 16


def test_leaving_a_decoding_and_a_bad_file_in_it(root, tmp_path, backend_name):
    """Decoding goes on in the background only while somebody takes the batches."""
    for domain in ("a", "b"):
        for number in range(6):
            path = tmp_path / domain / "class" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (number, 0, 0)).save(path)
    dataset = scan(tmp_path)
    cache = DecodedCache(backend=backend_name, max_bytes=0)
    before = threading.active_count()
    batches = cache.get(dataset, 0, 16).split(2)
    assert next(batches)[1, 0, 0, 0] == 1
    batches.close()
    assert threading.active_count() == before
    (tmp_path / "a" / "class" / "4.png").write_bytes(b"text")
    taken = []
    with pytest.raises(InputError, match=r"4\.png is not an image"):
        taken.extend(cache.get(dataset, 0, 16).split(2))
    assert len(taken) == 2
    assert threading.active_count() == before


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
    assert torch.equal(cache.get(dataset, 0, 16, [1]).tensor(), expected)


def test_the_first_place_that_has_room(root, monkeypatch):
    """The device, then the CPU, then nowhere: on the meta device, which keeps no pixels, in place of a GPU."""
    dataset, image = scan(root), 3 * 16 * 16
    cache = DecodedCache(device="meta", max_device_bytes=4 * image, max_bytes=5 * image)
    monkeypatch.setattr(module, "_decode_rows", lambda *_: None)
    monkeypatch.setattr(module, "_open", lambda *_: io.BytesIO())
    images = cache.get(dataset, 0, 16)
    assert [(pixels.device.type, len(pixels)) for pixels, *_ in images._places] == [("meta", 4), ("cpu", 5)]
    assert cache.nbytes == 9 * image
    assert not cache.get(dataset, 1, 16)._places
    unlimited = DecodedCache(device="meta", max_bytes=5 * image).get(dataset, 0, 16)
    assert [(pixels.device.type, len(pixels)) for pixels, *_ in unlimited._places] == [("meta", 10)]


@pytest.mark.cuda
def test_on_cuda_and_beside_it(root, cuda):
    dataset, size = scan(root), 10 * 3 * 16 * 16
    cache = DecodedCache(device=cuda, max_device_bytes=size, backend="torchvision")
    for domain, device in enumerate(("cuda", "cpu")):
        cache.get(dataset, domain, 16)
        images = next(cache.get(dataset, domain, 16).split(10))
        assert images.device.type == device
        assert torch.equal(images.cpu(), decode(dataset.domains[domain].paths, 16, backend="torchvision"))


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
