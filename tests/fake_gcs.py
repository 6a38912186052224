"""Google Cloud Storage on localhost: what TensorStore, gcsfs and Google's client ask.

Objects in memory behind the JSON API, with what a real bucket is strict about: an
object's generation and conditions on it, pages of listings, and rights. A folder is
there as long as an object lies in it. `python tests/fake_gcs.py PORT BUCKET` serves.
"""

import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "ya29.token"
PAGE = 5  # entries of a listing at once, that clients must ask for the next ones
LEVELS = r"(?:/upload|/download)?/storage/v1"
BUCKET = re.compile(LEVELS + r"/b/([^/]+)")
OBJECTS = re.compile(LEVELS + r"/b/([^/]+)/o")
OBJECT = re.compile(LEVELS + r"/b/([^/]+)/o/([^/]+)")
MOVE = re.compile(LEVELS + r"/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)")
COPY = re.compile(LEVELS + r"/b/([^/]+)/o/([^/]+)/rewriteTo/b/[^/]+/o/([^/]+)")


class Refused(Exception):
    """An answer other than 200: (status, message)."""


@dataclasses.dataclass
class Bucket:
    """name → (generation, bytes) of its objects, and what nobody may do there.

    updated: when each was written, in seconds since 1970; one that is not there: long
    ago. denied: permissions without `storage.`, as objects.create.
    before: the objects as they were before each change, if that is asked for: what a
    process leaves that is killed then.
    """

    objects: dict[str, tuple[int, bytes]] = dataclasses.field(default_factory=dict)
    updated: dict[str, float] = dataclasses.field(default_factory=dict)
    denied: set[str] = dataclasses.field(default_factory=set)
    before: list[dict[str, tuple[int, bytes]]] | None = None

    def changes(self) -> dict[str, tuple[int, bytes]]:
        """The objects, to be changed."""
        if self.before is not None:
            self.before.append(dict(self.objects))
        return self.objects

    def allow(self, permission: str) -> None:
        if permission in self.denied:
            what = f"somebody@example.com does not have storage.{permission} access."
            raise Refused(403, f"{what}\nPermission denied (or it may not exist).")

    def files(self) -> list[str]:
        return sorted(self.objects)


class Cloud:
    """The buckets by name, and the uploads under way; `lock` is held at each change."""

    def __init__(self, *buckets: str):
        self.buckets = {name: Bucket() for name in buckets}
        self.uploads: dict[str, tuple[Bucket, str, bytes]] = {}
        self.lock = threading.RLock()
        self._generations = itertools.count(1)

    def bucket(self, name: str, permission: str) -> Bucket:
        if name not in self.buckets:
            raise Refused(404, f"The specified bucket {name} does not exist.")
        bucket = self.buckets[name]
        bucket.allow(permission)
        return bucket

    def write(self, bucket: Bucket, name: str, data: bytes, query: dict) -> dict:
        with self.lock:
            _check_generation(bucket, name, query)
            if name in bucket.objects:  # which is deleted thereby
                bucket.allow("objects.delete")
            bucket.changes()[name] = (next(self._generations), data)
            bucket.updated[name] = time.time()
            return resource(bucket, name)


def resource(bucket: Bucket, name: str) -> dict:
    generation, data = bucket.objects[name]
    updated = datetime.datetime.fromtimestamp(
        bucket.updated.get(name, 0.0), datetime.UTC
    )
    return {
        "kind": "storage#object",
        "name": name,
        "size": str(len(data)),
        "generation": str(generation),
        "metageneration": "1",
        "updated": f"{updated:%Y-%m-%dT%H:%M:%S.%fZ}",
        "timeCreated": "2026-01-01T00:00:00.000Z",
    }


def _check_generation(bucket: Bucket, name: str, query: dict) -> None:
    """Refused unless the object is as ifGenerationMatch says; 0: it is not there."""
    generation = bucket.objects.get(name, (0,))[0]
    condition = query.get("ifGenerationMatch")
    if condition is not None and int(condition) != generation:
        raise Refused(412, "At least one of the pre-conditions did not hold.")


def listing(bucket: Bucket, query: dict) -> dict:
    """One page of the names with a prefix; by `delimiter`, folders in their place."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after, end = query.get("pageToken", ""), query.get("endOffset")
    entries = {}
    for name in bucket.files():
        if not name.startswith(prefix) or name < query.get("startOffset", ""):
            continue
        if end and name >= end:
            continue
        folder, slash, _ = name[len(prefix) :].partition(delimiter or "\0")
        entries[prefix + folder + delimiter if slash else name] = bool(slash)
    left = sorted(name for name in entries if name > after)
    page = left[: min(PAGE, int(query.get("maxResults", PAGE)))]
    answer = {
        "kind": "storage#objects",
        "items": [resource(bucket, name) for name in page if not entries[name]],
        "prefixes": [name for name in page if entries[name]],
    }
    answer = {name: value for name, value in answer.items() if value}
    return answer | ({"nextPageToken": page[-1]} if len(page) < len(left) else {})


class Handler(BaseHTTPRequestHandler):
    """One connection; `server.cloud` is what it works on."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # an answer in one piece

    def log_message(self, *_) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # of a process that was killed
            super().handle()

    def _serve(self) -> None:
        self.cloud: Cloud = self.server.cloud
        body = self._body()
        url = urlsplit(self.path)
        query = {name: x[-1] for name, x in parse_qs(url.query).items()}
        try:
            if url.path.startswith("/computeMetadata"):
                self._answer(*_metadata(url.path, query))
            elif url.path.startswith("/batch/"):
                self._batch(body)
            else:
                with self.cloud.lock:
                    self._answer(*self._route(self.command, url.path, query, body))
        except Refused as refused:
            self._refuse(*refused.args)
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            self._refuse(400, f"not understood here: {self.path}: {error!r}")

    do_GET = do_POST = do_PUT = do_DELETE = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _route(self, verb: str, path: str, query: dict, body: bytes):
        """(answer: an object as JSON or bytes, further headers) of one request."""
        if path.startswith("/upload/"):
            return self._upload(path, query, body)
        if verb == "GET" and (match := BUCKET.fullmatch(path)):
            self._bucket(match, "buckets.get")
            return {"kind": "storage#bucket", "name": match[1]}, {}
        if verb == "GET" and (match := OBJECTS.fullmatch(path)):
            return listing(self._bucket(match, "objects.list"), query), {}
        if verb == "GET" and (match := OBJECT.fullmatch(path)):
            bucket = self._bucket(match, "objects.get")
            return self._read(bucket, self._named(bucket, match[2]), query)
        if verb == "DELETE" and (match := OBJECT.fullmatch(path)):
            bucket = self._bucket(match, "objects.delete")
            name = self._named(bucket, match[2])
            _check_generation(bucket, name, query)
            del bucket.changes()[name]
            return b"", {}
        if verb == "POST" and (match := MOVE.fullmatch(path) or COPY.fullmatch(path)):
            return self._copy(match, moves=bool(MOVE.fullmatch(path))), {}
        raise Refused(501, f"{verb} {path}: not served here")

    def _bucket(self, match: re.Match, permission: str) -> Bucket:
        return self.cloud.bucket(unquote(match[1]), permission)

    def _named(self, bucket: Bucket, quoted: str) -> str:
        if (name := unquote(quoted)) not in bucket.objects:
            raise Refused(404, f"No such object: {name}")
        return name

    def _read(self, bucket: Bucket, name: str, query: dict):
        generation, data = bucket.objects[name]
        _check_generation(bucket, name, query)
        if query.get("ifGenerationNotMatch") == str(generation):
            raise Refused(304, "")
        if query.get("alt") != "media":
            return resource(bucket, name), {}
        headers = {"x-goog-generation": str(generation)}
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not span:
            return data, headers
        size, (first, last) = len(data), span.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if start >= size:
            raise Refused(416, "The requested range cannot be satisfied.")
        return data[start:stop], headers | {
            "Content-Range": f"bytes {start}-{stop - 1}/{size}"
        }

    def _copy(self, match: re.Match, *, moves: bool) -> dict:
        bucket = self._bucket(match, "objects.create")
        name = self._named(bucket, match[2])
        data = bucket.objects[name][1]
        if moves:
            self._bucket(match, "objects.delete")
            del bucket.changes()[name]
        resource = self.cloud.write(bucket, unquote(match[3]), data, {})
        return resource if moves else {"done": True, "resource": resource}

    def _upload(self, path: str, query: dict, body: bytes):
        """In one piece, as metadata and content, or piece by piece."""
        if upload := query.get("upload_id"):
            return self._piece(upload, query, body)
        match = OBJECTS.fullmatch(path)
        bucket = self._bucket(match, "objects.create")
        kind, name = query["uploadType"], query.get("name")
        if kind == "resumable":
            name = name or json.loads(body)["name"]
            upload = str(len(self.cloud.uploads))
            self.cloud.uploads[upload] = bucket, name, b""
            place = f"http://{self.headers['Host']}{self.path}&upload_id={upload}"
            return b"", {"Location": place}
        if kind == "multipart":
            edge = re.search('boundary="?([^";]+)', self.headers["Content-Type"])[1]
            about, content = body.split(f"--{edge}".encode())[1:3]
            name = json.loads(re.split(rb"\r?\n\r?\n", about, maxsplit=1)[1])["name"]
            content = re.split(rb"\r?\n\r?\n", content, maxsplit=1)[1]
            body = content[: -2 if content.endswith(b"\r\n") else -1]
        return self.cloud.write(bucket, name, body, query), {}

    def _piece(self, upload: str, query: dict, body: bytes):
        bucket, name, before = self.cloud.uploads[upload]
        data = before + body
        self.cloud.uploads[upload] = bucket, name, data
        total = self.headers.get("Content-Range", "/").split("/")[1]
        if total == "*":
            self._answer(b"", {"Range": f"bytes=0-{len(data) - 1}"}, 308)
            raise Refused(0, "")
        return self.cloud.write(bucket, name, data, query), {}

    def _batch(self, body: bytes) -> None:
        """Deletions, one answer for each."""
        parts = []
        for path in re.findall(rb"^DELETE (\S+) HTTP", body, re.MULTILINE):
            status, text = 204, ""
            try:
                with self.cloud.lock:
                    self._route("DELETE", urlsplit(path.decode()).path, {}, b"")
            except Refused as refused:
                status, text = refused.args[0], json.dumps(_error(*refused.args))
            parts.append(
                f"Content-Type: application/http\n\nHTTP/1.1 {status} .\n{text}"
            )
        body = "".join(f"--edge\n{part}\n" for part in parts) + "--edge--"
        kind = {"Content-Type": "multipart/mixed; boundary=edge"}
        self._answer(body.encode(), kind)

    def _answer(self, value, headers: dict, status: int = 200) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        if status == 200 and "Content-Range" in headers:
            status = 206
        self.send_response(status)
        kind = (
            "application/octet-stream"
            if isinstance(value, bytes)
            else "application/json"
        )
        headers = {"Content-Type": kind, "Content-Length": str(len(body))} | headers
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, message: str) -> None:
        if status:
            body = b"" if status == 304 else json.dumps(_error(status, message))
            self._answer(body if body == b"" else body.encode(), {}, status)


def _metadata(path: str, query: dict):
    """(answer, headers) of the server that tells a virtual machine who it is."""
    account = {"email": "somebody@example.com", "scopes": ["cloud-platform"]}
    if path.endswith("/token"):
        account = {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}
    elif path.endswith("/project-id"):
        account = b"project"
    elif query.get("recursive") != "true":
        account = b"somebody@example.com/"
    return account, {"Metadata-Flavor": "Google"}


def _error(status: int, message: str) -> dict:
    return {"error": {"code": status, "message": message}}


@contextlib.contextmanager
def serving(*buckets: str, port: int = 0) -> Iterator[tuple[Cloud, str]]:
    """(the cloud, its address) while the block runs."""
    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads, server.cloud = True, Cloud(*buckets)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.cloud, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def environment(address: str) -> dict[str, str]:
    """What sends the three clients there, who get their tokens there too."""
    host = address.removeprefix("http://")
    metadata = ("GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT")
    return dict.fromkeys(metadata, host) | {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        # Which bucket it is would be asked by gRPC.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


if __name__ == "__main__":
    with serving(*sys.argv[2:], port=int(sys.argv[1])) as (cloud, address):
        for name, value in environment(address).items():
            print(f"export {name}={value}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        os._exit(0)
