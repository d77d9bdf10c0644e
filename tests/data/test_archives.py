"""Unpacking archives: ordinary ones of every kind, and those that mean harm."""

import contextlib
import io
import stat
import struct
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratfast.data.fetching import archives as module
from ratfast.data.fetching.archives import DamagedArchive, unpack
from ratfast.data.fetching.download import Watcher
from ratfast.errors import InputError

FILES = {"top/a/one.jpg": b"1" * 3000, "top/a/two words.jpg": b"", "top/é/三.png": b"3"}


def as_given(name: PurePosixPath) -> list[PurePosixPath]:
    return [name]


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("top/", b"")
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w:gz", *more: tarfile.TarInfo) -> Path:
    with tarfile.open(path, mode) as archive:
        folder = tarfile.TarInfo("top")
        folder.type = tarfile.DIRTYPE
        for info in (folder, *more):
            archive.addfile(info)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o4777
            archive.addfile(info, io.BytesIO(content))
    return path


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if not path.is_dir()
    }


@pytest.mark.parametrize("kind", ["zip", "w:gz", "w:bz2", "w:xz", "w"])
def test_every_kind(tmp_path, kind):
    path = tmp_path / "archive"
    make_zip(path, FILES) if kind == "zip" else make_tar(path, FILES, kind)
    told = []
    done = unpack(path, tmp_path / "out", as_given, Watcher(lambda *values: told.append(values)))
    assert done == (3, 0)
    assert everything(tmp_path / "out") == FILES
    assert told[-1] == ("unpacking archive", path.stat().st_size, path.stat().st_size)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    for written in (tmp_path / "out").rglob("*.*"):
        assert stat.S_IMODE(written.stat().st_mode) & 0o7133 == 0


def test_members_go_where_they_are_placed(tmp_path):
    places = {"one.jpg": ["x/1.jpg", "y/1.jpg"], "三.png": []}
    for path in (make_zip(tmp_path / "a.zip", FILES), make_tar(tmp_path / "a.tar", FILES)):
        out = tmp_path / ("out" + path.suffix)
        done = unpack(
            path, out, lambda name: [PurePosixPath(place) for place in places.get(name.name, [])], Watcher()
        )
        assert done.files == 2
        assert everything(out) == {"x/1.jpg": b"1" * 3000, "y/1.jpg": b"1" * 3000}


NAMES = [
    "../out.jpg",
    "top/../../out.jpg",
    "/etc/out.jpg",
    "..\\out.jpg",
    "C:/out.jpg",
    "top/..",
    "a/\\b.jpg",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_names_that_lead_out_are_refused(tmp_path, make, name):
    path = make(tmp_path / "archive", {"good.jpg": b"1", name: b"evil"})
    inside = tmp_path / "deep" / "er"
    with pytest.raises(InputError, match=r"archive holds the name .* which leads out of its folder"):
        unpack(path, inside, as_given, Watcher())
    assert everything(tmp_path).keys() <= {"archive", "deep/er/good.jpg"}
    # Also where nothing of the kind would be unpacked: an archive that tries is not to be trusted.
    with pytest.raises(InputError, match="leads out of its folder"):
        unpack(path, inside, lambda name: [], Watcher())


@settings(max_examples=60, deadline=None)
@given(name=st.text("./\\a:~\0é ", min_size=1, max_size=9))
def test_no_name_writes_outside(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("names")
    path = folder / "archive.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"evil")
    with contextlib.suppress(InputError):
        unpack(path, folder / "in" / "side", as_given, Watcher())
    outside = [p for p in folder.rglob("*") if p.is_file() and folder / "in" / "side" not in p.parents]
    assert outside == [path]


def test_places_that_lead_out_are_refused_too(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a.jpg": b"1"})
    with pytest.raises(InputError, match="leads out of its folder"):
        unpack(path, tmp_path / "in", lambda _: [PurePosixPath("../b.jpg")], Watcher())
    assert everything(tmp_path).keys() == {"a.zip"}


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_links_are_not_made(tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    path = make_tar(
        tmp_path / "a.tar",
        {"top/a/one.jpg": b"1", "way/out.jpg": b"evil"},
        "w",
        link("way", str(secret)),
        link("top/soft.jpg", "../../secret/x"),
        link("top/hard.jpg", "/etc/passwd", tarfile.LNKTYPE),
    )
    done = unpack(path, tmp_path / "out", as_given, Watcher())
    assert done == (2, 3)
    assert not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))
    assert everything(secret) == {} and (tmp_path / "out" / "way" / "out.jpg").read_bytes() == b"evil"
    soft = zipfile.ZipInfo("way")
    soft.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(soft, str(secret))
        archive.writestr("way/out.jpg", b"evil")
    assert unpack(tmp_path / "a.zip", tmp_path / "zipped", as_given, Watcher()) == (1, 1)
    assert everything(secret) == {}


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_are_refused(tmp_path, kind):
    path = make_tar(tmp_path / "a.tar", {}, "w", link("top/null.jpg", "", kind))
    with pytest.raises(InputError, match=r"holds the device top/null\.jpg"):
        unpack(path, tmp_path / "out", as_given, Watcher())
    info = zipfile.ZipInfo("pipe.jpg")
    info.external_attr = stat.S_IFIFO << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, b"")
    with pytest.raises(InputError, match="device"):
        unpack(tmp_path / "a.zip", tmp_path / "out", as_given, Watcher())


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_bombs_are_stopped_by_what_they_write(tmp_path, monkeypatch, make):
    monkeypatch.setattr(module, "_BYTES_FOR_ANY_ARCHIVE", 1000)
    path = make(tmp_path / "bomb", {"a.jpg": bytes(20_000_000)})
    with pytest.raises(InputError, match="unpacks to more than 4 times its size"):
        unpack(path, tmp_path / "out", as_given, Watcher())
    assert sum(map(len, everything(tmp_path / "out").values())) < 2_000_000
    # Written twice it counts twice.
    path = make(tmp_path / "double", {"a.jpg": bytes(900)})
    monkeypatch.setattr(module, "_TIMES_THE_ARCHIVE", 0)
    unpack(path, tmp_path / "once", as_given, Watcher())
    with pytest.raises(InputError, match="times its size"):
        unpack(path, tmp_path / "twice", lambda name: [name, PurePosixPath("b.jpg")], Watcher())


def test_a_size_that_is_not_the_true_one(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a.jpg": bytes(5000)})
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        at = data.rindex(signature) + offset
        data[at : at + 4] = struct.pack("<I", 10)
    path.write_bytes(data)
    with pytest.raises(DamagedArchive):
        unpack(path, tmp_path / "out", as_given, Watcher())


def test_more_members_than_a_data_set_has(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MOST_MEMBERS", 3)
    path = make_tar(tmp_path / "a.tar", {f"{i}.jpg": b"" for i in range(4)})
    with pytest.raises(InputError, match="more than 3 files"):
        unpack(path, tmp_path / "out", as_given, Watcher())


def test_a_file_where_a_folder_is_needed(tmp_path):
    path = make_tar(tmp_path / "a.tar", {"a": b"1", "a/b.jpg": b"2"})
    with pytest.raises(InputError, match=r"a/b\.jpg both"):
        unpack(path, tmp_path / "out", as_given, Watcher())


def make_bzip2(path: Path, files: dict[str, bytes]) -> Path:
    return make_tar(path, files, "w:bz2")


def make_xz(path: Path, files: dict[str, bytes]) -> Path:
    return make_tar(path, files, "w:xz")


@pytest.mark.parametrize("make", [make_zip, make_tar, make_bzip2, make_xz])
@pytest.mark.parametrize("damage", ["cut", "middle", "empty", "text", "page"])
def test_damaged_archives_are_named(tmp_path, make, damage):
    path = make(tmp_path / "broken", {f"{i}.jpg": np.random.default_rng(i).bytes(30_000) for i in range(5)})
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "middle":
        data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    else:
        data = {"empty": b"", "text": b"hello " * 200, "page": b"\n<html>" + b" " * 1000}[damage]
    path.write_bytes(data)
    with pytest.raises(DamagedArchive, match="broken cannot be unpacked") as caught:
        unpack(path, tmp_path / "out", as_given, Watcher())
    assert caught.value.archive == path and "\n" not in str(caught.value)
    if damage == "page":
        assert "it is a web page" in str(caught.value)


def test_encrypted(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a.jpg": b"1"})
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        data[data.rindex(signature) + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(DamagedArchive, match="encrypted"):
        unpack(path, tmp_path / "out", as_given, Watcher())


@pytest.mark.parametrize("make", [make_zip, lambda path, files: make_tar(path, files, "w"), make_tar])
@settings(max_examples=100, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
    kept=st.floats(0.3, 1),
)
def test_any_damage_is_a_sentence(tmp_path_factory, make, flips, kept):
    folder = tmp_path_factory.mktemp("damage")
    path = make(folder / "archive", {"top/a.jpg": bytes(range(250)), "top/b.jpg": b"\1\2" * 400})
    data = bytearray(path.read_bytes())
    data = data[: max(1, int(len(data) * kept))]
    for position, value in flips:
        data[position % len(data)] = value
    path.write_bytes(data)
    with contextlib.suppress(InputError):
        unpack(path, folder / "out", as_given, Watcher())
