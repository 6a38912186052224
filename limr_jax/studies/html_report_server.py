"""The page of runs under way, served to this machine's browser and to nobody else.

The one page is all that is served: no path but `/` is known, and no file is read for a
request. It listens on 127.0.0.1, and answers only who asks for it by that name or by
localhost, so that a foreign web page whose name was made to lead here gets nothing.
"""

import contextlib
import errno
import hashlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus

from etils import epath

from limr_jax import console
from limr_jax.errors import InputError
from limr_jax.storage import gcs

ADDRESS = "127.0.0.1"
_NAMES = ("127.0.0.1", "localhost")
_REQUEST_SECONDS = 10  # that a request may take to come in
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class LivePage:
    """A page and its version, made anew where the runs' files have changed.

    make: version → the page as text; InputError where it cannot be made. The first one
    is made at once, and raises that.
    """

    def __init__(self, workdirs: Sequence, make: Callable[[str], str]):
        self._workdirs, self._make = workdirs, make
        self._complaint = ""
        version = fingerprint(workdirs)
        self.current = version, self._bytes(version)

    def _bytes(self, version: str) -> bytes:
        return self._make(version).encode("utf-8", "backslashreplace")

    def refresh(self) -> bool:
        """Make the page anew if something has changed; whether it was.

        Where it cannot be made (a file that is being moved, say) the old one stays, and
        the reason is said once.
        """
        try:
            version = fingerprint(self._workdirs)
            if version == self.current[0]:
                return False
            self.current = version, self._bytes(version)
            self._complaint = ""
            return True
        except InputError as error:
            if str(error) != self._complaint:
                console.warn(f"the page stays as it is: {error}")
                self._complaint = str(error)
            return False


def fingerprint(workdirs: Sequence) -> str:
    """A text that is another one where a file that the page shows has changed."""
    digest = hashlib.sha256()
    for workdir in workdirs:
        path = epath.Path(workdir)
        with gcs.reading(path):
            files = [*path.glob("*.json*"), *path.glob("rollouts/*.jsonl.gz")]
            for file in sorted(files):
                with contextlib.suppress(FileNotFoundError):
                    stat = file.stat()
                    digest.update(repr((str(file), stat.length, stat.mtime)).encode())
    return digest.hexdigest()[:32]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    # Else a second server could share the port of one that is going.
    allow_reuse_port = False

    def handle_error(self, *_):
        """Nothing: a browser that leaves in the midst is no fault of anybody's."""


def _handler(page: LivePage) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = _REQUEST_SECONDS
        server_version, sys_version = "limr_jax", ""

        def do_GET(self):
            self._answer(body=True)

        def do_HEAD(self):
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            if not _asked_by_name(self.headers.get_all("Host")):
                return self.send_error(
                    HTTPStatus.MISDIRECTED_REQUEST, "ask for it as localhost"
                )
            if self.path != "/":
                return self.send_error(HTTPStatus.NOT_FOUND, "the page is at /")
            version, data = page.current
            self.send_response(HTTPStatus.OK)
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            self.send_header("ETag", f'"{version}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                with contextlib.suppress(ConnectionError, TimeoutError):
                    self.wfile.write(data)

        def log_message(self, *_):
            """Nothing: a line for each look would hide what matters."""

    return Handler


def _asked_by_name(hosts: Sequence[str] | None) -> bool:
    """Whether the one Host header names this machine; the port may be a tunnel's."""
    if not hosts or len(hosts) != 1:
        return False
    name, _, port = hosts[0].partition(":")
    return name.lower() in _NAMES and (not port or port.isdigit())


def check_port(port: int) -> None:
    """InputError where `serving` could not have the port, before a page is made."""
    _listen(port, http.server.BaseHTTPRequestHandler).server_close()


def _listen(port: int, handler) -> _Server:
    try:
        return _Server((ADDRESS, port), handler)
    except OSError as error:
        why = error.strerror or error
        if error.errno == errno.EADDRINUSE:
            why = "in use by another program"
        raise InputError(
            f"--port {port}: {why}; give another one, or --port 0 for any"
        ) from None


@contextlib.contextmanager
def serving(page: LivePage, port: int) -> Iterator[str]:
    """Serves the page while the block lasts; yields its address.

    port: 0 takes any that is free. InputError where it cannot be had.
    """
    server = _listen(port, _handler(page))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{ADDRESS}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


def follow(page: LivePage, every: float) -> None:
    """Look for changes every so many seconds, without an end.

    A page that takes long to make takes a quarter of a core at the most.
    """
    while True:
        begun = time.monotonic()
        page.refresh()
        time.sleep(max(every, 3 * (time.monotonic() - begun)))
