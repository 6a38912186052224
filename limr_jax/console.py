"""What is printed, by one process of a run, and so that no reader that leaves ends it.

Ids, names of tensors and what a policy wrote come from elsewhere. A terminal would obey
the control characters in them, and show what stands behind an override of the writing's
direction in another order than it is.
"""

import contextlib
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Controls (also those of 8 bits), marks and overrides of direction, line separators,
# what is invisible, and halves of characters, which no stream can encode.
UNSHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)

_LONGEST = 2_000  # characters of a warning

# What `step_line` shows of what is there: name → (label, format), in this order.
_COLUMNS = {
    "epoch": ("epoch", "5.2f"),
    "reward": ("reward", "6.3f"),
    "pass_rate": ("pass", "5.3f"),
    "accuracy": ("accuracy", "6.2%"),
    "jepo/bound": ("bound", "8.3f"),
    "loss": ("loss", "7.4f"),
    "response_length": ("length", "6.1f"),
    "kl": ("kl", "8.1e"),
    "entropy": ("entropy", "6.3f"),
    "gradient_norm": ("gradient", "7.3f"),
    "tokens_per_second": ("tokens/s", "8,.0f"),
    "seconds": ("seconds", "6.2f"),
}


def shown(text: str) -> str:
    """The text with such characters as escapes (`\\x1b`); new lines and tabs stay."""
    return UNSHOWN.sub(
        lambda match: (
            match[0]
            if match[0] in "\n\t"
            else match[0].encode("unicode_escape").decode()
        ),
        text,
    )


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """While it lasts, both streams show text as `shown` does, and none ends a program.

    A progress bar alone moves the cursor (`Stream.obeyed`). Where the reader has gone
    (`| head`) the rest is not written. Where it cannot be written for another reason (a
    full disk) that is said once, on stderr.
    """
    # stderr too: tracebacks and Python's own warnings have others' text in them.
    streams = Stream(sys.stdout), Stream(sys.stderr)
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            yield
        finally:
            for stream in streams:
                stream.end()


def traceback_hook(kind, error, trace) -> None:
    """For `sys.excepthook`: the traceback as `shown`, its lines not too long."""
    text = "".join(traceback.format_exception(kind, error, trace))
    lines = (line[:_LONGEST] for line in shown(text).split("\n"))
    with contextlib.suppress(OSError, ValueError):  # a reader that left, or closed
        sys.stderr.write("\n".join(lines))


class Stream:
    """A text stream that writes what it can, and raises nothing where it cannot."""

    def __init__(self, stream):
        self._stream = stream
        self._complained = False

    def write(self, text: str) -> int:
        """Write, as `shown`, as much as the stream takes; all counts as written."""
        return self.write_obeyed(shown(text), len(text))

    def write_obeyed(self, text: str, length: int | None = None) -> int:
        """Write as `write`, but let a terminal obey what moves its cursor."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with self._tolerant():
            # "→" becomes "\u2192" where the stream is ASCII, and no exception.
            self._stream.write(
                text.encode(encoding, "backslashreplace").decode(encoding)
            )
        return len(text) if length is None else length

    @property
    def obeyed(self) -> "_Obeyed":
        """This stream for a progress bar, which moves the cursor on purpose."""
        return _Obeyed(self)

    def flush(self) -> None:
        """Flush, if the stream can be."""
        with self._tolerant():
            self._stream.flush()

    def end(self) -> None:
        """Flush; what can still not be written is dropped, lest it be tried at exit."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._drop()

    # What else callers ask of a stream: isatty, fileno, encoding.
    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._drop()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            # A stderr that fails has nowhere to say so; that stdout does is said once.
            if self._stream is not sys.__stderr__ and not self._complained:
                self._complained = True
                cause = getattr(error, "strerror", None) or error
                print(f"warning: output is lost ({cause})", file=sys.stderr)

    def _drop(self) -> None:
        """From here on the stream leads nowhere."""
        with contextlib.suppress(OSError, ValueError):
            # Under the same descriptor: what is buffered, and Python's flush at exit,
            # then go nowhere instead of failing again.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()


class _Obeyed:
    """A `Stream` that passes on what a terminal obeys; in all else it is that stream.

    tqdm takes its bars away before it writes to a stream that equals a bar's own.
    """

    def __init__(self, stream: Stream):
        self._of = stream

    def write(self, text: str) -> int:
        return self._of.write_obeyed(text)

    def __eq__(self, other) -> bool:
        return (other._of if isinstance(other, _Obeyed) else other) is self._of

    def __hash__(self) -> int:
        return hash(id(self._of))

    def __getattr__(self, name: str):
        return getattr(self._of, name)


def say(text: str) -> None:
    """Print a text on stdout (process 0), above whatever bar is on the terminal.

    As `shown`, where no `guarded` sees to that, as in a notebook, too.
    """
    if _speaks():
        _write(shown(text), sys.stdout)
        sys.stdout.flush()


def warn(text: str) -> None:
    """Print one line on stderr (process 0): what went wrong, and ends nothing."""
    if _speaks():
        # A new line in an id would begin a line that looks like the program's own.
        line = shown(" ".join(text.split()))
        _write(f"warning: {line[:_LONGEST]}", sys.stderr)


def step_line(
    step: int, values: Mapping[str, Any], *, num_steps: int | None = None
) -> str:
    """One readable line of a step: whichever of the usual numbers are there.

    values: the step's metrics by name; None is shown as a dash. num_steps: how many
    steps the run has, where that is to be shown.
    """
    of = "" if num_steps is None else f"/{num_steps}"
    # As wide as the last step's number, so that lines stand in columns.
    parts = [f"step {step:>{len(of) - 1 if of else 5}}{of}"]
    for name, (label, form) in _COLUMNS.items():
        if name in values:
            # "8,.0f" is 8 wide: a dash takes as much room as a number would.
            width = int(form.split(".")[0].rstrip(","))
            value = values[name]
            text = f"{'-':>{width}}" if value is None else f"{float(value):{form}}"
            parts.append(f"{label} {text}")
    return "  ".join(parts)


@contextlib.contextmanager
def progress(
    label: str,
    total: int | None = None,
    *,
    unit: str = "step",
    every: float = 30.0,
    stream=None,
) -> Iterator[Callable[..., None]]:
    """Progress of one phase on stderr: yields `advance(count=1)`.

    total: units of the whole phase; None: unknown. On a terminal there is a bar, gone
    when the phase ends. Elsewhere there are plain lines, at most one in `every`
    seconds, so that a short phase prints none. Process 0 alone speaks.
    """
    stream = sys.stderr if stream is None else stream
    label = shown(" ".join(label.split()))
    speaks = _speaks()
    if speaks and stream.isatty():
        import tqdm

        bar = tqdm.tqdm(
            total=total,
            desc=label,
            unit=unit,
            file=stream.obeyed if isinstance(stream, Stream) else stream,
            leave=False,
            mininterval=0.2,
        )
        with bar:
            yield lambda count=1: bar.update(count) and None
        return
    done, start = 0, time.monotonic()
    last = start

    def advance(count: int = 1) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if speaks and now - last >= every:
            last = now
            spent, of, left = now - start, "", ""
            if total is not None:
                of = f"/{total}"
                if done:  # else nothing says how fast it goes
                    left = f", {spent * (total / done - 1):.0f} s left"
            print(f"{label} {done}{of} {unit}s, {spent:.0f} s{left}", file=stream)
            stream.flush()

    yield advance


# JAX and tqdm are imported where they are needed: this module answers a misspelt flag,
# which should not wait for them.
def _speaks() -> bool:
    """Whether this process is the run's one that prints."""
    import jax

    return jax.process_index() == 0


def _write(text: str, stream) -> None:
    import tqdm

    # It takes a bar off the terminal first, and draws it again below the text.
    tqdm.tqdm.write(text, file=stream)
