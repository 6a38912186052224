"""Inputs made to hurt, and what must hold of each: it works, or it is one clear line.

`survives` is the property, `VALUES`, `TEXTS`, `edited` and `edited_json` make the
inputs, and `search` looks for one that breaks the property.
"""

import contextlib
import copy
import json
import os
import pathlib
import re
import signal
import sys
import tempfile
import warnings

import hypothesis
import hypothesis.strategies as st
import jax

from limr_jax import console
from limr_jax.config import load

LONGEST_LINE = 2_100  # characters of an error
SECONDS = 60  # an input may take; as a rule it takes milliseconds
MEMORY = 2**30  # bytes that an input may need beside what there is

# --- Inputs ---------------------------------------------------------------------------

# What a terminal, a page, a table, TensorBoard or mathtext might obey or choke on.
HURTFUL_TEXTS = [
    "",
    " ",
    "\n",
    "\0",
    "a\0b",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "\r\x08\x7f",
    "\u202eexe.txt\u202c",
    "\u2028\u2029\ufeff",
    "\ud800",
    "a\udfffb",
    "<script>alert(1)</script>",
    "</pre>&lt;'\"",
    "| a | b |\n|---|---|",
    "$\\frac{1}$",
    "$$$",
    "../../etc/passwd",
    "/etc/passwd",
    "gs://bucket/x",
    "~root",
    "%s%n{0}{x!r}",
    "{{ 1/0 }}",
    "__import__('os').abort()",
    "nan",
    "-inf",
    "1e999",
    "９９９",
    "é漢🎲",
    "a" * 300,
    "x" * 2**20,
]
HURTFUL_NUMBERS = [
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63) - 1,
    2**64,
    10**400,
    1e308,
    -0.0,
    5e-324,
    0.5,
    float("nan"),
    float("inf"),
    -float("inf"),
]
TEXTS = st.sampled_from(HURTFUL_TEXTS) | st.text(
    st.characters(codec=None, exclude_categories=()), max_size=12
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(HURTFUL_NUMBERS),
    st.integers(),
    st.floats(),
    TEXTS,
)
# What JSON can hold, and what Python's reader of it takes beside that.
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3)
    ),
    max_leaves=5,
)
_PIECES = [
    b"",
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\n\n",
    b'"\\ud800"',
    b"\xed\xa0\x80",
    b"NaN",
    b"1e999",
    b"9" * 5_000,
    b"[" * 100_000,
    b'{"a":' * 5_000,
    b"\x1b[31m",
    b"\xff" * 8,
    b"\x00" * 64,
    b"a" * 2**20,
]
_EDIT = st.tuples(
    st.sampled_from(
        ["set", "insert", "delete", "repeat", "flip", "cut", "head", "swap"]
    ),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**16 - 1),
    st.sampled_from(_PIECES) | st.binary(max_size=12),
)
EDITS = st.lists(_EDIT, min_size=1, max_size=4)


def edited(data: bytes, edits, near: int | None = None) -> bytes:
    """The bytes after the edits, which hypothesis draws from `EDITS`.

    near: how many of the first bytes most edits are within; None: all the same.
    """
    data = bytearray(data)
    for kind, place, size, piece in edits:
        # One edit in four is anywhere; headers are where a reader decides.
        within = near if near and place % 4 else len(data)
        at = place // 4 % max(1, min(within, len(data) or 1))
        if kind == "set":
            data[at : at + len(piece)] = piece
        elif kind == "insert":
            data[at:at] = piece
        elif kind == "delete":
            del data[at : at + 1 + size % 64]
        elif kind == "repeat":
            data[at:at] = data[at : at + 1 + size % 4096]
        elif kind == "flip" and data:
            data[at] ^= 1 << size % 8
        elif kind == "cut":
            del data[at:]
        elif kind == "head":
            del data[: at % 512]
        elif kind == "swap":
            other = size * 2654435761 % max(1, len(data))
            a, b = sorted((at, other))
            data[a : a + 8], data[b : b + 8] = data[b : b + 8], data[a : a + 8]
    return bytes(data)


_CHANGE = st.tuples(
    st.sampled_from(["put", "put", "put", "remove", "add", "copy", "rename"]),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    VALUES,
    TEXTS,
)
CHANGES = st.lists(_CHANGE, min_size=1, max_size=3)


def edited_json(document, changes):
    """A copy of what JSON holds, after changes that are drawn from `CHANGES`."""
    document = copy.deepcopy({"": document})
    for kind, place, other, value, name in changes:
        places = list(_places(document))
        holder, key = places[place % len(places)]
        if kind == "put":
            holder[key] = copy.deepcopy(value)
        elif kind == "copy":
            source, at = places[other % len(places)]
            # A container would come to hold itself, which JSON cannot write.
            holder[key] = copy.deepcopy(source[at])
        elif isinstance(holder, list):
            if kind == "remove":
                del holder[key]
            else:
                holder.insert(key, copy.deepcopy(value))
        elif holder is not document:
            if kind == "add":
                holder[name] = copy.deepcopy(value)
            else:
                kept = holder.pop(key)
                if kind == "rename":
                    holder[name] = kept
    return document[""]


def _places(document):
    """(holder, key) of every value in it, at most some thousand."""
    left = [document]
    while left:
        holder = left.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in list(keys)[:1_000]:
            yield holder, key
            if isinstance(holder[key], (dict, list)):
                left.append(holder[key])


def json_bytes(document) -> bytes:
    """As JSON: lone surrogates as escapes, nan as Python writes it."""
    return json.dumps(document).encode()


# --- The property ---------------------------------------------------------------------


class Hang(BaseException):
    """An input takes longer than any may. No `except Exception` catches it."""


class _Writes:
    """Paths that Python was asked to write, make, move or remove, while it is on."""

    _KINDS = {
        "open": lambda a: [a[0]] if _for_writing(a) else [],
        "os.mkdir": lambda a: a[:1],
        "os.remove": lambda a: a[:1],
        "os.rmdir": lambda a: a[:1],
        "os.rename": lambda a: a[:2],
        "os.link": lambda a: a[1:2],
        "os.symlink": lambda a: a[1:2],
        "os.truncate": lambda a: a[:1],
        "os.chmod": lambda a: a[:1],
        "shutil.rmtree": lambda a: a[:1],
    }

    def __init__(self):
        self.paths: list[str] | None = None
        sys.addaudithook(self._hook)  # for good: Python takes none away

    def _hook(self, event: str, arguments) -> None:
        if self.paths is None or event not in self._KINDS:
            return
        for path in self._KINDS[event](arguments):
            if isinstance(path, (str, bytes, os.PathLike)):
                self.paths.append(os.path.abspath(os.fsdecode(path)))


def _for_writing(arguments) -> bool:
    flags = arguments[2] if len(arguments) > 2 else 0
    return isinstance(flags, int) and bool(
        flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    )


_WRITES = _Writes()
# Files of Python's own, of the machine, and of matplotlib, which keeps a list of fonts.
_ALLOWED = re.compile(r"/dev/.*|/proc/.*|.*/(__pycache__|\.?matplotlib)(/.*)?")


def _peak() -> int:
    """The most memory that this process has held since `_forget_peak`, in bytes."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def _forget_peak() -> None:
    pathlib.Path("/proc/self/clear_refs").write_text("5")


@contextlib.contextmanager
def _clock(seconds: float):
    def late(*_):
        raise Hang(f"it takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def survives(call, folder: pathlib.Path, *, seconds: float = SECONDS):
    """(what `call()` returns, None), or (None, the line of its InputError).

    Fails where it raises anything else, where the line is none or is none that a person
    can read, where it takes too long, grows by a gigabyte, or writes outside `folder`.
    The clock is in this thread, so that a call of a library that never comes back to
    Python hangs the test, which is seen as well.
    """
    # What is written to stderr by C++ is not looked at: a person would see the line.
    _forget_peak()
    start, _WRITES.paths = _peak(), []
    line = result = None
    try:
        with _clock(seconds):
            try:
                result = call()
            except Exception as error:
                # None: a traceback, and so a fault.
                if (line := load.line_of(error)) is None:
                    raise
                line = printed(line)
    finally:
        written, _WRITES.paths = _WRITES.paths, None
    grown = _peak() - start
    assert grown < MEMORY, f"it needs {grown / 2**20:.0f} MiB"
    temporary = tempfile.gettempdir()  # a file without a name is opened as its folder
    inside = [str(folder), os.path.join(temporary, "tmp")]
    if cache := jax.config.jax_compilation_cache_dir:
        inside.append(cache)
    outside = [
        path
        for path in written
        if path != temporary
        and not path.startswith(tuple(inside))
        and not _ALLOWED.fullmatch(path)
    ]
    assert not outside, f"it writes {outside[:3]}"
    return result, line


def printed(line: str) -> str:
    """The line as `config.load.run_main` prints it; fails where nobody can read it."""
    line = console.shown(line)
    assert line.strip() and line == line.strip(), "no line"
    assert len(line) <= LONGEST_LINE, f"{len(line):,} characters: {line[:300]}"
    assert not console.UNSHOWN.search(line), ascii(line)
    return line


def search(cases, check, *, examples: int) -> None:
    """Calls `check(case)` with so many cases of a strategy; the smallest that fails.

    In CI (some dozens) the cases are always the same; of more they are others each
    time, and hypothesis prints the one that fails.
    """

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples <= 100,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
        print_blob=False,
    )
    @hypothesis.given(cases)
    def each(case):
        check(case)

    with warnings.catch_warnings():  # of a case that is a megabyte
        warnings.simplefilter("ignore", hypothesis.errors.HypothesisWarning)
        each()
