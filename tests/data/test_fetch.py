"""Fetching data sets from a server on this machine, published as the real ones are."""

import gzip
import io
import json
import random
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from ratfast import catalogue
from ratfast.cli import main as cli
from ratfast.data import scan
from ratfast.data.fetching import download as downloading
from ratfast.data.fetching import fetch, sources
from ratfast.data.fetching.download import Source
from ratfast.data.fetching.fetch import WORK
from ratfast.errors import InputError

from .published import answering, dropping, publishing


@pytest.fixture
def site(monkeypatch):
    """A server, whose files are the published ones of every data set: `site.files["/NAME"]`."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(downloading, "FIRST_PAUSE_SECONDS", 0.001)
    with publishing() as opened:
        here = {
            name: tuple(Source(source.file, (opened.url(f"/{source.file}"),)) for source in files)
            for name, files in sources.SOURCES.items()
        }
        for name, files in here.items():
            monkeypatch.setitem(sources.SOURCES, name, files)
        yield opened


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def images(entry: catalogue.Description, top: str, each: int = 2) -> dict[str, bytes]:
    """`each` files of every class of every domain, below `top`."""
    classes = entry.classes or [f"class{i}" for i in range(entry.class_count or 3)]
    return {
        f"{top}{domain}/{label}/{number}.jpg": f"{domain}/{label}/{number}".encode()
        for domain in entry.domains
        for label in classes
        for number in range(each)
    }


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "top", "more", "pack"),
    [
        (
            "PACS",
            "kfold/",
            {"__MACOSX/kfold/photo/dog/._0.jpg": b"", "kfold/photo/dog/Thumbs.db": b""},
            zipped,
        ),
        ("VLCS", "VLCS/", {}, tarred),
        (
            "OfficeHome",
            "OfficeHomeDataset_10072016/",
            {"OfficeHomeDataset_10072016/ImageInfo.csv": b"a"},
            zipped,
        ),
        ("SVIRO", "SVIRO_DOMAINBED/", {}, zipped),
        ("PACS", "", {"readme.txt": b""}, tarred),
    ],
)
def test_archives_become_domainbeds_folders(site, tmp_path, name, top, more, pack):
    entry = catalogue.find(name)
    file = sources.SOURCES[name][0].file
    site.files[f"/{file}"] = pack(images(entry, top) | more)
    found = fetch(entry.folder, tmp_path / "new")
    assert not found.structure and found.name == name
    assert [path.name for path in (tmp_path / "new").iterdir()] == [entry.folder]
    assert content(tmp_path / "new" / entry.folder) == images(entry, "")
    dataset = scan(tmp_path / "new" / entry.folder)
    assert dataset.domain_names == entry.domains
    assert not entry.classes or dataset.classes == entry.classes
    with pytest.raises(InputError, match="is there already, expected no such folder; `ratfast data check"):
        fetch(name, tmp_path / "new")


def test_domain_net_is_made_without_the_duplicates(site, tmp_path):
    entry = catalogue.find("DomainNet")
    every = images(entry, "")
    duplicates = random.Random(0).sample(sorted(every), 50)
    duplicates = [path for path in duplicates if not path.endswith("0.jpg")]  # leaving one of each class
    site.files["/domain_net_duplicates.txt"] = "\n".join([*duplicates, "sketch/gone/1.jpg", ""]).encode()
    for domain in entry.domains:
        site.files[f"/{domain}.zip"] = zipped(
            {path: data for path, data in every.items() if path.startswith(domain)}
        )
    fetch("domain_net", tmp_path)
    assert content(tmp_path / "domain_net") == {
        path: data for path, data in every.items() if path not in duplicates
    }


def camera_traps(seed: int = 0) -> tuple[list[dict], dict[str, bytes]]:
    """Five annotation files, and pictures: some of other places, of other classes, of two classes, without a class."""
    draw = random.Random(seed)
    entry = catalogue.find("TerraIncognita")
    names = [*entry.classes, "badger", "car"]
    categories = [{"id": number * 7, "name": name} for number, name in enumerate(names)]
    files = [{"categories": categories, "images": [], "annotations": []} for _ in range(5)]
    pictures = {}
    wanted = [(int(d.removeprefix("location_")), c) for d in entry.domains for c in range(len(entry.classes))]
    extra = [(draw.choice([38, 46, 100, 43, 7, 120]), draw.randrange(len(names))) for _ in range(200)]
    for number, (location, label) in enumerate(wanted + extra):
        key, place = f"id{number}", draw.choice(files)
        place["images"].append({"id": key, "file_name": f"{key}.jpg", "location": location})
        labels = [label, *draw.choices(range(len(names)), k=draw.choice([0, 0, 0, 1, 2]))]
        if number >= len(wanted) and draw.random() < 0.1:
            labels = []
        for each in labels:
            draw.choice(files)["annotations"].append({"image_id": key, "category_id": each * 7})
        pictures[f"eccv_18_all_images_sm/{key}.jpg"] = key.encode()
    return files, pictures


def as_published_for_camera_traps(files: list[dict], pictures: dict[str, bytes]) -> dict[str, bytes]:
    """DomainBed's way, in its own loops: every annotation of an image in an included place copies it to its class."""
    included = {"bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel"}
    annotations = [each for file in files for each in file["annotations"]]
    name_of = {each["id"]: each["name"] for file in files for each in file["categories"]}
    made = {}
    for image in (each for file in files for each in file["images"]):
        if str(image["location"]) in ["38", "46", "100", "43"]:
            for each in annotations:
                if each["image_id"] == image["id"] and name_of[each["category_id"]] in included:
                    place = (
                        f"location_{image['location']}/{name_of[each['category_id']]}/{image['file_name']}"
                    )
                    made[place] = pictures[f"eccv_18_all_images_sm/{image['file_name']}"]
    return made


def test_camera_traps_are_sorted_by_their_annotations(site, tmp_path):
    files, pictures = camera_traps()
    names = ("cis_test", "cis_val", "train", "trans_test", "trans_val")
    notes = {
        f"eccv_18_annotation_files/{name}_annotations.json": json.dumps(file).encode()
        for name, file in zip(names, files, strict=True)
    }
    site.files["/eccv_18_annotations.tar.gz"] = tarred(notes)
    site.files["/eccv_18_all_images_sm.tar.gz"] = tarred(pictures)
    found = fetch("TerraIncognita", tmp_path)
    expected = as_published_for_camera_traps(files, pictures)
    assert content(tmp_path / "terra_incognita") == expected
    assert found.images == len(expected) and not found.structure


@pytest.mark.parametrize("broken", [b"{", b"[]", b'{"images": []}', b'{"categories": [{"id": 1}]}', b"\xff"])
def test_annotations_of_another_form(site, tmp_path, broken):
    site.files["/eccv_18_annotations.tar.gz"] = tarred({"a/train.json": broken})
    site.files["/eccv_18_all_images_sm.tar.gz"] = tarred({})
    with pytest.raises(InputError, match=r"train\.json is not as the annotations"):
        fetch("TerraIncognita", tmp_path)
    assert not (tmp_path / "terra_incognita").exists()


def test_annotations_do_not_lead_out(site, tmp_path):
    files, pictures = camera_traps()
    files[0]["images"].append({"id": "id0", "file_name": "../../../evil.jpg", "location": 38})
    site.files["/eccv_18_annotations.tar.gz"] = tarred({"a/a.json": json.dumps(files[0]).encode()})
    site.files["/eccv_18_all_images_sm.tar.gz"] = tarred(pictures | {"x/evil.jpg": b""})
    with pytest.raises(InputError):
        fetch("TerraIncognita", tmp_path / "in")
    assert not list(tmp_path.rglob("evil.jpg"))


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def digits(site):
    """600 digits as MNIST is published; each image can be told from the others."""
    made = np.random.default_rng(0)
    pictures = made.integers(1, 256, (600, 28, 28))
    labels = np.arange(600) % 10
    for start, stop, part in ((0, 500, "train"), (500, 600, "t10k")):
        site.files[f"/{part}-images-idx3-ubyte.gz"] = idx(pictures[start:stop])
        site.files[f"/{part}-labels-idx1-ubyte.gz"] = idx(labels[start:stop])
    return pictures.astype(np.uint8), labels


def test_rotated_mnist(digits, tmp_path):
    pictures, labels = digits
    fetch("RotatedMNIST", tmp_path)
    dataset = scan(tmp_path / "RotatedMNIST")
    assert dataset.domain_names == ("0", "15", "30", "45", "60", "75")
    assert [len(domain) for domain in dataset.domains] == [100] * 6
    plain = {picture.tobytes(): number for number, picture in enumerate(pictures)}
    upright = dataset.domains[0]
    numbers = [plain[np.asarray(Image.open(path)).tobytes()] for path in upright.paths]
    assert labels[numbers].tolist() == upright.labels.tolist()  # unturned, each is one of MNIST's own
    assert len(set(numbers)) == 100
    turned = {
        np.asarray(
            rotate(Image.fromarray(picture), 45, InterpolationMode.BILINEAR, fill=(0,))
        ).tobytes(): label
        for picture, label in zip(pictures, labels, strict=True)
    }
    for path, label in zip(dataset.domains[3].paths, dataset.domains[3].labels, strict=True):
        assert turned[np.asarray(Image.open(path)).tobytes()] == label


def test_colored_mnist(digits, tmp_path):
    pictures, labels = digits
    fetch("ColoredMNIST", tmp_path)
    dataset = scan(tmp_path / "ColoredMNIST")
    assert dataset.domain_names == ("+80%", "+90%", "-90%") and dataset.classes == ("0", "1")
    plain = {picture.tobytes(): number for number, picture in enumerate(pictures)}
    seen = []
    for domain, agreement in zip(dataset.domains, (0.8, 0.9, 0.1), strict=True):
        colours, truths = [], []
        for path in domain.paths:
            pixels = np.asarray(Image.open(path))
            channel = int(pixels[:, :, 1].any())
            assert not pixels[:, :, [1 - channel, 2]].any()
            number = plain[pixels[:, :, channel].tobytes()]
            seen.append(number)
            colours.append(channel)
            truths.append(labels[number] < 5)
        # Five standard deviations of 200 draws.
        assert abs(np.mean(np.array(colours) == domain.labels) - agreement) < 5 * np.sqrt(0.16 / 200)
        assert abs(np.mean(np.array(truths) == domain.labels) - 0.75) < 5 * np.sqrt(0.1875 / 200)
    assert sorted(seen) == list(range(600))


def test_mnist_is_the_same_every_time_and_its_files_are_judged(digits, site, tmp_path):
    for folder in ("one", "two"):
        fetch("ColoredMNIST", tmp_path / folder)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    for broken in (b"", b"\x1f\x8b broken", b"\0\0\x08\x03" + b"\0" * 12 + b"x", idx(np.zeros((3, 3)))):
        site.files["/t10k-images-idx3-ubyte.gz"] = broken
        with pytest.raises(InputError):
            fetch("RotatedMNIST", tmp_path / "three")
        for file in (tmp_path / "three" / f"{WORK}RotatedMNIST").glob("t10k-images*"):
            file.unlink()
    assert not (tmp_path / "three" / "RotatedMNIST").exists()


def test_known_checksums_are_the_published_ones():
    from torchvision.datasets import MNIST

    published = {file: f"md5:{md5}" for file, md5 in MNIST.resources}
    assert {source.file: source.checksum for source in sources.SOURCES["RotatedMNIST"]} == published
    assert set(sources.SOURCES) == {entry.name for entry in catalogue.CATALOGUE}
    files = [source for each in sources.SOURCES.values() for source in each]
    assert all(url.startswith(("https://", "http://")) for source in files for url in source.urls)


PACS = catalogue.find("PACS")


def test_an_interrupted_fetch_continues(site, tmp_path, monkeypatch):
    site.files["/PACS.zip"] = zipped(images(PACS, "kfold/", each=30))
    size = len(site.files["/PACS.zip"])
    site.behave["/PACS.zip"] = dropping(size // 2)
    monkeypatch.setattr(downloading, "ATTEMPTS", 1)
    with pytest.raises(InputError, match=r"the same command again continues.*--from FILE"):
        fetch("PACS", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{WORK}PACS"]
    assert not catalogue.find_folder(tmp_path, "PACS").exists()
    stale = tmp_path / f"{WORK}PACS" / "unpacked" / "photo" / "dog" / "stale.jpg"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an earlier unpacking")
    fetch("PACS", tmp_path)
    assert site.asked("/PACS.zip") == [None, f"bytes={size // 2}-"]
    assert content(tmp_path / "PACS") == images(PACS, "", each=30)
    assert [path.name for path in tmp_path.iterdir()] == ["PACS"]


def test_a_damaged_archive_is_downloaded_again(site, tmp_path):
    whole = zipped(images(PACS, "kfold/"))
    for broken in (whole[: len(whole) // 2], b"<!DOCTYPE html><html>Sorry</html>"):
        site.files["/PACS.zip"] = broken
        with pytest.raises(InputError, match=r"PACS\.zip cannot be unpacked"):
            fetch("PACS", tmp_path)
        assert not (tmp_path / "PACS").exists()
    site.files["/PACS.zip"] = whole
    fetch("PACS", tmp_path)
    assert content(tmp_path / "PACS") == images(PACS, "")


def test_an_archive_of_something_else_makes_no_folder(site, tmp_path):
    files = {path: data for path, data in images(PACS, "kfold/").items() if "sketch" not in path}
    site.files["/PACS.zip"] = zipped(files)
    with pytest.raises(InputError, match=r"do not hold it: the domain sketch is missing; .*PACS is not made"):
        fetch("PACS", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{WORK}PACS"]


def test_an_archive_that_leads_out_makes_nothing(site, tmp_path):
    site.files["/PACS.zip"] = zipped(images(PACS, "kfold/") | {"kfold/../../../photo/dog/x.jpg": b"evil"})
    with pytest.raises(InputError, match="leads out of its folder"):
        fetch("PACS", tmp_path / "in")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == [f"{WORK}PACS"]


def test_a_dead_source_and_an_archive_from_elsewhere(site, tmp_path):
    site.behave["/PACS.zip"] = answering(404)
    with pytest.raises(InputError, match=r"answers 404 .*With PACS\.zip from elsewhere, .*--from FILE"):
        fetch("PACS", tmp_path)
    archive = tmp_path / "mine.zip"
    archive.write_bytes(zipped(images(PACS, "PACS/")))
    fetch("PACS", tmp_path, given=[str(archive)])
    assert content(tmp_path / "PACS") == images(PACS, "") and archive.is_file()
    site.files["/mirror"] = archive.read_bytes()
    fetch("PACS", tmp_path / "two", given=[site.url("/mirror")], keep=True)
    assert (tmp_path / "two" / f"{WORK}PACS" / "PACS.zip").is_file()
    with pytest.raises(InputError, match=r"mine\.rar is not a file"):
        fetch("PACS", tmp_path / "three", given=[str(tmp_path / "mine.rar")])
    with pytest.raises(InputError, match=r"TerraIncognita is made of 2 files .* but 1 were given"):
        fetch("TerraIncognita", tmp_path, given=["a.zip"])


def test_unknown_names_and_folders_that_are_in_the_way(tmp_path):
    with pytest.raises(InputError, match="no data set 'CIFAR' to fetch, expected one of PACS, VLCS"):
        fetch("CIFAR", tmp_path)
    (tmp_path / "office_home").write_text("a file")
    with pytest.raises(InputError, match="office_home is there already"):
        fetch("OfficeHome", tmp_path)
    (tmp_path / "PACS").symlink_to("nowhere")
    with pytest.raises(InputError, match="PACS is there already"):
        fetch("PACS", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        fetch("PACS", tmp_path / "file")


def test_a_full_disk_while_unpacking_makes_nothing_and_keeps_the_download(site, tmp_path, monkeypatch):
    from ratfast.data.fetching import archives

    site.files["/PACS.zip"] = zipped(images(PACS, "kfold/"))
    real, opened = archives.os.open, []

    def full(path, *rest):
        opened.append(path)
        if len(opened) > 20:
            raise OSError(28, "No space left on device", str(path))
        return real(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(archives.os, "open", full)
        with pytest.raises(OSError, match="No space left"):
            fetch("PACS", tmp_path)
    assert not (tmp_path / "PACS").exists()
    fetch("PACS", tmp_path)
    assert len(site.requests) == 1 and content(tmp_path / "PACS") == images(PACS, "")


COMMAND = "from ratfast.cli.main import main; main()"


def test_killed_and_two_at_a_time(site, tmp_path):
    """A process that is killed in the middle of its download, while another one is turned away."""
    site.files["/PACS.zip"] = zipped(images(PACS, "kfold/", each=200))
    half = len(site.files["/PACS.zip"]) // 2

    def stall(handler, published):
        handler.send_response(200)
        handler.send_header("Content-Length", str(2 * half))
        handler.end_headers()
        handler.wfile.write(published.files["/PACS.zip"][:half])
        handler.wfile.flush()
        time.sleep(20)
        return True

    site.behave["/PACS.zip"] = stall
    words = ["data", "fetch", "PACS", "--data-dir", str(tmp_path), "--from", site.url("/PACS.zip")]
    part = tmp_path / f"{WORK}PACS" / "PACS.zip.part"
    with subprocess.Popen([sys.executable, "-c", COMMAND, *words], stderr=subprocess.PIPE) as first:
        until = time.monotonic() + 60
        while not part.exists() and time.monotonic() < until:
            time.sleep(0.05)
        with pytest.raises(InputError, match=r"another command is fetching into .*, expected one at a time"):
            fetch("PACS", tmp_path)
        first.send_signal(signal.SIGKILL)
    assert [path.name for path in tmp_path.iterdir()] == [f"{WORK}PACS"]
    site.behave.clear()
    fetch("PACS", tmp_path, given=[site.url("/PACS.zip")])
    assert content(tmp_path / "PACS") == images(PACS, "", each=200)


def test_the_command(site, tmp_path, capsys):
    site.files["/PACS.zip"] = zipped(images(PACS, "kfold/"))
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "fetch", "pacs", "--data-dir", str(tmp_path)])
    out, _ = capsys.readouterr()
    assert stop.value.code == 1  # it is there, and not as published
    assert out == (
        f"PACS in {tmp_path}/PACS is not whole: the domain art_painting has 14 images, 2,048 are published; "
        "3 more domains differ.\n"
    )
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "fetch", "pacs", "--data-dir", str(tmp_path)])
    assert stop.value.code == 2 and "is there already" in capsys.readouterr().err
