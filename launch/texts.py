"""Write texts for launch/sft.py, from problems or from what a run wrote.

    python launch/texts.py short proofs:valid --tokenizer DIR --out train.jsonl
    python launch/texts.py plans train.jsonl --out warm.jsonl
    python launch/texts.py right RUN --out own.jsonl
    python launch/texts.py sums 'problems.jsonl[:800]' --count 400 --out warm.jsonl
    python launch/texts.py expressions 'problems.jsonl[:800]' --out warm.jsonl

`short` keeps the problems of at most --tokens tokens, prompt and reference answer.
`plans` gives each a solution: a plan of --terms telling words of its reference answer,
the answer phrase, the reference; every --plain'th row, or all with --terms 0, without a
plan. `right` takes the right responses of a folder's dump (RUN/rollouts: of a run, or a
benchmark's folder of launch/evaluate.py), each text once. `sums` adds --count texts of
--each sums to problems that have a solution: practice for a model that sets the right
sum up and cannot compute it; with --steps all solutions go place by place, 28 + 36 by
28 + 30 = 58 and 58 + 6 = 64. `expressions` puts a worked solution's sums into one box,
33 + 13 = 46 and 46 - 19 = 27 as \\boxed{(33 + 13) - 19}, and leaves out what it cannot:
with reward=math the grader computes. The last line on stdout is one JSON object.
"""

import itertools
import json
import os

from limr_jax import platform
from limr_jax.config.load import Parser, run_main
from limr_jax.errors import InputError

# No accelerator is needed, and a run on this host may hold it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

with platform.importing_jax():
    from limr_jax.data import expressions, sft_texts
    from limr_jax.data.problems import Problems, files_read, load_problems
    from limr_jax.data.tokenizer import load_tokenizer
    from limr_jax.storage import files, gcs, rollout_dump
    from limr_jax.studies import run_files


def _parser() -> Parser:
    parser = Parser("launch/texts.py", __doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("short", "plans", "sums", "expressions"):
        each = verbs.add_parser(verb)
        each.add_argument("spec", help="name:split[a:b] or FILE.jsonl[a:b]")
        each.add_argument(
            "--data_dir", default="~/.cache/limr_jax", help="prepared sets"
        )
        each.add_argument(
            "--manual_dir", help="local copies of source files; default: none"
        )
        each.add_argument(
            "--out",
            required=True,
            metavar="FILE.jsonl",
            help="the texts, a JSON object a line",
        )
        if verb == "short":
            each.add_argument("--tokenizer", required=True, help="directory or file")
            each.add_argument(
                "--tokens", type=int, default=512, help="of prompt and answer, at most"
            )
        elif verb == "sums":
            each.add_argument(
                "--count", type=int, default=400, help="texts that are added"
            )
            each.add_argument(
                "--each", type=int, default=10, help="sums in each of them"
            )
            each.add_argument(
                "--steps", action="store_true", help="every sum place by place"
            )
            each.add_argument("--seed", type=int, default=0, help="of the sums")
        elif verb == "plans":
            each.add_argument("--phrase", default="#### ", help="introduces the answer")
            each.add_argument(
                "--terms", type=int, default=6, help="words of a plan; 0: no plans"
            )
            each.add_argument(
                "--plain",
                type=int,
                default=4,
                help="every so many rows one without a plan",
            )
    each = verbs.add_parser("right")
    each.add_argument(
        "run", help="a folder with rollouts: a run, or a benchmark's evaluation"
    )
    each.add_argument(
        "--out",
        required=True,
        metavar="FILE.jsonl",
        help="the texts, a JSON object a line",
    )
    return parser


def main(argv: list[str]) -> None:
    """One verb."""
    options = _parser().parse_args(argv)
    if options.verb == "right":
        files.output(options.out)
        run_files.refuse(options.out, options.run)
    else:
        read_files = files_read(
            options.spec, data_dir=options.data_dir, manual_dir=options.manual_dir
        )
        files.output(options.out, *read_files)
    verbs = {
        "short": _short,
        "plans": _plans,
        "right": _right,
        "sums": _sums,
        "expressions": _expressions,
    }
    read, rows = verbs[options.verb](options)
    files.write_rows(options.out, rows)
    print(json.dumps({"read": read, "written": len(rows), "out": options.out}))


def _problems(options) -> Problems:
    return load_problems(
        options.spec, data_dir=options.data_dir, manual_dir=options.manual_dir
    )


def _short(options) -> tuple[int, list[dict]]:
    """(problems read, rows to write)."""
    problems = _problems(options)
    tokenizer = load_tokenizer(options.tokenizer)
    kept = sft_texts.short(problems, tokenizer, tokens=options.tokens)
    if not len(kept):
        raise InputError(
            f"{options.spec}: none of {len(problems)} problems has at most "
            f"--tokens={options.tokens} tokens; give more"
        )
    return len(problems), [kept.row(i) for i in range(len(kept))]


def _plans(options) -> tuple[int, list[dict]]:
    """(problems read, rows to write)."""
    for name in ("terms", "plain"):
        if (value := getattr(options, name)) < 0:
            raise InputError(f"--{name}={value} must be 0 or more")
    problems = _problems(options)
    rows = sft_texts.planned(
        problems, phrase=options.phrase, count=options.terms, plain=options.plain
    )
    return len(problems), list(rows)


def _right(options) -> tuple[int, list[dict]]:
    """(responses read, rows to write)."""
    if not (gcs.remote(options.run) or os.path.isdir(options.run)):
        raise InputError(f"{options.run}: no such folder; give a run's")
    counted = itertools.count()
    # zip asks the dump first, so that `counted` stands at the rows that came.
    whole = rollout_dump.whole_rows(options.run, sft_texts.RIGHT_NEEDS)
    dumped = (row for row, _ in zip(whole, counted))
    rows, read = list(sft_texts.right(dumped)), next(counted)
    if not rows:
        below = rollout_dump.below(options.run)
        raise InputError(
            f"{options.run}: none of {read} responses is right and whole; give a "
            f"folder with rollouts/ of which some are{below and f': {below}'}"
        )
    return read, rows


def _sums(options) -> tuple[int, list[dict]]:
    """(problems read, rows to write)."""
    for name, most in (("count", 1_000_000), ("each", 1000)):
        if not 1 <= (value := getattr(options, name)) <= most:
            raise InputError(f"--{name}={value} must be from 1 to {most:,}")
    problems = _solved(options)
    rows = [problems.row(i) for i in range(len(problems))]
    if options.steps:
        for row in rows:
            row["solution"] = sft_texts.in_steps(row["solution"])
    practice = [
        *sft_texts.sums(
            options.count, each=options.each, seed=options.seed, steps=options.steps
        )
    ]
    there = {*problems.ids}
    if taken := [row["id"] for row in practice if row["id"] in there]:
        raise InputError(
            f"{options.spec} has the id {taken[0]!r} already, which a row of sums "
            "would have; take a set without sums, and give --count more"
        )
    return len(rows), [*rows, *practice]


def _expressions(options) -> tuple[int, list[dict]]:
    """(problems read, rows to write)."""
    problems = _solved(options)
    rows = list(expressions.boxed_expressions(problems))
    if not rows:
        raise InputError(
            f"{options.spec}: none of {len(problems)} solutions is a chain of sums "
            "that gives its answer; give some with a sum a line (3 + 4 = 7), or "
            "between << and >>"
        )
    return len(problems), rows


def _solved(options) -> Problems:
    """The problems, each of which has a solution."""
    problems = _problems(options)
    solutions = problems.columns.get("solution", (None,) * len(problems))
    for name, solution in zip(problems.ids, solutions, strict=True):
        if solution is None:
            raise InputError(
                f"{options.spec}: problem {name!r} has no solution; add it, or take a "
                "set that has one of each"
            )
        if not isinstance(solution, str):
            raise InputError(
                f"{options.spec}: problem {name!r} has a solution that is no text "
                f"({type(solution).__name__}); put it in quotes"
            )
    return problems


if __name__ == "__main__":
    run_main(main)
