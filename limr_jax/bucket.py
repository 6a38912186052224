"""A folder on gs://: whether a run can be read there, or kept, before it begins.

Three clients of Google Cloud Storage work on one workdir: gcsfs behind etils.epath (the
small files), TensorStore (the arrays), and Google's own, which Orbax asks about the
bucket. Each has its own words for what is amiss; here it is one line.
"""

import functools
import logging
import sys
import uuid
from collections.abc import Iterator

from limr_jax.errors import InputError

# What they log, with a traceback, they raise besides.
for _name in ("gcsfs", "google.auth"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_ROLES = "roles/storage.objectAdmin and roles/storage.legacyBucketReader"
_SECONDS = 30.0  # that an answer may take


@functools.cache
def check(folder: str, *, writes: bool = False) -> None:
    """InputError unless this process can read, or write, in a folder on gs://.

    writes: an object is made there, empty, and removed again. A folder on this machine
    is not looked at. Asked once; what goes wrong later, the work itself says.
    """
    folder = str(folder)
    if "://" not in folder:
        return
    name, _, prefix = folder.removeprefix("gs://").partition("/")
    if not folder.startswith("gs://") or not name:
        raise InputError(f"{folder} is neither a local folder nor gs://BUCKET/RUN")
    _ask_afresh(folder)
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    denied = exceptions.Forbidden, exceptions.Unauthorized
    try:
        client = _client()
        for right, ask in _questions(client, name, prefix, writes):
            try:
                ask()
            except denied as error:
                raise InputError(
                    f"{folder}: the account that asks has no storage.{right} there "
                    f"({_cause(error)}); give it {_ROLES} on gs://{name}"
                ) from error
    except exceptions.NotFound as error:
        raise InputError(
            f"{folder}: there is no bucket {name}; correct the name, or make it: "
            f"gcloud storage buckets create gs://{name}"
        ) from error
    except GoogleAuthError as error:
        raise InputError(
            f"{folder}: no credentials for Google Cloud ({_cause(error)}); a TPU VM "
            "has its account's, elsewhere: gcloud auth application-default login"
        ) from error
    except (exceptions.GoogleAPIError, OSError) as error:
        raise InputError(
            f"{folder} cannot be reached ({_cause(error)}); check network and project"
        ) from error


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


def _questions(client, name: str, prefix: str, writes: bool) -> Iterator[tuple]:
    """(the right, a call that needs it) for each that a run, or a reader, asks for."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    short = {"retry": DEFAULT_RETRY.with_timeout(_SECONDS), "timeout": _SECONDS}
    bucket, prefix = client.bucket(name), f"{prefix.strip('/')}/".lstrip("/")
    yield "buckets.get", lambda: client.get_bucket(name, **short)
    listed = {"prefix": prefix, "max_results": 1}
    yield "objects.list", lambda: [*bucket.list_blobs(**listed, **short)]
    known = bucket.blob(f"{prefix}run.json")
    yield "objects.get", lambda: known.exists(**short)
    if writes:
        probe = bucket.blob(f"{prefix}.probe-{uuid.uuid4().hex}")
        yield "objects.create", lambda: probe.upload_from_string(b"", **short)
        # It may be gone: after an answer that was lost it is asked for again.
        gone = {"on_error": lambda _: None}
        yield "objects.delete", lambda: bucket.delete_blobs([probe], **gone, **short)


def _cause(error: BaseException) -> str:
    """The first line of what Google said, or of the error."""
    said = getattr(error, "response", None)
    try:
        text = said.json()["error"]["message"]
    except (AttributeError, KeyError, TypeError, ValueError):
        text = str(error)
    return text.strip().partition("\n")[0].rstrip(".")


def make_folder(path) -> None:
    """The folder, which stays when all that is in it has gone.

    On gs:// a folder is there while an object lies in it, and Orbax, which removes an
    unfinished first checkpoint as it lists the others, would find none.
    """
    path.mkdir(parents=True, exist_ok=True)
    if "://" in str(path):
        (path / ".folder").write_bytes(b"")


def failures() -> tuple[type[BaseException], ...]:
    """What reading and writing raises, on gs:// or on a disk, where it fails."""
    found = [OSError]
    if "gcsfs" in sys.modules:
        import aiohttp
        from gcsfs.retry import HttpError
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError

        found += [HttpError, aiohttp.ClientError, GoogleAPIError, GoogleAuthError]
    return tuple(found)
