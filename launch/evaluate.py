"""Evaluate a run, or any checkpoint in the Hugging Face layout, on held-out sets.

    python launch/evaluate.py --workdir runs/tiny --k 8
    python launch/evaluate.py --config configs/limr_eval.py --config.model.init=DIR
    python launch/evaluate.py --config configs/tiny.py --config.model.init=DIR \\
        --benchmarks math500,aime24@4,amc23:test[:20]@4@0.6 --reward math

--workdir RUN   a run: its config, and its checkpoint of --step (default: the latest)
--config FILE   instead: that config, and the policy that its model.init names
--benchmarks    sets as data.eval names them, with responses a problem and temperature
                behind @; default: the config's benchmarks.names, else data.eval
--k, --temperature, --top_p, --max_response_length, --max_prompt_length
                the config's `benchmarks` fields; one response is greedy by default
--reward        token, math, limr, or package.module.function
--against WHAT  another policy on the same problems: a run (its latest checkpoint), a
                checkpoint's directory, or the folder of a finished evaluation
--out DIR       default RUN/evaluations/step-N, or runs/<config's name>-evaluation
--dry_run       print what would be asked, and stop

avg@k is the share of right responses, pass@k the unbiased estimate. maj@k lets the
responses that have an answer vote; answers that tie each count their equal share;
with no answer at all it is 0. A response that nobody could grade counts as wrong; how
many there are is printed. Brackets hold the 95 % interval over problems: Wilson's where
each problem is right or wrong; else, as responses to one problem are alike, Agresti and
Coull's over problems. With --against there is the difference of the two accuracies,
paired by problem, with the interval of Bonett and Price, how many problems each policy
wins, and, with one response a problem, McNemar's exact p. Given again, the command goes
on where it stopped. DIR holds result.json and every response (zcat DIR/*/rollouts/*),
DIR/against those of the other policy. The last line on stdout is one JSON object.
"""

import json
import pathlib

from limr_jax.config import load as config_lib
from limr_jax.evaluation.flags import load
from limr_jax.storage import files

_SHORT = {
    "benchmarks": "benchmarks.names",
    "k": "benchmarks.k",
    "temperature": "benchmarks.temperature",
    "top_p": "benchmarks.top_p",
    "max_prompt_length": "benchmarks.max_prompt_length",
    "max_response_length": "benchmarks.max_response_length",
    "reward": "reward",
}


def main(argv: list[str]) -> None:
    """Parse, check, answer, compare, report."""
    flags = {"out": "", "against": ""}
    config, options = load(argv, __doc__, flags=flags, short=_SHORT)
    files.local(options.out or options.workdir, "--out")
    # Imported late: a misspelt field is answered at once.
    from limr_jax import console
    from limr_jax.evaluation import against, benchmarks, run_benchmarks
    from limr_jax.storage.workdir import write_result

    suite = benchmarks.set_up(config, options.workdir, options.step)
    out = options.out or _default_out(options, suite.identity["policy"])
    other = None
    # Before anything is answered: it may turn out to be no policy.
    if options.against:
        other = against.find_policy(options.against, suite, config=config, out=out)
    console.say(describe(suite, out, other))
    if options.dry_run:
        return
    result = run_benchmarks.run_suite(suite, out)
    console.say(table(result))
    if other:
        result["against"] = against.compare(suite, out, other)
        # result.json is there from `run_suite` on; this adds to it.
        write_result(out, result)
        console.say(differences(result["against"]))
    console.say(json.dumps(result, allow_nan=False))


def _default_out(options, policy: dict) -> str:
    if options.workdir:
        return str(pathlib.Path(options.workdir, f"evaluations/step-{policy['step']}"))
    return str(pathlib.Path("runs", config_lib.stem(options.config) + "-evaluation"))


def describe(suite, out, other=None) -> str:
    """The policy and the benchmarks of the suite, as a few lines."""
    identity = suite.identity
    lines = [
        f"policy: {_policy(identity)}, compute in {identity['dtype']}",
        f"graded by {identity['reward']}; responses of at most "
        f"{identity['max_response_length']:,} tokens, top-p {identity['top_p']}; "
        f"into {out}",
    ]
    for task in suite.tasks:
        benchmark, left_out = task.benchmark, task.problems.left_out
        k, heat = benchmark.k, benchmark.temperature
        how = f"{k} at temperature {heat}" if heat else f"{k} greedy"
        lines.append(f"{benchmark.label}: {len(task.problems):,} problems, {how}")
        if left_out:
            first = ", ".join(left_out[:3])
            lines.append(f"  left out, prompts too long: {len(left_out)} ({first} …)")
    if other:
        how = "as evaluated in" if other.suite is None else "evaluated into"
        lines.append(f"against {_policy(other.identity)}, {how} {other.out}")
    return "\n".join(lines)


def _policy(named: dict) -> str:
    """'step 80 of run runs/tiny'; 'init DIR'."""
    return " of ".join(f"{name} {x}" for name, x in reversed(named["policy"].items()))


def table(result: dict) -> str:
    """A row for each benchmark and each of its levels; shares in %."""
    rows = [["", "problems", *_COLUMNS.values(), "tokens"]]
    for label, report in result["benchmarks"].items():
        rows.append(_row(label, report, report["k"]))
        for level, figures in report["levels"].items():
            rows.append(_row(f"  level {level}", figures, report["k"]))
    if len(result["benchmarks"]) > 1:
        mean = _shown(result["mean_accuracy"], 100)
        rows.append(["mean", "", mean, *[""] * len(_COLUMNS)])
    return _aligned(rows)


def differences(other: dict) -> str:
    """A row for each benchmark: this policy's accuracy minus the other's, in points."""
    heads = ["problems", "its avg@k %", "difference", "won", "lost", "p"]
    rows = [[f"against {_policy(other)}", *heads]]
    for label, report in other["benchmarks"].items():
        rows.append(
            [label, f"{report['problems']:,}", _shown(report["accuracy"], 100)]
            + [_shown(report["difference"], 100, sign="+")]
            + [str(report["won"]), str(report["lost"])]
            + ["-" if report["p"] is None else f"{report['p']:.3g}"]
        )
    if len(other["benchmarks"]) > 1:
        mean = _shown(other["mean_difference"], 100, sign="+")
        rows.append(["mean", "", "", mean, "", "", ""])
    return _aligned(rows)


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{row[0]:<{widths[0]}}"
        + "".join(f"  {x:>{n}}" for x, n in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


_COLUMNS = {
    "accuracy": "avg@k %",
    "pass_at_{k}": "pass@k %",
    "maj_at_{k}": "maj@k %",
    "truncated_share": "truncated %",
    "ungradable_share": "ungradable %",
}


def _row(name: str, figures: dict, k: int) -> list[str]:
    shares = [_shown(figures.get(each.format(k=k)), 100) for each in _COLUMNS]
    length = _shown(figures["response_length"], 1)
    return [name, f"{figures['problems']:,}", *shares, length]


def _shown(figure: dict | None, unit: int, sign: str = "") -> str:
    """'52.4 [48.1, 56.8]'; '52.4' without an interval, '-' without a number."""
    known = [(figure or {}).get(x) for x in ("value", "low", "high")]
    value, low, high = (
        None if x is None else format(unit * x, f"{sign}.1f") for x in known
    )
    if value is None:
        return "-"
    return value if low is None else f"{value} [{low}, {high}]"


if __name__ == "__main__":
    config_lib.run_main(main)
