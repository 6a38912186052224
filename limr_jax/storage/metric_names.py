"""What the numbers of a run are called where they are kept: TensorBoard's tags, W&B's.

METRICS.md says what each one means. JAX is not imported: the process that hands them
to W&B needs none.
"""

from collections.abc import Iterator, Mapping
from typing import Any

METRICS, EVALS = "metrics.jsonl", "evals.jsonl"
TAGS = {METRICS: "train/", EVALS: "eval/"}  # what stands before a file's names


def tagged(file: str, row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of METRICS or EVALS by their tags, the step left out.

    A nested {"a": {"b": 1}} is a/b; lists, texts and null are left out.
    """
    prefix = TAGS[file]
    return {prefix + name: x for name, x in _numbers(row) if name != "step"}


def _numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, (bool, int, float)):
            yield prefix + key, float(value)
