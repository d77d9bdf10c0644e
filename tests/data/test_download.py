"""Downloads from a server on this machine that drops, lies, moves and refuses."""

import errno
import hashlib
import threading

import numpy as np
import pytest

from ratfast.data.fetching import download as module
from ratfast.data.fetching.download import Source, Watcher, download
from ratfast.errors import InputError

from .published import answering, dropping, publishing

CONTENT = np.random.default_rng(0).bytes(3_000_000)
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.001)
    with publishing() as opened:
        opened.files["/file"] = CONTENT
        yield opened


def get(site, folder, path="/file", checksum=MD5, **watcher):
    return download(Source("file.zip", (site.url(path),), checksum), folder, Watcher(**watcher))


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_whole_at_once(site, tmp_path):
    told = []
    path = get(site, tmp_path, progress=lambda *values: told.append(values))
    assert path.read_bytes() == CONTENT and leftovers(tmp_path) == ["file.zip"]
    assert told[-1] == ("file.zip", len(CONTENT), len(CONTENT))
    assert [name for name, *_ in told] == ["file.zip"] * len(told)
    get(site, tmp_path)  # it is there
    assert site.asked("/file") == [None]


@pytest.mark.parametrize("tagged", [True, False])
def test_dropped_connections_are_continued(site, tmp_path, tagged):
    site.tagged = tagged
    site.behave["/file"] = dropping(1_000_000, 1_000_001, 2_500_000)
    said = []
    assert get(site, tmp_path, say=said.append).read_bytes() == CONTENT
    assert site.asked("/file") == [None, "bytes=1000000-", "bytes=1000001-", "bytes=2500000-"]
    assert len(said) == 3 and "trying again" in said[0] and "from byte 1000000" in said[0]
    assert leftovers(tmp_path) == ["file.zip"]


def test_a_server_without_ranges_starts_over(site, tmp_path):
    site.ranges = False
    site.behave["/file"] = dropping(1_000_000, 2_000_000)
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert len(site.requests) == 3


def test_a_later_call_continues(site, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    site.behave["/file"] = dropping(1_234_567, 1_234_567, 1_234_567, 1_234_567)
    with pytest.raises(InputError, match=r"failed 2 times in a row .* the same command again continues"):
        get(site, tmp_path)
    assert leftovers(tmp_path) == ["file.zip.part", "file.zip.part.json"]
    site.behave.clear()
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.asked("/file")[-1] == "bytes=1234567-"
    assert leftovers(tmp_path) == ["file.zip"]


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize("size", [2_000_000, 1_000_000, 400_000])
def test_another_version_is_not_joined_to_the_first(site, tmp_path, monkeypatch, tagged, size):
    site.tagged = tagged
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    site.behave["/file"] = dropping(1_000_000)
    with pytest.raises(InputError, match="in a row"):
        get(site, tmp_path)
    monkeypatch.setattr(module, "ATTEMPTS", 3)
    other = np.random.default_rng(1).bytes(size)
    site.files["/file"] = other
    assert get(site, tmp_path, checksum="").read_bytes() == other


def test_a_part_of_another_address_is_not_continued(site, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    site.behave["/file"] = dropping(1_000_000)
    site.files["/other"] = CONTENT[::-1]
    source = Source("file.zip", (site.url("/file"), site.url("/other")))
    assert download(source, tmp_path, Watcher()).read_bytes() == CONTENT[::-1]
    assert site.asked("/other") == [None]


def test_a_part_without_its_record_or_with_a_broken_one_is_not_trusted(site, tmp_path):
    for record in (None, "", "{}", "[1]", '{"url": "elsewhere", "version": "", "total": 1}'):
        (tmp_path / "file.zip.part").write_bytes(b"x" * 100)
        if record is not None:
            (tmp_path / "file.zip.part.json").write_text(record)
        path = get(site, tmp_path)
        assert path.read_bytes() == CONTENT
        path.unlink()
    assert set(site.asked("/file")) == {None}


def test_busy_servers_are_asked_again(site, tmp_path):
    site.behave["/file"] = answering(503, times=3, Retry_After="0")
    said = []
    assert get(site, tmp_path, say=said.append).read_bytes() == CONTENT
    assert len(said) == 3 and "503" in said[0]


def test_what_a_server_asks_to_wait_is_bounded(site, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    site.behave["/file"] = answering(429, times=2, Retry_After="999999")
    get(site, tmp_path)
    assert pauses == [60.0, 60.0]


@pytest.mark.parametrize("code", [404, 403, 410, 401])
def test_dead_addresses_are_said_at_once(site, tmp_path, code):
    site.behave["/file"] = answering(code)
    with pytest.raises(
        InputError, match=rf"/file answers {code} .*: the file cannot be downloaded from there"
    ):
        get(site, tmp_path)
    assert len(site.requests) == 1 and leftovers(tmp_path) == []


def test_the_next_address_is_tried(site, tmp_path):
    source = Source("file.zip", (site.url("/dead"), site.url("/file")), MD5)
    assert download(source, tmp_path, Watcher()).read_bytes() == CONTENT
    with pytest.raises(InputError, match=r"/dead answers 404.*; .*/gone answers 404"):
        download(Source("b.zip", (site.url("/dead"), site.url("/gone"))), tmp_path, Watcher())


def test_a_server_that_keeps_failing(site, tmp_path):
    site.behave["/file"] = answering(500)
    with pytest.raises(InputError, match=r"failed 6 times in a row \(.*500"):
        get(site, tmp_path)
    assert len(site.requests) == module.ATTEMPTS
    with pytest.raises(InputError, match=r"failed 6 times in a row .*refused"):
        download(Source("file.zip", ("http://127.0.0.1:9/x",)), tmp_path, Watcher())


def test_a_server_that_says_nothing(site, tmp_path, monkeypatch):
    from ratfast.data.fetching import http

    monkeypatch.setattr(http, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    ended = threading.Event()
    site.behave["/file"] = lambda *_: ended.wait(5)
    try:
        with pytest.raises(InputError, match="timed out"):
            get(site, tmp_path)
    finally:
        ended.set()


def test_a_length_that_never_comes(site, tmp_path):
    def behave(handler, site):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT) + 5))
        handler.end_headers()
        handler.wfile.write(CONTENT)
        return True

    site.behave["/file"] = behave
    with pytest.raises(InputError, match="ended too early"):
        get(site, tmp_path)
    assert "file.zip" not in leftovers(tmp_path)


def test_a_length_that_is_too_short_is_found_by_the_checksum(site, tmp_path):
    def behave(handler, site):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(CONTENT)
        return True

    site.behave["/file"] = behave
    with pytest.raises(InputError, match=r"file\.zip has the md5 .*, expected .*has been deleted"):
        get(site, tmp_path)
    assert [name for name in leftovers(tmp_path) if not name.endswith(".json")] == []


def test_without_a_length(site, tmp_path):
    def behave(handler, site):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(CONTENT)
        return True

    site.behave["/file"] = behave
    assert get(site, tmp_path).read_bytes() == CONTENT


def test_chunks_that_break_off_are_no_end(site, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 2)

    def behave(handler, site):
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"10\r\n" + b"x" * 16 + b"\r\n" + b"ffff\r\n" + b"y" * 100)
        return True

    site.behave["/file"] = behave
    with pytest.raises(InputError, match="in a row"):
        get(site, tmp_path, checksum="")


def test_a_wrong_checksum_leaves_nothing(site, tmp_path):
    site.files["/file"] = CONTENT[:-1] + b"x"
    with pytest.raises(InputError, match="not what was published"):
        get(site, tmp_path)
    assert "file.zip" not in leftovers(tmp_path) and "file.zip.part" not in leftovers(tmp_path)


def test_a_web_page_in_place_of_the_file(site, tmp_path):
    page = b"<html><head><title>Sign in -\n Drive</title></head></html>"
    site.behave["/file"] = answering(200, body=page, Content_Type="text/html; charset=utf-8")
    with pytest.raises(
        InputError, match="sends a web page in place of the file, which says: Sign in - Drive"
    ):
        get(site, tmp_path)
    quota = b'<html><title>Quota exceeded</title><p class="uc-error-subcaption">Too many users</p></html>'
    site.behave["/file"] = answering(200, body=quota, Content_Type="text/html")
    with pytest.raises(InputError, match="which says: Too many users"):
        get(site, tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("drops", [(), (1_000_000, 2_000_000)])
def test_confirmation_pages_are_confirmed(site, tmp_path, drops):
    """Google Drive's page before large files, at every continuation too, with the cookie that it sets."""
    page = (
        b'<html><form id="download-form" action="/really?authuser=0" method="get">'
        b'<input type="hidden" name="id" value="abc"><input type="hidden" name="confirm" value="t&amp;u">'
        b'<input type="submit" value="Download anyway"></form><form><input name="no" value="no"></form></html>'
    )
    confirmed = "/really?authuser=0&id=abc&confirm=t%26u"
    cookies = []

    drop = dropping(*drops)

    def behave(handler, site):
        cookies.append(handler.headers.get("Cookie"))
        return drop(handler, site)

    site.behave["/uc"] = answering(200, body=page, Content_Type="text/html", Set_Cookie="seen=yes")
    site.behave["/really"] = behave
    site.files[confirmed] = CONTENT
    path = get(site, tmp_path, path="/uc?export=download&id=abc")
    assert path.read_bytes() == CONTENT
    assert site.asked(confirmed) == [None, *(f"bytes={drop}-" for drop in drops)]
    assert set(cookies) == {"seen=yes"}


def test_confirmation_that_leads_to_another_page(site, tmp_path):
    page = b'<html><title>Again</title><form id="download-form" action="/uc"></form></html>'
    site.behave["/uc"] = answering(200, body=page, Content_Type="text/html")
    with pytest.raises(InputError, match=r"web page .* Again"):
        get(site, tmp_path, path="/uc")
    assert len(site.requests) == 2


def test_redirects(site, tmp_path):
    site.behave["/moved"] = answering(302, Location="/file")
    assert get(site, tmp_path, path="/moved").read_bytes() == CONTENT


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_only_the_web(site, tmp_path, place):
    site.behave["/moved"] = answering(302, Location=place)
    with pytest.raises(InputError):
        get(site, tmp_path, path="/moved")
    with pytest.raises(InputError, match="is no address to download from"):
        download(Source("x", (place,)), tmp_path, Watcher())
    assert "file.zip" not in leftovers(tmp_path)


def test_too_little_space_is_said_before_anything_is_written(site, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SPACE_LEFT_BYTES", 2**60)
    with pytest.raises(OSError, match=r"no space for file\.zip: it needs 3 MB, 0 MB are free") as caught:
        get(site, tmp_path)
    assert caught.value.errno == errno.ENOSPC and leftovers(tmp_path) == []


def test_a_disk_that_fills_keeps_the_part(site, tmp_path, monkeypatch):
    """The write fails as on a full disk, in the middle; the next call goes on from there."""
    original = open

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, block):
            if self.file.tell() > 1_000_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(block)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

    def opened(path, mode="r", *rest, **more):
        file = original(path, mode, *rest, **more)
        return Full(file) if str(path).endswith(".part") and "b" in mode and mode != "rb" else file

    with monkeypatch.context() as patch:
        patch.setattr(module, "open", opened, raising=False)
        with pytest.raises(OSError, match="No space left") as caught:
            get(site, tmp_path)
        assert caught.value.filename.endswith("file.zip.part")
    kept = (tmp_path / "file.zip.part").stat().st_size
    assert kept >= 1_000_000
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.asked("/file")[-1] == f"bytes={kept}-"
