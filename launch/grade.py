"""Grade answers in a JSONL file.

    python launch/grade.py FILE.jsonl [--out VERDICTS.jsonl] [--workers N]

Rows hold `prediction` (a bare answer, no box needed) or `response` (a model's text: its
last balanced box counts), and `reference` or `answer`. Where rows have `expected`, the
agreement is printed by source. The last line on stdout is one JSON object.
"""

import collections
import json
import time
from collections.abc import Iterator

from limr_jax import worker_pool
from limr_jax.config.load import Parser, run_main
from limr_jax.data import jsonl
from limr_jax.errors import InputError
from limr_jax.rewards.math.grade import Verdict, grade_math
from limr_jax.storage import files


def read_rows(path: str) -> list[dict]:
    """The file's rows, each checked for its fields. Raises InputError."""
    return [_checked(row, where) for where, row in jsonl.read_rows(path)]


def _checked(row: dict, where: str) -> dict:
    for pair in (("prediction", "response"), ("reference", "answer")):
        present = [name for name in pair if isinstance(row.get(name), str)]
        if len(present) != 1:
            raise InputError(f"{where}: give exactly one of {' and '.join(pair)}, text")
    return row


def grade(rows: list[dict], pool: worker_pool.WorkerPool) -> list[Verdict]:
    """A verdict for each row, in order; each row's own mode."""
    verdicts: list = [None] * len(rows)
    # A call has one mode: a `prediction` is the answer, a `response` is searched.
    for field, mode in (("prediction", "prediction"), ("response", "response")):
        chosen = [k for k, row in enumerate(rows) if isinstance(row.get(field), str)]
        graded = grade_math(
            [rows[k][field] for k in chosen],
            [rows[k].get("reference", rows[k].get("answer")) for k in chosen],
            mode=mode,
            pool=pool,
        )
        for k, verdict in zip(chosen, graded):
            verdicts[k] = verdict
    return verdicts


def agreement(rows: list[dict], verdicts: list[Verdict]) -> dict[str, dict]:
    """Source → counts (n, agree, invalid, …) of the rows that have `expected`."""
    counts = collections.defaultdict(collections.Counter)
    for row, verdict in zip(rows, verdicts):
        if not isinstance(row.get("expected"), bool):
            continue
        count = counts[str(row.get("source", "all"))]
        count["n"] += 1
        if verdict.correct is None:
            count["invalid"] += 1
        elif verdict.correct != row["expected"]:
            count["false_positives" if verdict.correct else "false_negatives"] += 1
        else:
            count["agree"] += 1
    return counts


def summary(rows, verdicts, seconds: float) -> dict:
    """The last line on stdout. Every row is in n; an invalid one disagrees."""
    counts = agreement(rows, verdicts)
    total = sum(counts.values(), collections.Counter())
    return {
        "n": len(rows),
        "agreement": round(total["agree"] / total["n"], 6) if total["n"] else None,
        "false_positives": total["false_positives"],
        "false_negatives": total["false_negatives"],
        "invalid": sum(v.correct is None for v in verdicts),
        "seconds": round(seconds, 3),
    }


def table(counts: dict[str, dict]) -> str:
    """`agreement`'s counts as text, a line for each source."""
    lines = [f"{'source':<40} {'n':>6} {'agree':>7} {'FP':>4} {'FN':>4} {'invalid':>8}"]
    for source, count in sorted(counts.items()):
        share = count["agree"] / count["n"]
        lines.append(
            f"{source[:40]:<40} {count['n']:>6} {share:>7.1%} "
            f"{count['false_positives']:>4} {count['false_negatives']:>4} "
            f"{count['invalid']:>8}"
        )
    return "\n".join(lines)


def verdict_rows(rows, verdicts) -> Iterator[dict]:
    """A line of --out for each row."""
    for k, (row, verdict) in enumerate(zip(rows, verdicts)):
        line = {"id": row.get("id", k), "correct": verdict.correct,
                "reason": verdict.reason, "answer": verdict.answer}  # fmt: skip
        yield line | {x: row[x] for x in ("expected",) if x in row}


def main(arguments: list[str]) -> None:
    """Parse, grade every row, print the agreement and the summary."""
    parser = Parser("launch/grade.py", __doc__)
    parser.add_argument(
        "file", metavar="FILE.jsonl", help="rows with an answer and its reference"
    )
    parser.add_argument("--out", help="verdicts, one JSON a line; default: none")
    parser.add_argument("--workers", type=int, help="processes (default: the cores)")
    options = parser.parse_args(arguments)
    if options.out:
        files.output(options.out, options.file)
    rows = read_rows(options.file)
    pool = worker_pool.WorkerPool(workers=options.workers)
    start = time.monotonic()
    verdicts = grade(rows, pool)
    seconds = time.monotonic() - start
    pool.close()
    if options.out:
        files.write_rows(options.out, verdict_rows(rows, verdicts))
    counts = agreement(rows, verdicts)
    if counts:
        print(table(counts))
    print(json.dumps(summary(rows, verdicts, seconds)))


if __name__ == "__main__":
    run_main(main)
