"""What the numbers of a run are called where they are kept: TensorBoard's tags, W&B's.

METRICS.md says what each one means. JAX is not imported: the process that hands them
to W&B needs none.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from limr_jax import console

METRICS, EVALS = "metrics.jsonl", "evals.jsonl"
TAGS = {METRICS: "train/", EVALS: "eval/"}  # what stands before a file's names
_LONGEST = 200  # characters of a name


def tagged(file: str, row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of METRICS or EVALS by their tags, the step left out.

    A nested {"a": {"b": 1}} is a/b; lists, texts and null are left out.
    """
    return {_tag(file, name): x for name, x in _numbers(row) if name != "step"}


def _tag(file: str, name: str) -> str:
    """The tag of a number; what a data set calls a level may be anything."""
    shown = console.shown(" ".join(name.split()))
    if shown == name and len(name) <= _LONGEST:
        return TAGS[file] + name
    # Two names stay two, though they are shown alike.
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{TAGS[file]}{shown[:_LONGEST]}… {digest[:8]}"


def _numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, (bool, int, float)):
            # A float has no room for an integer of hundreds of digits.
            with contextlib.suppress(OverflowError):
                yield prefix + key, float(value)
