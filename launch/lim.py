"""LIM scores and subsets from recorded curves (LIMR, arXiv:2502.11886).

    python launch/lim.py score --run runs/probe --out scores.jsonl
    python launch/lim.py score --rewards curves.jsonl --missing carry --out scores.jsonl
    python launch/lim.py select --scores scores.jsonl --threshold 0.6 --out kept.jsonl
    python launch/lim.py score --from verl --run rollout_data --out scores.jsonl
    python launch/lim.py replay --run runs/probe --out replay.json

`--run` is the workdir of a run, whose rollout dump is read; `--rewards` a JSONL of
{id, rewards: [by epoch, null = missing]}; `--scores` a JSONL of {id, lim_score}: what
`score` wrote, or published scores. `--from verl`, `trl`, `prime-rl` or `openrlhf` says
that `--run` is what that framework wrote (studies/foreign_dumps.py says where); there a
rollout is right from a reward of 1 on, or of --right_at, and --reward names the reward
where there are several. `select` keeps, by one rule of

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

`replay` lets each prompt sampler, and each fixed subset of --size problems, choose from
the curves without a model: how many groups with a right and a wrong rollout it would
have drawn, how far that is from the best choice, and how far choices overlap; what
that can not say is in studies/replay.py. --out gets all of it as JSON, with the
problems chosen. With `--scores FILE [FILE …]` there are no curves to replay: then it is
what LIM keeps by each file, or --size, and how far that overlaps.
"""

import json
import os
import pathlib
import time
from functools import partial

import numpy as np

from limr_jax import platform
from limr_jax.config import config_file
from limr_jax.config.load import Parser, run_main
from limr_jax.errors import InputError

# A table of numbers is no reason to take the accelerator from a run on this host.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

with platform.importing_jax():
    from limr_jax.samplers import score_file
    from limr_jax.storage import files
    from limr_jax.studies import foreign_dumps, replay, reward_curves, run_files

_RULES = ("threshold", "top", "random", "linear", "std", "hardest")
# The rules with a score of their own.
_NAMES = {"linear": "linear_score", "std": "std", "hardest": "hardest"}
_OF_RESPONSES = ("std", "hardest")  # what a base model's responses are for
_OURS = "ours"  # a run of this project


def _parser() -> Parser:
    parser = Parser("launch/lim.py", __doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    sources = {}
    for verb in ("score", "select", "replay"):
        each = verbs.add_parser(verb)
        sources[verb] = source = each.add_mutually_exclusive_group(required=True)
        source.add_argument(
            "--run", metavar="PATH", help="a run's folder, or --from's dump"
        )
        source.add_argument("--rewards", metavar="FILE", help="JSONL: rewards by epoch")
        each.add_argument(
            "--from",
            dest="framework",
            choices=[_OURS, *foreign_dumps.READERS],
            help="what wrote --run; default: ours",
        )
        each.add_argument(
            "--reward",
            metavar="NAME",
            help="with --from: which reward, where there are several; default: none",
        )
        each.add_argument(
            "--right_at",
            type=float,
            metavar="REWARD",
            help="with --from: a rollout is right from it on; default: 1",
        )
        each.add_argument(
            "--out", metavar="FILE", required=True, help="what is written"
        )
        if verb != "replay":
            each.add_argument(
                "--missing",
                choices=list(reward_curves.MISSING),
                help="what an epoch without a visit counts as; default: backfill",
            )
            each.add_argument(
                "--value",
                choices=list(reward_curves.VALUES),
                help="of a run: what its curves are of; default: accuracy",
            )
        if verb != "score":
            each.add_argument("--seed", type=int, help="of what is random; default: 0")
    select_parser, replay_parser = verbs.choices["select"], verbs.choices["replay"]
    sources["select"].add_argument(
        "--scores", metavar="FILE", help="JSONL: what `score` wrote"
    )
    sources["select"].add_argument(
        "--evaluation",
        metavar="DIR",
        help="a base model's responses: one benchmark's folder",
    )
    rule = select_parser.add_mutually_exclusive_group(required=True)
    rule.add_argument(
        "--threshold", type=float, metavar="SCORE", help="scores from it on"
    )
    rule.add_argument("--top", type=int, metavar="N", help="the largest scores")
    rule.add_argument("--random", type=int, metavar="N", help="at random")
    rule.add_argument(
        "--linear",
        type=float,
        metavar="CORRELATION",
        help="curves that rise with the epoch at least so",
    )
    rule.add_argument("--std", type=int, metavar="N", help="the largest deviations")
    rule.add_argument("--hardest", type=int, metavar="N", help="the lowest pass rates")
    select_parser.add_argument(
        "--round",
        type=int,
        metavar="DIGITS",
        help="with --threshold: round scores first; default: not",
    )
    select_parser.add_argument(
        "--problems",
        metavar="FILE.jsonl",
        help="whose rows are written; default: those of the scores",
    )
    sources["replay"].add_argument(
        "--scores",
        metavar="FILE",
        nargs="+",
        help="instead of curves: files whose choices are compared",
    )
    replay_parser.add_argument(
        "--problems_per_step",
        type=int,
        metavar="P",
        help="drawn a step; default: as in configs/base.py",
    )
    replay_parser.add_argument(
        "--group",
        type=int,
        metavar="G",
        help="rollouts a problem; default: as in configs/base.py",
    )
    replay_parser.add_argument(
        "--size",
        type=int,
        metavar="K",
        help="of each fixed subset; default: by LIM, 0.6",
    )
    return parser


def _curves(options) -> reward_curves.Curves:
    if getattr(options, "evaluation", None):
        return reward_curves.read_evaluation(options.evaluation)
    if not options.run:
        return reward_curves.read_rewards(options.rewards)
    if options.framework == _OURS:
        return reward_curves.read_run(options.run, value=options.value)
    return foreign_dumps.read(
        options.run,
        framework=options.framework,
        reward=options.reward,
        right_at=options.right_at if options.value == "accuracy" else None,
    )


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
    kept_N = scores.score_N >= 0.6
    # Such a problem scores well where most problems are hard (algorithms/lim.py).
    never_N = recorded.value_NE.max(axis=1) <= 0
    print(
        f"{len(known_N)} of {len(scores.ids)} problems have a score over "
        f"{recorded.value_NE.shape[1]} epochs, mean {known_N.mean():.4f}, "
        f"{int(kept_N.sum())} of at least 0.6, {int((kept_N & never_N).sum())} of "
        "which were never solved; "
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


def replay_curves(options) -> None:
    """Write what each selector chooses of recorded curves, and print the table."""
    start = time.perf_counter()
    base = _base()
    if options.scores:
        result = replay.of_scores(
            {file: score_file.read_scores(file) for file in options.scores},
            threshold=base.sampler.lim.threshold,
            size=options.size,
            seed=options.seed,
        )
        lines = replay.scores_table(result)
    else:
        recorded = _curves(options)
        config = replay.ReplayConfig(
            prompts=options.problems_per_step,
            group=options.group,
            seed=options.seed,
            size=options.size,
        )
        result = replay.replay(recorded, base.sampler, config)
        lines = replay.table(result)
    text = json.dumps(result, allow_nan=False) + "\n"
    files.write_text(pathlib.Path(options.out), text)
    seconds = time.perf_counter() - start
    print(f"{lines}\n\nreplayed in {seconds:.1f} s; written to {options.out}")


def _base():
    return config_file.load(str(platform.launch_root() / "configs/base.py"))


def main(argv: list[str]) -> None:
    """Parse and check, then `score`, `select` or `replay_curves`."""
    options = _parser().parse_args(argv)
    scores = getattr(options, "scores", None)
    # `replay` compares several files of scores.
    scores = scores if isinstance(scores, list) else [scores]
    problems = getattr(options, "problems", None)
    files.output(options.out, options.rewards, problems, *scores)
    {"replay": _refuse_idle_replay}.get(options.verb, _refuse_idle)(options)
    if options.run and options.framework != _OURS:
        _refuse_within(options.out, options.run)
    elif options.run:
        run_files.refuse(options.out, options.run)
    if getattr(options, "evaluation", None):
        run_files.refuse(options.out, options.evaluation)
    verbs = {"score": score, "select": select, "replay": replay_curves}
    verbs[options.verb](options)


def _refuse_within(out: str, dump: str) -> None:
    """InputError where --out would be one of the files of another framework's dump."""
    if files.real(out).is_relative_to(files.real(dump)):
        raise InputError(f"--out {out} lies in the dump {dump}; give another file")


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
    _settle(
        options,
        ("missing", None if responses else "backfill", responses or scored, whole),
        ("value", "accuracy", not options.run, "without --run"),
        ("seed", 0, rule != "random", "without --random"),
        ("round", None, rule == "random", "with --random"),
    )
    _settle_framework(options)


def _refuse_idle_replay(options) -> None:
    """InputError for a flag of `replay` that would do nothing, or cannot be."""
    base, why = _base(), "with --scores, which are of whole curves"
    _settle(
        options,
        ("problems_per_step", base.prompts_per_step, options.scores, why),
        ("group", base.group_size, options.scores, why),
        ("seed", 0, False, ""),
        ("size", None, False, ""),
        ("value", "accuracy", False, ""),
    )
    _settle_framework(options)
    if options.group < 2:
        raise InputError(
            f"--group {options.group} must be 2 or more: fewer rollouts of a problem "
            "never differ"
        )
    if options.seed < 0:
        raise InputError(f"--seed {options.seed} must be 0 or more")


def _settle_framework(options) -> None:
    """The flags of another framework's dump: refused where there is none."""
    _settle(options, ("framework", _OURS, not options.run, "without --run"))
    ours = options.framework == _OURS
    why = f"without --from {', '.join(foreign_dumps.READERS)}"
    if not ours and options.value == "reward":
        why = "with --value reward, which is the reward as it is"
    _settle(
        options,
        ("reward", "", ours, why),
        ("right_at", 1.0, ours or options.value == "reward", why),
    )
    if not np.isfinite(options.right_at):
        raise InputError(f"--right_at {options.right_at} is no finite number; give one")


def _settle(options, *flags: tuple) -> None:
    """Give each absent flag its default; InputError for one that does nothing.

    flags: of each its name, the default, whether it does nothing, and why.
    """
    for name, default, idle, why in flags:
        value = getattr(options, name, None)
        if idle and value is not None:
            flag = "from" if name == "framework" else name
            raise InputError(f"--{flag} {value} does nothing {why}; leave it out")
        setattr(options, name, default if value is None else value)


if __name__ == "__main__":
    run_main(main)
