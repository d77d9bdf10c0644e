"""Image files: reading them, and finding the unusable ones before a decoder does.

A file is judged by its bytes, never by its name: it must begin like an image and end as its format says it
ends. That finds missing, empty, mislabelled and cut-off files at the cost of reading the head and tail of
each; damage in between is found by decoding. What PIL cannot decode cannot be used, whatever the backend: DALI's
refusals are tried again with PIL.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from ratfast.errors import InputError

_HEAD = 64
_TAIL = 64
_CHUNK = 256
_READERS = 16  # of heads and tails, which wait for the disk rather than the processor
_MAX_BYTES = 2**31 - 1
_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_OTHER = (
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"GIF87a",
    b"GIF89a",
    b"\0\0\0\x0cjP  ",
    *(b"P%d" % kind for kind in range(1, 8)),
)
_EXPECTED = "expected a complete image"


Progress = Callable[[int, int], None]
"""Called with the number of images dealt with so far and their number in all."""


class BadImage(NamedTuple):
    """A file that cannot be used.

    Attributes:
        path: the file.
        defect: what is wrong with it, such as "is empty".
    """

    path: str
    defect: str


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """The bytes of an image file and what its header says.

    Attributes:
        path: the file.
        data: its bytes, 1-D uint8.
        width: width in pixels, before any EXIF rotation.
        height: height in pixels, before any EXIF rotation.
        format: PIL's name of the format, such as "JPEG".
        mode: PIL's name of the pixel layout, such as "RGB" or "CMYK".
        transparent: a PNG or GIF palette names a transparent colour.
    """

    path: str
    data: np.ndarray
    width: int
    height: int
    format: str
    mode: str
    transparent: bool = False


def check_images(
    paths: Sequence[str | os.PathLike[str]], threads: int | None = None, progress: Progress | None = None
) -> None:
    """Check that files are whole images, quickly: by their first and last bytes.

    Args:
        paths: the files.
        threads: how many are read at a time.
        progress: told how far it is.

    Raises:
        InputError: names the first bad file and what is wrong with it, and counts the others.
    """
    bad = find_bad_images(paths, threads=threads, progress=progress)
    if bad:
        others = f"; {len(bad) - 1} more of {len(paths)} files are unusable too" if len(bad) > 1 else ""
        raise InputError(f"image file {bad[0].path} {bad[0].defect}; {_EXPECTED}{others}")


def find_bad_images(
    paths: Sequence[str | os.PathLike[str]],
    *,
    decode: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[BadImage]:
    """Find the files that are not whole images.

    Args:
        paths: the files.
        decode: decode every file, which finds damage between its ends too, and images beyond PIL's limit of
            pixels (`PIL.Image.MAX_IMAGE_PIXELS` twice over).
        threads: how many are dealt with at a time; 16, or as many as this process has processors to decode, if
            None.
        progress: told how far it is.

    Returns:
        The unusable ones, in the order of `paths`.
    """
    judge = _decoding_defect if decode else _file_defect
    threads = threads or (len(os.sched_getaffinity(0)) if decode else _READERS)
    bad: list[BadImage] = []
    pool = ThreadPoolExecutor(max(1, min(threads, len(paths))), thread_name_prefix="ratfast-check")
    try:
        # In chunks: half a million tasks waiting at a time would take a gigabyte.
        for start in range(0, len(paths), _CHUNK):
            chunk = [os.fspath(path) for path in paths[start : start + _CHUNK]]
            defects = zip(chunk, pool.map(judge, chunk), strict=True)
            bad += [BadImage(path, defect) for path, defect in defects if defect]
            if progress is not None:
                progress(start + len(chunk), len(paths))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return bad


def read_image(path: str | os.PathLike[str]) -> EncodedImage:
    """Read an image file without decoding it.

    Args:
        path: the file.

    Returns:
        Its bytes and what its header says.

    Raises:
        InputError: the file is missing, unreadable, empty, not an image, cut off, or of more pixels than PIL
            decodes.
    """
    path = os.fspath(path)
    try:
        with _open(path) as file:
            defect = _size_defect(file)
            data = b"" if defect else file.read()
        defect = defect or _defect(data[:_HEAD], data[-_TAIL:], len(data), lambda: data)
    except OSError as error:
        defect = _os_defect(path, error)
    if defect:
        raise InputError(f"image file {path} {defect}; {_EXPECTED}")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            return EncodedImage(
                path,
                np.frombuffer(data, np.uint8),
                width,
                height,
                image.format or "",
                image.mode,
                "transparency" in image.info,
            )
    except Exception as error:  # of damaged headers, plugins raise nearly anything
        raise InputError(f"image file {path} {_header_defect(error)}; {_EXPECTED}") from error


def decode_rgb(image: EncodedImage) -> Image.Image:
    """Decode an image on the host with PIL, as `convert("RGB")` makes it.

    Args:
        image: the encoded image.

    Returns:
        An RGB image, not rotated by EXIF.

    Raises:
        InputError: PIL cannot decode it.
    """
    try:
        with Image.open(io.BytesIO(image.data.tobytes())) as opened:
            return opened.convert("RGB")
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise InputError(f"image file {image.path} {_decoder_defect(error)}; {_EXPECTED}") from error


def _decoding_defect(path: str) -> str | None:
    try:
        decode_rgb(read_image(path))
    except InputError as error:
        return str(error).removeprefix(f"image file {path} ").removesuffix(f"; {_EXPECTED}")
    return None


def _file_defect(path: str) -> str | None:
    try:
        with _open(path) as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(_HEAD)
            file.seek(max(0, size - _TAIL))
            tail = file.read(_TAIL)

            def whole() -> bytes:
                file.seek(0)
                return file.read()

            return _size_defect(file) or _defect(head, tail, size, whole)
    except OSError as error:
        return _os_defect(path, error)


def _open(path: str) -> BinaryIO:
    """Opens an ordinary file; a pipe or a device would be waited for, or never end."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError
    if not stat.S_ISREG(mode):
        raise OSError(0, "neither a file nor a link to one")
    return open(path, "rb")


def _os_defect(path: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        target = f"is a link to {os.readlink(path)}, which " if os.path.islink(path) else ""
        return f"{target}does not exist"
    if isinstance(error, IsADirectoryError):
        return "is a folder"
    return f"cannot be read ({(error.strerror or str(error)).lower()})"


def _header_defect(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its text names a buffer, not the file
        return "cannot be opened (damaged, or of an unknown format)"
    if isinstance(error, Image.DecompressionBombError):
        return f"has more pixels than the limit of {2 * (Image.MAX_IMAGE_PIXELS or 0)}"
    return f"cannot be opened ({_one_line(error)})"


def _decoder_defect(error: Exception) -> str:
    return f"cannot be decoded ({_one_line(error)})"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _size_defect(file: BinaryIO) -> str | None:
    size = os.fstat(file.fileno()).st_size
    return f"has {size} bytes, more than the limit of {_MAX_BYTES}" if size > _MAX_BYTES else None


def _defect(head: bytes, tail: bytes, size: int, whole: Callable[[], bytes]) -> str | None:
    """What is wrong with a file of `size` bytes, or None; `whole()` reads it where the ends do not tell."""
    if size == 0:
        return "is empty"
    if head.startswith(_JPEG):
        # Entropy-coded data never holds FF D9, so one at the very end closes the scan.
        return (
            None
            if tail.endswith(b"\xff\xd9") or _jpeg_ends(whole())
            else "is cut off (a JPEG without its end)"
        )
    if head.startswith(_PNG):
        return None if b"IEND" in tail or b"IEND" in whole() else "is cut off (a PNG without its end)"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        stated = int.from_bytes(head[4:8], "little") + 8
        return None if stated <= size else f"is cut off (a WebP of {stated} bytes of which {size} are there)"
    if head.startswith(_OTHER):
        return None
    return "is not an image"


def _jpeg_ends(data: bytes) -> bool:
    """Whether the end marker follows the first scan: a thumbnail's, inside the header, does not count."""
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return False
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            position += 2
            continue
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xDA:
            return data.find(b"\xff\xd9", position) >= 0
    return False
