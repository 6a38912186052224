"""A folder on gs://: whether a run can be read there, or kept, before it begins.

Three clients of Google Cloud Storage work on one workdir: gcsfs behind etils.epath (the
small files), TensorStore (the arrays), and Google's own, which Orbax asks about the
bucket. Each has its own words for what is amiss; here it is one line.
"""

import contextlib
import logging
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterable, Iterator

from limr_jax.errors import InputError

# What they log, with a traceback, they raise besides.
for _name in ("gcsfs", "google.auth"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

# Rights on a bucket, as Google names them behind `storage.`.
READ = ("objects.list", "objects.get")
CHECKPOINTS = ("buckets.get", *READ)  # Orbax asks about the bucket
WRITE = (*CHECKPOINTS, "objects.create", "objects.delete")
_SECONDS = 30.0  # after which a question is not asked again

_granted: dict[str, set[str]] = {}  # folder → rights on it that this process has


def remote(path) -> bool:
    """Whether a path is not on this machine; gs:/ with one slash is not, either."""
    return "://" in str(path) or str(path).startswith("gs:")


def check(folder, rights: Iterable[str] = READ) -> None:
    """InputError unless this process has these rights on a folder on gs://.

    For the right to write an object is made there, empty, and removed again. A folder
    on this machine is not looked at. A right is asked for once; what goes wrong later,
    the work itself says.
    """
    if not remote(folder):
        return
    folder = str(folder).rstrip("/")
    name, _, prefix = folder.removeprefix("gs://").partition("/")
    if not folder.startswith("gs://") or not name:
        raise InputError(f"{folder} is neither a local folder nor gs://BUCKET/RUN")
    _ask_afresh(folder)
    granted = _granted.setdefault(folder, set())
    if missing := [right for right in rights if right not in granted]:
        _ask(folder, name=name, prefix=prefix, rights=missing)
        granted.update(missing)


def _ask(folder: str, name: str, prefix: str, rights: list[str]) -> None:
    """InputError unless each of the rights is given."""
    # Here, for without gs:// nothing of Google's need be installed.
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    denied = exceptions.Forbidden, exceptions.Unauthorized
    try:
        questions = _questions(_client(), name, prefix)
        for right in rights:
            try:
                questions[right]()
            except denied as error:
                raise InputError(
                    f"{folder}: the account that asks has no storage.{right} there "
                    f"({_cause(error)}); give it {_roles(rights)} on gs://{name}"
                ) from error
    except InputError:  # a ValueError, as below
        raise
    except exceptions.NotFound as error:
        raise InputError(
            f"{folder}: there is no bucket {name}; correct the name, or make it: "
            f"gcloud storage buckets create gs://{name}"
        ) from error
    except (GoogleAuthError, exceptions.GoogleAPIError, OSError) as error:
        # A server gives the token for credentials; it may be what is out of reach.
        if isinstance(error, GoogleAuthError) and not _of_network(error):
            raise InputError(
                f"{folder}: no credentials for Google Cloud ({_cause(error)}); a TPU "
                "VM has its account's, elsewhere: gcloud auth application-default login"
            ) from error
        raise InputError(
            f"{folder} cannot be reached ({_cause(error)}); check network and project"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{folder}: {name} is no bucket's name ({_cause(error)}); correct it"
        ) from error


def _of_network(error: BaseException | None) -> bool:
    """Whether it, or what it was raised from, is of a server that did not answer."""
    # What `requests` raises is an OSError; google.auth's errors repeat it.
    return error is not None and (
        isinstance(error, OSError) or _of_network(error.__cause__)
    )


def _roles(rights: list[str]) -> str:
    writes = "objects.create" in rights
    roles = "roles/storage.objectAdmin" if writes else "roles/storage.objectViewer"
    if "buckets.get" in rights:
        roles += " and roles/storage.legacyBucketReader"
    return roles


def _ask_afresh(folder: str) -> None:
    """Let gcsfs list a folder each time; InputError where there is no gcsfs.

    Otherwise it remembers listings for good, while other hosts, and TensorStore on
    this one, write there behind its back.
    """
    try:
        import fsspec.config
        import gcsfs  # noqa: F401 (etils.epath imports it)
        from google.cloud import storage  # noqa: F401 (Orbax does)
    except ImportError as error:
        raise InputError(
            f"{folder}: gs:// needs gcsfs, and {error.name or error} is not installed: "
            "pip install gcsfs"
        ) from error
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False


def _client():
    """As Orbax makes it."""
    from google.cloud import storage

    return storage.Client()


def bucket_of(folder):
    """(Google's client of the bucket, the prefix of its objects) of a gs:// folder.

    The prefix ends in "/", but a whole bucket's is "".
    """
    name, _, prefix = str(folder).removeprefix("gs://").partition("/")
    return _client().bucket(name), _prefix(prefix)


def _prefix(text: str) -> str:
    return f"{text.strip('/')}/".lstrip("/")


def _questions(client, name: str, prefix: str) -> dict[str, Callable]:
    """Of each right a call that needs it; in the order of `WRITE`."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    retry = DEFAULT_RETRY.with_timeout(_SECONDS)
    bucket, prefix = client.bucket(name), _prefix(prefix)
    # It need not be there: `exists` then says False, and raises where it may not look.
    run_json = bucket.blob(f"{prefix}run.json")
    # One name a host: where it may not be removed, no second one comes beside it.
    probe = bucket.blob(f"{prefix}.probe-{socket.gethostname()}")
    return {
        "buckets.get": lambda: client.get_bucket(name, retry=retry, timeout=_SECONDS),
        "objects.list": lambda: [
            *bucket.list_blobs(
                prefix=prefix, max_results=1, retry=retry, timeout=_SECONDS
            )
        ],
        "objects.get": lambda: run_json.exists(retry=retry, timeout=_SECONDS),
        "objects.create": lambda: probe.upload_from_string(
            b"", retry=retry, timeout=_SECONDS
        ),
        "objects.delete": lambda: bucket.delete_blobs(
            [probe],
            # It may be gone: after an answer that was lost it is asked for again.
            on_error=lambda _: None,
            retry=retry,
            timeout=_SECONDS,
        ),
    }


def _cause(error: BaseException) -> str:
    """The first line of what Google said, or of the error."""
    response = getattr(error, "response", None)
    try:
        text = response.json()["error"]["message"]
    except (AttributeError, KeyError, TypeError, ValueError):
        text = str(error)
    return text.strip().partition("\n")[0].rstrip(".")


def make_folder(path, *, stays: bool = False) -> None:
    """Make a folder, and those above it, if it is not there.

    On gs:// a folder is there while an object lies in it. stays: one is put there that
    nobody removes. (Orbax, which removes an unfinished first checkpoint as it lists the
    others, would find no folder.)

    Raises:
      InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if stays and remote(path):
            (path / ".folder").write_bytes(b"")
    except failures() as error:
        raise InputError(
            f"{path} cannot be made ({_cause(error)}); check path and rights"
        ) from error


@contextlib.contextmanager
def reading(path) -> Iterator[None]:
    """A block that reads `path`: a failure within is an InputError; so is a pipe."""
    refuse_pipe(path)
    try:
        yield
    except failures() as error:
        raise InputError(
            f"{path} cannot be read ({_cause(error)}); mend it, then give the same "
            "command again"
        ) from error


def refuse_pipe(path) -> None:
    """InputError for what is neither a file nor a folder: one would wait to open it."""
    try:
        mode = 0 if remote(path) else os.stat(path).st_mode
    except OSError:
        return  # whoever opens it is told
    if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path} is no file, but a pipe or a device; remove it")


def failures() -> tuple[type[BaseException], ...]:
    """The exceptions that a failure to read or write raises, on gs:// or on a disk."""
    kinds = [OSError]
    # As long as it is not imported nothing of it can have been raised.
    if "gcsfs" in sys.modules:
        import aiohttp
        from gcsfs.retry import ChecksumError, HttpError, NonRetryableError
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError

        kinds += [HttpError, ChecksumError, NonRetryableError]
        kinds += [aiohttp.ClientError, GoogleAPIError, GoogleAuthError]
    return tuple(kinds)
