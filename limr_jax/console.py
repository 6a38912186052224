"""What is printed, by one process of a run, and so that no reader that leaves ends it.

Ids, names of tensors and what a policy wrote come from elsewhere. A terminal would obey
the control characters in them, and show what stands behind an override of the writing's
direction in another order than it is.

On a terminal a phase has a bar, which is the last line and the only one; elsewhere
there are plain lines, and no control sequence. Colours are on a terminal alone.
"""

import collections
import contextlib
import itertools
import os
import re
import sys
import threading
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Controls (also those of 8 bits), marks and overrides of direction, line separators,
# what is invisible, and halves of characters, which no stream can encode.
UNSHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)

_LONGEST = 2_000  # characters of a warning
# The five numbers of a step's line; of each entry the first name that the step has, as
# name → (label, format). metrics.jsonl has all the others, METRICS.md their meaning.
#   Is it learning?          the reward: what is optimised. Of JEPO, which has none, the
#                            bound it climbs, and of fine-tuning the loss.
#   Does that generalise?    the last held-out accuracy.
#   Is it degenerating?      the length, which collapses or runs away first; then
#                            how far the policy is from the reference, or, without
#                            one, how much of its entropy is left.
#   How fast?                tokens a second; with the time left behind it.
# The pass rate is left out, as most rewards are it; gradient norm and drift, since a
# bad one is warned about by name.
_COLUMNS = (
    {
        "jepo/bound": ("bound", "8.3f"),
        "reward": ("reward", "6.3f"),
        "loss": ("loss", "7.4f"),
    },
    {"accuracy": ("held-out", "6.1%")},
    {"response_length": ("length", "6.1f"), "gradient_norm": ("gradient", "7.3f")},
    {"kl": ("kl", "8.1e"), "entropy": ("entropy", "6.3f")},
    {"tokens_per_second": ("tokens/s", "8,.0f"), "seconds": ("seconds", "6.2f")},
)
_DIM, _RED, _YELLOW = "2", "31", "33"  # SGR codes
_CLEAR = "\r\x1b[K"  # the cursor to the line's begin, and what stands there away
_TICK = 0.5  # seconds between two drawings of a bar
_LATE = 0.5  # seconds that a phase takes before it gets a bar: others would flicker
_LONG = 30.0  # seconds of a phase that is worth a plain line
_RECENT = 32  # steps whose mean is what the next ones will take


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

    What is ours alone moves the cursor and has colours (`Stream.write_trusted`). Where
    the reader has gone (`| head`) the rest is not written. Where it cannot be written
    for another reason (a full disk) that is said once, on stderr.
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
        self.write_trusted(shown(text))
        return len(text)

    def write_trusted(self, text: str) -> int:
        """`write` of a text of ours, whose colours and moves a terminal is to obey."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with self._tolerant():
            # "→" becomes "\u2192" where the stream is ASCII, and no exception.
            self._stream.write(
                text.encode(encoding, "backslashreplace").decode(encoding)
            )
        return len(text)

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


def say(text: str) -> None:
    """Print a text on stdout (process 0), above whatever bar is on the terminal.

    As `shown`, where no `guarded` sees to that, as in a notebook, too.
    """
    if _speaks():
        with above_bar():
            print(shown(text), flush=True)


def warn(text: str) -> None:
    """Print one line on stderr (process 0): what went wrong, and ends nothing."""
    if _speaks():
        # A new line in an id would begin a line that looks like the program's own.
        line = shown(" ".join(text.split()))[:_LONGEST]
        with above_bar():
            word = painted("warning:", _YELLOW, sys.stderr)
            _write_trusted(f"{word} {line}\n", sys.stderr)


def error(text: str) -> None:
    """Print the one line on stderr that says why a program ends; any process."""
    with above_bar():
        word = painted("error:", _RED, sys.stderr)
        _write_trusted(f"{word} {shown(text)}\n", sys.stderr)


def is_terminal(stream) -> bool:
    """Whether the cursor may be moved there: a terminal, and not TERM=dumb."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def painted(text: str, code: str, stream) -> str:
    """The text in a colour, by its SGR code; as it is where colours are unwanted.

    That is elsewhere than on a terminal, and where NO_COLOR is set (no-color.org).
    """
    if not is_terminal(stream) or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def width(stream) -> int:
    """Columns of the terminal; 80 where it does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return 80


def duration(seconds: float) -> str:
    """A time in its two largest units, rounded: `45 s`, `12 min`, `3 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"


class TimeLeft:
    """How long a run will still take, by the steps of this process so far.

    The first step is left out, since its programs compile in it; so is all before it.
    A run that is taken up therefore knows nothing until its second step has ended.
    """

    def __init__(self, num_steps: int, clock: Callable[[], float] = time.monotonic):
        self._num_steps, self._clock = num_steps, clock
        self._recent: collections.deque[float] = collections.deque(maxlen=_RECENT)
        self._begun: tuple[int, float] | None = None  # the first step, and its end
        self._seconds = 0.0  # of the steps since then

    def after(self, step: int, seconds: float | None = None) -> float | None:
        """Seconds left after this step; None: not known yet.

        seconds: that the step itself took; None: all since the last call, which may be
        of several steps, counts.
        """
        now = self._clock()
        if self._begun is None:
            self._begun = self._last = step, now
            return None
        steps = step - self._last[0]
        each = (now - self._last[1]) / steps if seconds is None else seconds
        self._recent.append(each)
        self._seconds += each * steps
        self._last = step, now
        first, begun = self._begun
        # Evaluations, saves and logs between the steps, spread over all of them.
        others = max(0.0, now - begun - self._seconds) / (step - first)
        mean = sum(self._recent) / len(self._recent)
        return (mean + others) * (self._num_steps - step)


def step_line(
    step: int,
    values: Mapping[str, Any],
    *,
    num_steps: int | None = None,
    left: float | None = None,
) -> str:
    """One readable line of a step: `_COLUMNS`, as far as the step has them.

    values: the step's metrics by name; None is shown as a dash. num_steps: how many
    steps the run has, where that is to be shown. left: seconds left, likewise.
    """
    return _joined(_parts(step, values, num_steps, left))


def say_step(
    step: int,
    values: Mapping[str, Any],
    *,
    num_steps: int | None = None,
    left: float | None = None,
) -> None:
    """Print `step_line` (process 0).

    On a terminal that is narrower, numbers are left out from the last on, and labels
    are dim.
    """
    if not _speaks():
        return
    parts, end = _parts(step, values, num_steps, left), 0 if left is None else 1
    if is_terminal(sys.stdout):
        room = width(sys.stdout) - 1
        # The step and the time left stay, and the first number if it can.
        while len(parts) > 1 + end and len(_joined(parts)) > room:
            del parts[-1 - end]
        text = "  ".join(
            f"{painted(label, _DIM, sys.stdout)} {number}".rstrip()
            for label, number in parts
        )
        text = text if len(_joined(parts)) <= room else _joined(parts)[:room]
    else:
        text = _joined(parts)
    with above_bar():
        _write_trusted(text + "\n", sys.stdout)


def _joined(parts: list[tuple[str, str]]) -> str:
    return "  ".join(f"{label} {number}".rstrip() for label, number in parts)


def _parts(step, values, num_steps, left) -> list[tuple[str, str]]:
    """(label, number) of each part of a step's line."""
    of = "" if num_steps is None else f"/{num_steps}"
    # As wide as the last step's number, so that lines stand in columns.
    parts = [("step", f"{step:>{len(of) - 1 if of else 5}}{of}")]
    for choice in _COLUMNS:
        name = next((name for name in choice if name in values), None)
        if name is not None:
            label, form = choice[name]
            # "8,.0f" is 8 wide: a dash takes as much room as a number would.
            places, value = int(form.split(".")[0].rstrip(",")), values[name]
            number = f"{'-':>{places}}" if value is None else f"{float(value):{form}}"
            parts.append((label, number))
    return parts if left is None else [*parts, ("left", duration(left))]


class _Bar:
    """One phase on the terminal: how far it is, and how long it takes."""

    def __init__(
        self, label: str, total: int | None, done: int, stream, *, guesses: bool = True
    ):
        self.label, self.total, self.stream = label, total, stream
        self.guesses = guesses  # the time left, by what is done
        self.done = self.first = done
        self.began = time.monotonic()
        self._left: tuple[float, float] | None = None  # seconds, and when that was so

    def advance(self, count: int = 1, left: float | None = None) -> None:
        self.done += count
        if left is not None:  # else what was said last goes on, less what has passed
            self._left = left, time.monotonic()

    def line(self, columns: int) -> str:
        """The bar, at most so many columns wide; of no total the label and seconds."""
        import tqdm

        spent = time.monotonic() - self.began
        if not self.total:
            counted = f" {self.done}" if self.done else ""
            return fitted(f"{self.label}{counted}  {duration(spent)}", columns)
        left = None
        if self._left is not None:
            left = max(0.0, self._left[0] - (time.monotonic() - self._left[1]))
        elif self.guesses:
            left = seconds_left(spent, self.done - self.first, self.total - self.done)
        encoding = (getattr(self.stream, "encoding", None) or "").lower()
        return tqdm.tqdm.format_meter(
            self.done,
            self.total,
            spent,
            ncols=columns,
            prefix=self.label,
            ascii=not encoding.startswith("utf"),
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            # The seconds so far show that it goes on, where no more is known.
            postfix=duration(spent) if left is None else f"{duration(left)} left",
        )


class _Screen:
    """The last line of the terminal: the bar of the innermost phase, and no other."""

    def __init__(self):
        self._bars: list[_Bar] = []
        self._lock = threading.RLock()
        self._drawn = False

    @contextlib.contextmanager
    def showing(self, bar: _Bar) -> Iterator[None]:
        """While it lasts, the bar stands there, and is drawn anew now and then."""
        with self._lock:
            self._hide()
            self._bars.append(bar)
        over = threading.Event()
        threading.Thread(target=self._tick, args=(bar, over), daemon=True).start()
        try:
            yield
        finally:
            over.set()
            with self._lock:
                self._hide()
                self._bars.remove(bar)
                self.draw()

    @contextlib.contextmanager
    def without(self) -> Iterator[None]:
        """While it lasts there is no bar, and lines can be printed."""
        with self._lock:
            self._hide()
            try:
                yield
            finally:
                self.draw()

    def draw(self) -> None:
        """The innermost bar as it is now, if it has lasted long enough."""
        with self._lock:
            bar = self._bars[-1] if self._bars else None
            if bar and time.monotonic() - bar.began >= _LATE:
                # One column less: in the last one some terminals begin a new line.
                line = bar.line(max(1, width(bar.stream) - 1))
                self._drawn = True
                _write_trusted(_CLEAR + line, bar.stream)

    def _hide(self) -> None:
        if self._drawn:
            _write_trusted(_CLEAR, self._bars[-1].stream)
        self._drawn = False

    def _tick(self, bar: _Bar, over: threading.Event) -> None:
        while not over.wait(_TICK):
            # A terminal that has gone is no reason to end.
            with contextlib.suppress(OSError, ValueError), self._lock:
                if self._bars and self._bars[-1] is bar:
                    self.draw()


_screen = _Screen()


def above_bar() -> contextlib.AbstractContextManager:
    """A context for printing whole lines: whatever bar there is stands below them."""
    return _screen.without()


def seconds_left(spent: float, done: int, left: int) -> float | None:
    """What `left` more will take, as `done` took `spent`; None where nothing is done.

    spent: seconds.
    """
    return spent * left / done if done > 0 else None


def fitted(text: str, columns: int) -> str:
    """The text's begin that takes at most so many columns of a terminal."""
    wide = itertools.accumulate(
        2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text
    )
    return text[: sum(1 for end in wide if end <= columns)]


@contextlib.contextmanager
def progress(
    label: str,
    total: int | None = None,
    *,
    done: int = 0,
    unit: str = "step",
    every: float | None = 30.0,
    stream=None,
) -> Iterator[Callable[..., None]]:
    """Progress of one phase on stderr: yields `advance(count=1, left=None)`.

    total: units of the whole phase; None: unknown. done: units that were done before.
    left: seconds that the rest will take, where the caller knows better.
    On a terminal there is a bar, gone when the phase ends, or when another one begins
    within it, as long as that lasts. Elsewhere there are plain lines, at most one in
    `every` seconds, so that a short phase prints none. None: the phase prints lines of
    its own, and says what time is left; there is no other line, and no guess of it.
    Process 0 alone speaks.
    """
    stream = sys.stderr if stream is None else stream
    label = shown(" ".join(label.split()))
    speaks = _speaks()
    if speaks and is_terminal(stream):
        bar = _Bar(label, total, done, stream, guesses=every is not None)

        def move(count: int = 1, left: float | None = None) -> None:
            bar.advance(count, left)
            _screen.draw()

        with _screen.showing(bar):
            yield move
        return
    first, start = done, time.monotonic()
    last = start

    def advance(count: int = 1, left: float | None = None) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if speaks and every is not None and now - last >= every:
            last = now
            spent, of, end = now - start, "", ""
            if total is not None:
                of = f"/{total}"
                if left is None:
                    left = seconds_left(spent, done - first, total - done)
                end = "" if left is None else f", {duration(left)} left"
            print(f"{label} {done}{of} {unit}s, {duration(spent)}{end}", file=stream)
            stream.flush()

    yield advance


@contextlib.contextmanager
def phase(label: str, stream=None) -> Iterator[None]:
    """A phase that nobody can count, on stderr: its name and the seconds so far.

    On a terminal, while it lasts. Elsewhere a line when it has ended, where it took
    `_LONG` seconds or more. Process 0 alone speaks.
    """
    stream = sys.stderr if stream is None else stream
    label = shown(" ".join(label.split()))
    start, speaks = time.monotonic(), _speaks()
    if speaks and is_terminal(stream):
        with _screen.showing(_Bar(label, None, 0, stream)):
            yield
        return
    yield
    spent = time.monotonic() - start
    if speaks and spent >= _LONG:
        print(f"{label}: {duration(spent)}", file=stream)
        stream.flush()


# JAX and tqdm are imported where they are needed: this module answers a misspelt flag,
# which should not wait for them.
def _speaks() -> bool:
    """Whether this process is the run's one that prints."""
    import jax

    return jax.process_index() == 0


def _write_trusted(text: str, stream) -> None:
    """Write a text whose control sequences are our own."""
    getattr(stream, "write_trusted", stream.write)(text)
    stream.flush()
