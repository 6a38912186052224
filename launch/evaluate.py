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
--out DIR       default RUN/evaluations/step-N, or runs/<config's name>-evaluation
--dry_run       print what would be asked, and stop

avg@k is the share of right responses, pass@k the unbiased estimate. maj@k lets the
responses that have an answer vote; answers that tie each count their equal share;
with no answer at all it is 0. Invalid responses are left out of avg@k, and their
problems out of pass@k and maj@k. Brackets hold the bootstrap's 95 % interval over
problems. Given again, the command goes on where it stopped. DIR holds result.json and
every response (zcat DIR/*/rollouts/*). The last line on stdout is one JSON object.
"""

import json
import pathlib

from limr_jax import config as config_lib
from limr_jax import files, looking

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
    """Parse, check, answer, report."""
    config, options = looking.load(argv, __doc__, flags={"out": ""}, short=_SHORT)
    files.local(options.out or options.workdir, "--out")
    # Imported late: a misspelt field is answered at once.
    from limr_jax import benchmark, examine, metrics

    exam = benchmark.set_up(config, options.workdir, options.step)
    out = options.out or _default_out(options, exam.identity["policy"])
    metrics.say(describe(exam, out))
    if options.dry_run:
        return
    result = examine.sit(exam, out)
    metrics.say(table(result))
    metrics.say(json.dumps(result, allow_nan=False))


def _default_out(options, policy: dict) -> str:
    if options.workdir:
        return str(pathlib.Path(options.workdir, f"evaluations/step-{policy['step']}"))
    return str(pathlib.Path("runs", config_lib.stem(options.config) + "-evaluation"))


def describe(exam, out) -> str:
    """What is asked of whom, as a few lines."""
    said = exam.identity
    policy = " of ".join(f"{name} {x}" for name, x in reversed(said["policy"].items()))
    lines = [
        f"policy: {policy}, compute in {said['dtype']}",
        f"graded by {said['reward']}; responses of at most "
        f"{said['max_response_length']:,} tokens, top-p {said['top_p']}; into {out}",
    ]
    for paper in exam.papers:
        one, left_out = paper.benchmark, paper.problems.left_out
        how = f"at temperature {one.temperature}" if one.temperature else "greedy"
        lines.append(f"{one.label}: {len(paper.problems):,} problems, {one.k} {how}")
        if left_out:
            first = ", ".join(left_out[:3])
            lines.append(f"  left out, prompts too long: {len(left_out)} ({first} …)")
    return "\n".join(lines)


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
    "invalid_share": "invalid %",
}


def _row(name: str, figures: dict, k: int) -> list[str]:
    shares = [_shown(figures.get(each.format(k=k)), 100) for each in _COLUMNS]
    length = _shown(figures["response_length"], 1)
    return [name, f"{figures['problems']:,}", *shares, length]


def _shown(figure: dict | None, unit: int) -> str:
    """'52.4 [48.1, 56.8]'; '-' where there is no number."""
    if figure is None or figure["value"] is None:
        return "-"
    value, low, high = (figure[name] * unit for name in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    config_lib.run_main(main)
