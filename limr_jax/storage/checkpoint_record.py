"""What a checkpoint says of itself: its step, its arrays, and a digest of each.

`read` and `examining` decide whether a step is what was saved, or `Damaged`.
"""

import contextlib
import hashlib
import json
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from limr_jax.errors import InputError
from limr_jax.storage import array_digest, gcs

# With these TensorStore says that it could not look, not that something is amiss.
_NOT_SEEN = re.compile(
    "PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED"
)
# What is heard of Orbax's reads and writes that end, or never start, after a failure.
_NEVER_STARTED = r"coroutine '(_read_|async_(de)?serialize)[\w.<>]*' was never awaited"
_UNHEARD = re.compile(
    f"Event loop is closed|Encountered error while reading array index|{_NEVER_STARTED}"
)


class Damaged(InputError):
    """A checkpoint that is not what was saved; the message names what is broken."""


def make(
    step: int,
    meta: Mapping[str, Any],
    arrays: Mapping[str, jax.Array],
    digests: Mapping[str, str],
) -> dict[str, Any]:
    """The record of a checkpoint, as JSON can hold it, with its own sha256.

    meta: what the caller keeps beside the arrays. digests: `array_digest.collect`.
    """
    record = {
        "step": step,
        "meta": dict(meta),
        "arrays": {
            name: {
                "shape": list(array.shape),
                "dtype": np.dtype(array.dtype).name,
                "digest": digests.get(name),  # None: the array holds no number
            }
            for name, array in arrays.items()
        },
    }
    return record | {"sha256": _sha256(record)}


def _sha256(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def read(path: epath.Path, file: str, step: int) -> dict[str, Any] | None:
    """The record in a file of the step at `path`; Damaged unless it is as it was made.

    None for a checkpoint of limr_jax 0.2, which has no digests.
    """
    with examining(path, file):
        record = json.loads((path / file).read_text())
        # Both keys are missing in 0.2 alone; where one is, the file is damaged.
        if isinstance(record, dict) and not {"arrays", "sha256"} & record.keys():
            return None
        sha256 = record.pop("sha256")
        whole = sha256 == _sha256(record)
    # Another step's record: the folder was copied under a wrong number.
    if not whole or record["step"] != step:
        what = f"is of step {record['step']}" if whole else "is not what was saved"
        raise Damaged(f"{path} is damaged: {file} {what}")
    return record


def shapes(record: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of each array of a record, by name."""
    return {
        name: jax.ShapeDtypeStruct(tuple(x["shape"]), np.dtype(x["dtype"]))
        for name, x in record["arrays"].items()
    }


def difference(
    path: epath.Path, record: Mapping[str, Any], arrays: Mapping[str, jax.Array]
) -> str | None:
    """Which of the arrays are not those of the record; None where all are.

    All processes call it, and all get the same answer.
    """
    with jax.transfer_guard("allow"):
        digests = array_digest.collect(array_digest.queue(arrays))
    saved = record["arrays"]
    wrong = [name for name in digests if digests[name] != saved[name]["digest"]]
    if not wrong:
        return None
    more = f" and {len(wrong) - 1} more differ" if len(wrong) > 1 else " differs"
    return f"{path} is damaged: {wrong[0]}{more} from what was saved"


@contextlib.contextmanager
def examining(path: epath.Path, part: str) -> Iterator[None]:
    """A file that is gone or makes no sense is Damaged; one out of reach InputError.

    path: of the step; part: what is read of it.
    """
    try:
        yield
    except (InputError, jax.errors.JaxRuntimeError, MemoryError):
        raise
    except Exception as error:  # Orbax and TensorStore raise whatever comes
        # Orbax raises a bare Exception from what TensorStore has raised.
        cause = error.__cause__ if type(error) is Exception else error
        text = getattr(cause, "strerror", None) or str(cause)
        text = " ".join(text.split(" [")[0].split()).replace(f"{path}/", "")
        # A file that is gone is damage; a right or a network that is missing is not.
        unseen = isinstance(error, gcs.failures()) and not isinstance(
            error, FileNotFoundError | NotADirectoryError | IsADirectoryError
        )
        if unseen or _NOT_SEEN.search(text):
            raise InputError(
                f"{path} cannot be read ({part}: {text}); mend it, then give the same "
                "command again"
            ) from error
        what = text if isinstance(cause, OSError | ValueError) else repr(cause)
        raise Damaged(f"{path} is damaged: {part}: {what[:300]}") from error


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Whether a log record is of no exception that Orbax or TensorStore has raised."""
    error = record.exc_info and record.exc_info[1]
    if not error:
        return True
    frames = traceback.extract_tb(error.__traceback__)
    # Without frames it was made in C++.
    return bool(frames) and not any("orbax" in frame.filename for frame in frames)


# Of several reads that fail Orbax raises one; asyncio would log each of the others.
logging.getLogger("asyncio").addFilter(_not_of_orbax)


class _Unheard:
    """A `sys.unraisablehook` that leaves what Orbax did not hear to nobody."""

    def __init__(self, before: Callable):
        self._before = before  # the hook for all else

    def __call__(self, unraisable) -> None:
        if not _UNHEARD.match(str(unraisable.exc_value)):
            self._before(unraisable)


def silence_unheard() -> None:
    """Print no traceback of what ends after Orbax has stopped to listen.

    It does so at the first failure; each read or write under way would print its own,
    now or seconds later.
    """
    # A second call would wrap the hook once more.
    if not isinstance(sys.unraisablehook, _Unheard):
        sys.unraisablehook = _Unheard(sys.unraisablehook)
    warnings.filterwarnings("ignore", _NEVER_STARTED, RuntimeWarning)


def check_fits(path, saved: Mapping, template: Mapping, *, partial: bool) -> None:
    """InputError unless each array of the template is there, in its shape and dtype."""
    remedy = "give the config that it was saved with, or another --workdir"
    extra = [] if partial else sorted(saved.keys() - template.keys())
    # Arrays without a number were never written: a list of the files lacks them.
    absent = [name for name in template if name not in saved and template[name].size]
    if absent or extra:
        what = [f"lacks {name}" for name in absent[:1]]
        what += [f"has {name}" for name in extra[:1]]
        count = len(absent) + len(extra)
        raise InputError(
            f"{path} does not fit: it {' and '.join(what)} ({count} names differ); "
            f"{remedy}"
        )
    for name in sorted(saved.keys() & template.keys()):
        leaf = template[name]
        template_shape, saved_shape = tuple(leaf.shape), tuple(saved[name].shape)
        if template_shape != saved_shape:
            raise InputError(
                f"{path} does not fit: {name} has shape {saved_shape}, not "
                f"{template_shape}; {remedy}"
            )
        if np.dtype(saved[name].dtype) != np.dtype(leaf.dtype):
            raise InputError(
                f"{path} does not fit: {name} is {saved[name].dtype}, "
                f"not {np.dtype(leaf.dtype)}; {remedy}"
            )
