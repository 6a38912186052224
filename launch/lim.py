"""LIM scores and subsets from recorded curves (LIMR, arXiv:2502.11886).

    python launch/lim.py score --run runs/probe --out scores.jsonl
    python launch/lim.py score --rewards curves.jsonl --missing carry --out scores.jsonl
    python launch/lim.py select --scores scores.jsonl --threshold 0.6 --out kept.jsonl

`--run` is the workdir of a run, whose rollout dump is read; `--rewards` a JSONL of
{id, rewards: [by epoch, null = missing]}; `--scores` a JSONL of {id, lim_score}: what
`score` wrote, or published scores. `select` keeps, by one rule of

    --threshold 0.6     lim_score ≥ 0.6; add --round 2 to round it first, as LIMR did
    --top 1389          the 1,389 largest
    --random 1389       RAND: as many at random (--seed)
    --linear 0.7        LINEAR, this project's reading: correlation with the epoch ≥ 0.7
    --std 1389          the largest standard deviation over epochs (arXiv:2504.20571)
    --hardest 852       what the base model fails most (arXiv:2508.14094)

`--linear` and `--std` need curves: --run, --rewards, or --scores with `rewards` in its
rows. `--hardest`, and `--std` too, take a base model's responses in epochs' places,
without any training: `--evaluation DIR`, what

    python launch/evaluate.py --config FILE --benchmarks train.jsonl@8 --out DIR

wrote (the folder of one benchmark, where it has several). Of equal ones the first are
kept.

What it writes are the rows of the file given, or with `--problems FILE.jsonl` that
file's rows with the kept ids: a training set. A problem without a score is never kept.

LIMR's own 1,389 of 8,523 come from its released scores, already rounded, by
`select --scores math_lvl3to5.jsonl --threshold 0.6`.
"""

import os
from functools import partial

import numpy as np

from limr_jax import platform
from limr_jax.config.load import Parser, run_main
from limr_jax.errors import InputError

# A table of numbers is no reason to take the accelerator from a run on this host.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

with platform.importing_jax():
    from limr_jax.samplers import score_file
    from limr_jax.storage import files
    from limr_jax.studies import reward_curves, run_files

_RULES = ("threshold", "top", "random", "linear", "std", "hardest")
# The rules with a score of their own.
_NAMES = {"linear": "linear_score", "std": "std", "hardest": "hardest"}
_OF_RESPONSES = ("std", "hardest")  # what a base model's responses are for


def _parser() -> Parser:
    parser = Parser("launch/lim.py", __doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("score", "select"):
        each = verbs.add_parser(verb)
        source = each.add_mutually_exclusive_group(required=True)
        source.add_argument("--run", metavar="WORKDIR")
        source.add_argument("--rewards", metavar="FILE")
        each.add_argument("--out", metavar="FILE", required=True)
        each.add_argument("--missing", choices=list(reward_curves.MISSING))
        each.add_argument("--value", choices=list(reward_curves.VALUES))
    # From here on `source` and `each` are those of select, the last verb.
    source.add_argument("--scores", metavar="FILE")
    source.add_argument("--evaluation", metavar="DIR")
    rule = each.add_mutually_exclusive_group(required=True)
    rule.add_argument("--threshold", type=float, metavar="SCORE")
    rule.add_argument("--top", type=int, metavar="N")
    rule.add_argument("--random", type=int, metavar="N")
    rule.add_argument("--linear", type=float, metavar="CORRELATION")
    rule.add_argument("--std", type=int, metavar="N")
    rule.add_argument("--hardest", type=int, metavar="N")
    each.add_argument("--seed", type=int)
    each.add_argument("--round", type=int, metavar="DIGITS")
    each.add_argument("--problems", metavar="FILE.jsonl")
    return parser


def _curves(options) -> reward_curves.Curves:
    if getattr(options, "evaluation", None):
        return reward_curves.read_evaluation(options.evaluation)
    if options.run:
        return reward_curves.read_run(options.run, value=options.value)
    return reward_curves.read_rewards(options.rewards)


def score(options) -> None:
    """Write {id, lim_score, epochs, filled} of each problem."""
    recorded = _curves(options)
    scores = reward_curves.score(recorded, missing=options.missing)
    rows = zip(scores.ids, scores.score_N, scores.epochs_N, scores.filled_N)
    files.write_rows(
        options.out,
        (
            {
                "id": problem,
                # JSON has no −inf, which is no score.
                "lim_score": float(value) if np.isfinite(value) else None,
                "epochs": int(epochs),
                "filled": int(filled),
            }
            for problem, value, epochs, filled in rows
        ),
    )
    known_N = scores.score_N[np.isfinite(scores.score_N)]
    print(
        f"{len(known_N)} of {len(scores.ids)} problems have a score over "
        f"{recorded.value_NE.shape[1]} epochs, mean {known_N.mean():.4f}, "
        f"{int((known_N >= 0.6).sum())} of at least 0.6; "
        f"{int((~recorded.seen_NE).sum())} cells were missing, "
        f"{int(scores.filled_N.sum())} of them filled; written to {options.out}"
    )


def select(options) -> None:
    """Write the rows of the problems that the rule keeps."""
    rule = _rule(options)
    limit = getattr(options, rule)
    if options.seed < 0:
        raise InputError(f"--seed {options.seed} must be 0 or more")
    if options.round is not None and not 0 <= options.round <= 15:
        raise InputError(f"--round {options.round} must be from 0 to 15 digits")
    ids, score_N = _scored(options, rule)
    if options.round is not None:
        # Before the comparison, as LIMR did: 0.596 is then 0.6.
        score_N = np.round(score_N, options.round)
    if rule in ("threshold", "linear"):
        if not np.isfinite(limit):
            raise InputError(f"--{rule} {limit} is no finite number; give one")
        keep_N = (score_N >= limit) & np.isfinite(score_N)
    else:
        choose = reward_curves.keep_top
        if rule == "random":
            choose = partial(reward_curves.keep_random, seed=options.seed)
        try:
            keep_N = choose(score_N, limit)
        except InputError as error:
            raise InputError(f"--{rule} {limit}: {error}") from None
    kept = dict.fromkeys(problem for problem, keep in zip(ids, keep_N) if keep)
    if not kept:
        raise InputError(
            f"--{rule} {limit} keeps none of {int(np.isfinite(score_N).sum())} "
            f"problems, whose largest score is {score_N.max():.4g}; give less"
        )
    score_of = dict(zip(ids, score_N))
    files.write_rows(options.out, _rows(options, kept, score_of=score_of, rule=rule))
    print(
        f"kept {len(kept)} of {len(ids)} problems, {int(np.isfinite(score_N).sum())} "
        f"of them with a score, by --{rule} {limit}; written to {options.out}"
    )


def _scored(options, rule: str) -> tuple[tuple[str, ...], np.ndarray]:
    name = _NAMES.get(rule, "lim_score")
    if options.scores and name == "lim_score":
        scores = score_file.read_scores(options.scores)
        return tuple(scores), np.array(list(scores.values()))
    recorded = (
        reward_curves.read_rewards(options.scores)
        if options.scores
        else _curves(options)
    )
    scores = reward_curves.score(recorded, missing=options.missing, name=name)
    return scores.ids, scores.score_N


def _rows(options, kept, score_of, rule: str) -> list[dict]:
    """The kept rows of the file on the command line; of a run, their ids and scores."""
    path = options.problems or options.scores or options.rewards
    if not path:
        name = _NAMES.get(rule, "lim_score")
        return [{"id": problem, name: float(score_of[problem])} for problem in kept]
    rows = {problem: row for _, problem, row in score_file.rows_by_id(path)}
    missing = [problem for problem in kept if problem not in rows]
    if missing:
        raise InputError(
            f"{path}: lacks {len(missing)} of the {len(kept)} kept problems, first "
            f"{missing[0]!r}; give the file that was scored"
        )
    return [row for problem, row in rows.items() if problem in kept]


def main(argv: list[str]) -> None:
    """Parse and check, then `score` or `select`."""
    options = _parser().parse_args(argv)
    names = ("rewards", "scores", "problems")
    files.output(options.out, *(getattr(options, name, None) for name in names))
    for folder in filter(None, (options.run, getattr(options, "evaluation", None))):
        run_files.refuse(options.out, folder)
    _refuse_idle(options)
    {"score": score, "select": select}[options.verb](options)


def _rule(options) -> str | None:
    """The rule of `select`; None for `score`."""
    named = (name for name in _RULES if getattr(options, name, None) is not None)
    return next(named, None)


def _refuse_idle(options) -> None:
    """InputError for a flag that would do nothing; an absent flag gets its default.

    --missing, for one, says what becomes of a curve's gaps, and a file of finished
    scores has no curves.
    """
    rule = _rule(options)
    responses = getattr(options, "evaluation", None)
    if rule == "hardest" and not responses:
        raise InputError(
            f"--hardest {options.hardest} is of a base model's responses; give "
            "--evaluation DIR, which launch/evaluate.py wrote"
        )
    if responses and rule not in _OF_RESPONSES:
        raise InputError(
            f"--evaluation {responses} has no epochs, which --{rule} asks for; give "
            f"--{' or --'.join(_OF_RESPONSES)}"
        )
    # Finished scores have no curves: they are read as they are.
    scored = getattr(options, "scores", None) and rule not in _NAMES
    whole = "with --evaluation, which has no epochs"
    if scored:
        whole = "with --scores, which are of whole curves"
    for name, default, idle, why in (
        ("missing", None if responses else "backfill", responses or scored, whole),
        ("value", "accuracy", not options.run, "without --run"),
        ("seed", 0, rule != "random", "without --random"),
        ("round", None, rule == "random", "with --random"),
    ):
        value = getattr(options, name, None)
        if idle and value is not None:
            raise InputError(f"--{name} {value} does nothing {why}; leave it out")
        setattr(options, name, default if value is None else value)


if __name__ == "__main__":
    run_main(main)
