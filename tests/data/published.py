"""A web server on this machine that publishes files as real ones do: well, or badly in a chosen way."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What is published, and what was asked for.

    Attributes:
        files: content by path.
        behave: by path, called with the handler in place of sending the file; returns whether it has answered.
        requests: path and `Range` header of each request.
        ranges: the server knows `Range`.
        tagged: it sends an ETag.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    behave: dict[str, Callable[[BaseHTTPRequestHandler, Site], bool]] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    ranges: bool = True
    tagged: bool = True
    address: str = ""

    def url(self, path: str) -> str:
        """The address of a path."""
        return self.address + path

    def asked(self, path: str) -> list[str | None]:
        """The ranges that were asked for of a path."""
        return [wanted for asked, wanted in self.requests if asked == path]


def send(handler: BaseHTTPRequestHandler, site: Site, stop: int | None = None) -> None:
    """Sends the file that is asked for; ends the connection before byte `stop` of the file."""
    content = site.files[handler.path]
    tag = f'"{hashlib.md5(content).hexdigest()}"'
    start = 0
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    if wanted and site.ranges and handler.headers.get("If-Range", tag) == tag:
        start = int(wanted[1])
        if start >= len(content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(content)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    else:
        handler.send_response(200)
    handler.send_header("Content-Type", "application/octet-stream")
    handler.send_header("Content-Length", str(len(content) - start))
    if site.tagged:
        handler.send_header("ETag", tag)
    handler.end_headers()
    handler.wfile.write(content[start:stop])


def dropping(*stops: int) -> Callable[[BaseHTTPRequestHandler, Site], bool]:
    """Ends the first connections before these bytes of the file."""
    left = list(stops)

    def behave(handler: BaseHTTPRequestHandler, site: Site) -> bool:
        if not left:
            return False
        send(handler, site, left.pop(0))
        return True

    return behave


def answering(
    code: int, times: int = 1_000_000, body: bytes = b"", **headers: str
) -> Callable[[BaseHTTPRequestHandler, Site], bool]:
    """Answers with a status, so many times."""
    left = [times]

    def behave(handler: BaseHTTPRequestHandler, site: Site) -> bool:
        if not left[0]:
            return False
        left[0] -= 1
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
        return True

    return behave


@contextlib.contextmanager
def publishing() -> Iterator[Site]:
    """Serves a site until the block ends."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path
            site.requests.append((path, self.headers.get("Range")))
            self.close_connection = True
            plain = path.partition("?")[0]
            with contextlib.suppress(ConnectionError):
                if plain in site.behave and site.behave[plain](self, site):
                    return
                if path in site.files:
                    send(self, site)
                else:
                    self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
