"""Opening what a URL stands for, from a byte on: redirects, confirmation pages, answers that end the matter."""

from __future__ import annotations

import contextlib
import html.parser
import http.client
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from ratfast.errors import InputError
from ratfast.version import __version__

TIMEOUT_SECONDS = 30.0
"""How long a server may say nothing."""

_PAGE_BYTES = 2**20
_AGAIN = {408, 425, 429, 500, 502, 503, 504}


class Transient(Exception):
    """A failure that may be gone at the next attempt.

    Attributes:
        wait: seconds that the server asks to wait; None if it does not say.
    """

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class Changed(Transient):
    """The server has another version of the file than the part that is there is of."""


@dataclass(frozen=True)
class Answer:
    """A server's answer that holds the file, or the rest of it.

    Attributes:
        body: to be read.
        start: position in the file of the body's first byte.
        total: bytes of the whole file; None if the server does not say.
        version: what the server calls this version of the file; empty if it does not say.
        complete: there is nothing after the position that was asked for.
    """

    body: http.client.HTTPResponse
    start: int
    total: int | None
    version: str
    complete: bool = False


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str) -> None:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise InputError(f"{url} is no address to download from, expected http:// or https://")


@contextlib.contextmanager
def open_url(url: str, start: int = 0, version: str = "") -> Iterator[Answer]:
    """Asks for a file.

    Args:
        url: the file's address. A page with a form `download-form`, such as Google Drive shows before large files,
            is answered by sending the form.
        start: first byte wanted; the answer may begin earlier.
        version: of which `start` bytes are there; another one is sent from its beginning.

    Yields:
        The answer, while its connection is open.

    Raises:
        InputError: the server says that there is no such file, or sends a web page in its place.
        Transient: the server or the network fails.
    """
    _check_scheme(url)
    # Cookies, as confirmation pages set them; only the two schemes.
    opener = urllib.request.build_opener(_HttpOnly(), urllib.request.HTTPCookieProcessor())
    headers = {"User-Agent": f"ratfast/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if version:
            headers["If-Range"] = version
    with contextlib.ExitStack() as connections:
        answer = _ask(opener, url, headers, connections)
        form = _confirmation(answer)
        if form is not None and form.action is not None:
            confirmed = urllib.parse.urljoin(answer.url, form.address())
            _check_scheme(confirmed)
            answer = _ask(opener, confirmed, headers, connections)
            form = _confirmation(answer)
        if form is not None:
            raise InputError(f"{url} sends a web page in place of the file{form.reason()}")
        yield _as_answer(answer, start)


def _ask(
    opener: urllib.request.OpenerDirector,
    url: str,
    headers: Mapping[str, str],
    connections: contextlib.ExitStack,
) -> urllib.request.addinfourl:
    request = urllib.request.Request(url, headers=dict(headers))
    try:
        return connections.enter_context(opener.open(request, timeout=TIMEOUT_SECONDS))
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return connections.enter_context(error)
        with error:
            sentence = f"{url} answers {error.code} {error.reason}"
            if error.code in _AGAIN:
                raise Transient(sentence, _seconds(error.headers.get("Retry-After"))) from error
            raise InputError(f"{sentence}: the file cannot be downloaded from there") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise InputError(f"{url} cannot be trusted: {words(error.reason)}") from error
        raise Transient(words(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise Transient(words(error)) from error


def _seconds(text: str | None) -> float | None:
    return float(text) if text and re.fullmatch(r"\d{1,6}", text) else None


def words(error: object) -> str:
    """What an error says, in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def _confirmation(answer: urllib.request.addinfourl) -> _Page | None:
    """The web page that an answer is, or None if it is something else."""
    if answer.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        return None
    if answer.headers.get_content_type() not in ("text/html", "application/xhtml+xml"):
        return None
    page = _Page()
    try:
        page.feed(answer.read(_PAGE_BYTES).decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException) as error:
        raise Transient(words(error)) from error
    return page


class _Page(html.parser.HTMLParser):
    """A page's form to confirm a download, its title, and the reason that Google Drive's gives for an error."""

    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self.texts = {"title": "", "reason": ""}
        self._within = ""
        self._in_form = False

    def address(self) -> str:
        """The address that sending the form asks for."""
        parts = urllib.parse.urlsplit(self.action or "")
        query = dict(urllib.parse.parse_qsl(parts.query)) | self.fields
        return urllib.parse.urlunsplit(parts._replace(query=urllib.parse.urlencode(query)))

    def reason(self) -> str:
        """What the page says, as the end of a sentence."""
        text = " ".join((self.texts["reason"] or self.texts["title"]).split())
        return f", which says: {text[:200]}" if text else ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See `HTMLParser`."""
        values = {name: value or "" for name, value in attrs}
        if tag == "form" and values.get("id") == "download-form":
            self.action, self._in_form = values.get("action", ""), True
        elif tag == "input" and self._in_form and "name" in values:
            self.fields[values["name"]] = values.get("value", "")
        elif tag == "title":
            self._within = "title"
        elif values.get("class") == "uc-error-subcaption":
            self._within = "reason"

    def handle_endtag(self, tag: str) -> None:
        """See `HTMLParser`."""
        self._in_form = self._in_form and tag != "form"
        if tag in ("title", "p"):
            self._within = ""

    def handle_data(self, data: str) -> None:
        """See `HTMLParser`."""
        if self._within:
            self.texts[self._within] += data


def _as_answer(answer: urllib.request.addinfourl, start: int) -> Answer:
    headers = answer.headers
    etag = headers.get("ETag", "")
    version = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
    content_range = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", "").strip())
    if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        total = int(content_range[2]) if content_range and content_range[2] != "*" else None
        if total != start:
            raise Changed("there is more of the file here than there")
        return Answer(answer, start, total, version, complete=True)
    if answer.status == HTTPStatus.PARTIAL_CONTENT:
        if not content_range or content_range[1] is None:
            raise Transient("a part of the file without its place in it")
        total = None if content_range[2] == "*" else int(content_range[2])
        return Answer(answer, int(content_range[1]), total, version)
    length = headers.get("Content-Length", "")
    return Answer(answer, 0, int(length) if length.isdecimal() else None, version)
