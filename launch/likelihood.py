"""How likely a policy makes the reference answers: proxy-NLL, where nothing verifies.

    python launch/likelihood.py --workdir runs/jepo --sets proofs:test --n 4
    python launch/likelihood.py --config configs/jepo.py --config.model.init=DIR

--workdir RUN   a run: its config, and its checkpoint of --step (default: the latest)
--config FILE   instead: that config, and the policy that its model.init names
--sets          sets as data.eval names them; default: data.eval
--n             thoughts a problem, at temperature 1 (default 4)

For each set: nats a problem of −(log-mean-exp over n thoughts of the answer's
likelihood); the same with thoughts of other problems, with none, and the difference
(`gain`); nats a token. Brackets: the bootstrap's 95 % over problems. The last line on
stdout is one JSON object.
"""

import json

from limr_jax import config as config_lib
from limr_jax import looking
from limr_jax.errors import InputError

_SHORT = {"sets": "benchmarks.names"}


def main(argv: list[str]) -> None:
    """Parse, check, measure, report."""
    config, options = looking.load(argv, __doc__, flags={"n": 4}, short=_SHORT)
    if options.n < 1:
        raise InputError(f"--n={options.n} must be at least 1")
    # Imported late: a misspelt field is answered at once.
    import jax

    from limr_jax import benchmark, likelihood, metrics, model
    from limr_jax.randomness import stream_key
    from limr_jax.run import put_sampling
    from limr_jax.words import answer_phrase

    with config.unlocked():
        config.reward = "token"  # nothing is graded
        config.benchmarks.k, config.benchmarks.temperature = options.n, 1.0
    exam = benchmark.set_up(config, options.workdir, options.step)
    phrase = answer_phrase(config, exam.tokenizer)
    for paper in exam.papers:
        _refuse(paper)
    if options.dry_run:
        metrics.say("\n".join(paper.benchmark.label for paper in exam.papers))
        return
    result = {"n": options.n, "sets": {}}
    with jax.set_mesh(exam.mesh):
        sampling = put_sampling(exam.mesh, temperature=1.0)
        params = model.compute_params(exam.load_params(), exam.generation["dtype"])
        for paper in exam.papers:
            find = likelihood.make(
                exam.mesh,
                paper.problems,
                n=options.n,
                seed=exam.seed,
                generation=exam.generation,
                phrase=phrase,
                eos_id=exam.tokenizer.eos_id,
            )
            label, count = paper.benchmark.spec, len(paper.problems)
            with metrics.progress(f"likelihood {label}", count, unit="problem") as on:
                found = find(params, sampling, on)
            told = likelihood.summary(found, stream_key(exam.seed, "bootstrap"))
            result["sets"][label] = {"problems": count} | told
            metrics.say(_table(label, count, told))
    metrics.say(json.dumps(result, allow_nan=False))


def _refuse(paper) -> None:
    """InputError where a set cannot be measured."""
    if len(paper.problems) == 1:
        raise InputError(
            f"{paper.benchmark.spec}: holds one problem, and thoughts are compared "
            "with those of another; give two or more"
        )
    empty = int((paper.problems.answer_length_N == 0).sum())
    if empty:
        raise InputError(
            f"{paper.benchmark.spec}: {empty} of {len(paper.problems)} problems have "
            "no reference answer; leave them out"
        )


def _table(label: str, count: int, told: dict) -> str:
    lines = [f"{label}: {count:,} problems"]
    for name, value in told.items():
        if not name.endswith("_interval"):
            low, high = told[f"{name}_interval"]
            lines.append(f"  {name:<22} {value:9.3f}  [{low:.3f}, {high:.3f}]")
    return "\n".join(lines)


if __name__ == "__main__":
    config_lib.run_main(main)
