"""Files that a command writes: where they may lie, and whole or not at all."""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import shutil
import signal
import sys
import threading
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from limr_jax import console
from limr_jax.errors import InputError
from limr_jax.storage import gcs


@contextlib.contextmanager
def replacing(path) -> Iterator[Any]:
    """Yields a path beside this one; it takes its place when the block has ended well.

    So a reader, or a kill, finds the old file or the new one. Of a link it is the file
    that it leads to. path: pathlib's, or epath's for gs://, where an object is seen
    when it is whole, so that it is yielded itself. InputError: the disk is full, say,
    or a pipe, a device or a circle of links stands there.
    """
    if os.path.islink(path):
        path = type(path)(real(path))
    refuse_special(path)
    # In the same folder, so that to replace is to rename.
    name = f".{path.stem}.{os.getpid()}.tmp{path.suffix}"
    temporary = path if gcs.remote(path) else path.with_name(name)
    try:
        with writing(path):
            yield temporary
            if temporary != path:
                temporary.replace(path)
    finally:
        if temporary != path:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path) -> Iterator[None]:
    """A block that writes `path`: a failure of the system within is an InputError."""
    try:
        yield
    except gcs.failures() as error:
        cause = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path}: cannot be written ({cause}); check path, rights and room"
        ) from error


def write_text(path, text: str) -> None:
    """Write a text file, whole or not at all.

    A lone surrogate, which UTF-8 cannot hold, becomes JSON's own escape of it.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def write_rows(path, rows: Iterable[Mapping]) -> None:
    """Write rows as JSON lines; the file is there whole or not at all."""
    with (
        replacing(pathlib.Path(path)) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        file.writelines(json_line(row) for row in rows)


def json_line(row: Mapping) -> str:
    """A row as JSON with its end of line; letters as they are, for `cat` to show.

    What a terminal would obey, and halves of characters, are JSON's escapes.
    """
    text = json.dumps(row, ensure_ascii=False)
    # "\x1b" → \u001b: JSON's escape, without its quotes.
    return console.UNSHOWN.sub(lambda x: json.dumps(x[0])[1:-1], text) + "\n"


def append(path: pathlib.Path, data: bytes) -> None:
    """Add the bytes at the file's end, or make the file of them.

    Raises:
      OSError: not all of them could be written; then the file is as long as before.
    """
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "ab") as file:
            file.write(data)
    # Half a line would make one with the next: what fitted is taken back.
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise


def folder_name(text: str) -> str:
    """A folder's name for any text: two texts never have one name.

    Letters, digits and `:@+=,._-~` stay, every other byte is written as %XX. So is a
    dot that begins the text: a folder with one is hidden, or is "." or "..". The empty
    text is "%". A name that would be longer than file systems take ends in the text's
    sha256 instead.
    """
    # quote() escapes "%" too, so that "a%20" and "a " stay apart.
    name = urllib.parse.quote(text, safe=":@+=,", errors="surrogatepass")
    if name.startswith("."):
        name = f"%2E{name[1:]}"
    name = name or "%"
    if len(name) <= 180:
        return name
    # 185 characters, more than any name above has: none is the same.
    return f"{name[:120]}%{hashlib.sha256(name.encode()).hexdigest()}"


@contextlib.contextmanager
def new_folder(path, *, writes: bool = True) -> Iterator[pathlib.Path]:
    """Yields a folder beside this one; it gets its name when the block has ended well.

    It is this process's own, so that of two that write one folder the second is
    refused. writes: whether this process does; otherwise nothing is touched.
    InputError: something has the name already, or the folder cannot be written.
    """
    path = pathlib.Path(path).absolute()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    refuse_existing(path)
    absent = [x for x in path.parents if not x.exists()] if writes else []
    try:
        ending = _terminated_as_interrupted() if writes else contextlib.nullcontext()
        with ending:
            if writes:
                # What a killed process of the same number has left.
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            yield temporary
            if writes:
                refuse_existing(path)  # to rename would replace an empty folder
                temporary.rename(path)
    except OSError as error:
        # That another process was quicker says more than the system's error.
        refuse_existing(path)
        cause = error.strerror or error
        raise InputError(
            f"{path}: cannot be written ({cause}); check path, rights and room"
        ) from error
    finally:
        if writes:
            shutil.rmtree(temporary, ignore_errors=True)
            for parent in absent:
                with contextlib.suppress(OSError):  # of a folder that holds something
                    parent.rmdir()


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the block as an exception does, so that it is cleaned up.

    Only where it would kill the process: whoever listens for it goes on to.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number, frame):
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is end:  # nobody has taken it over
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def refuse_existing(path, flag: str = "") -> None:
    """InputError where something has this name, be it a link that leads nowhere."""
    if os.path.lexists(path):
        named = f"{flag}={path}" if flag else path
        raise InputError(f"{named} is there already; give a new directory")


class Lenient:
    """A context in which a write may fail: that is said once, and the program goes on.

    what: the file or folder, as people know it; consequence: what becomes of what was
    to be written. Programs end where they must write, as in a checkpoint; a log that
    cannot be written is no reason for that.
    """

    def __init__(self, what: str, consequence: str):
        self._what, self._consequence = what, consequence
        self._complained = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, _) -> bool:
        if not isinstance(error, (*gcs.failures(), InputError)):
            return False
        if not self._complained:
            # Behind an InputError stands the system's own error, which is short.
            error = error.__cause__ or error
            cause = getattr(error, "strerror", None) or error
            line = f"{self._what} cannot be written ({cause}); {self._consequence}"
            with console.above_bar():
                print(f"warning: {console.shown(line)}", file=sys.stderr, flush=True)
        self._complained = True
        return True


def plain(value: Any) -> Any:
    """The value in Python's own scalars, lists and dicts, as JSON takes them.

    Arrays and NumPy's scalars become such, within mappings, lists and tuples too; a
    mapping's keys become texts.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value.tolist() if hasattr(value, "tolist") else value


def finite(value: Any) -> Any:
    """A value as `plain` gives it, with None for each number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def local(path, flag: str) -> pathlib.Path:
    """The path that a flag gave; InputError where it is not on this machine."""
    if gcs.remote(path):
        raise InputError(f"{flag}={path} is not on this machine; give a local path")
    return pathlib.Path(path)


def real(path) -> pathlib.Path:
    """The absolute path without links; of a circle of links it is one of these.

    pathlib's `resolve` raises RuntimeError for a circle, before Python 3.13.
    """
    return pathlib.Path(os.path.realpath(path))


def refuse_special(path, name: str = "") -> None:
    """InputError where a pipe, a device or a link that leads nowhere has this path.

    name: what the error calls it; "": the path. To be replaced by a file would break
    who reads the pipe, and as root the machine's /dev/null.
    """
    there = os.path.lexists(path)
    if there and not os.path.isfile(path) and not os.path.isdir(path):
        raise InputError(
            f"{name or path} is a pipe, a device or a link that "
            "leads nowhere; give a file"
        )


def check_writable(path, flag: str = "--workdir") -> None:
    """InputError where no file of this name can be made; nothing is made.

    Folders above it may be missing. For gs:// rights are asked for in gcs.py.
    """
    if gcs.remote(path):
        return
    path, cause = pathlib.Path(path).absolute(), ""
    try:
        # The nearest folder above that is there: in it the others would be made.
        # lexists, as a link that leads nowhere is in the way, too.
        above = next(x for x in path.parents if os.path.lexists(x))
        if path.is_dir():
            cause = "it is a folder"
        elif not above.is_dir():
            cause = f"{above} is no folder"
        elif not os.access(above, os.W_OK | os.X_OK):
            cause = f"no right to write in {above}"
    except OSError as error:  # a folder that may not be looked at, or a circle of links
        cause = error.strerror
    if cause:
        raise InputError(f"{path} cannot be written: {cause}; give another {flag}")


def output(path, *read, flag: str = "--out") -> pathlib.Path:
    """The file that a flag names, to be written; before anything is done for it.

    read: files that are read meanwhile; None where one is not given. InputError: it is
    one of these, it is a folder, a pipe, a device or a link that leads nowhere, or
    there is no folder that it could lie in, or no right to write there.
    """
    out = local(path, flag)
    if any(each and real(each) == real(out) for each in read):
        raise InputError(f"{flag} {path} is what is read; give another file")
    if out.is_dir():
        raise InputError(f"{flag} {path} is a folder; give a file in it")
    refuse_special(out, f"{flag} {path}")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{flag} {path}: no such folder; make it first")
    # Where it is a link, what it leads to is written.
    check_writable(real(out), flag)
    return out
