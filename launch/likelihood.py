"""How likely a policy makes the reference answers: proxy-NLL, where nothing verifies.

    python launch/likelihood.py --workdir runs/jepo --sets proofs:test --n 4
    python launch/likelihood.py --config configs/jepo.py --config.model.init=DIR

--workdir RUN   a run: its config, and its checkpoint of --step (default: the latest)
--config FILE   instead: that config, and the policy that its model.init names
--sets          sets as data.eval names them; default: data.eval
--n             thoughts a problem, at temperature 1 (default 4)

For each set: nats a problem of −(log-mean-exp over n thoughts of the answer's
likelihood); the same with thoughts of other problems, with none, and the difference
(`gain`); nats a token. Brackets: the 95 % t interval over problems. The last line on
stdout is one JSON object.
"""

import json

from limr_jax.config import limits
from limr_jax.config import load as config_lib
from limr_jax.errors import InputError
from limr_jax.evaluation import flags

_SHORT = {"sets": "benchmarks.names"}


def main(argv: list[str]) -> None:
    """Parse, check, measure, report."""
    config, options = flags.load(argv, __doc__, flags={"n": 4}, short=_SHORT)
    limits.check_value(limits.LIMITS["benchmarks.k"], options.n, "--n")
    # Imported late: a misspelt field is answered at once.
    import jax

    from limr_jax import console
    from limr_jax.data.special_tokens import encode_answer_phrase
    from limr_jax.evaluation import benchmarks, likelihood
    from limr_jax.rollout.sampling import put_sampling

    # The sets are read as benchmarks: of n responses each, which are the thoughts.
    with config.unlocked():
        config.reward = "token"  # nothing is graded
        config.benchmarks.k, config.benchmarks.temperature = options.n, 1.0
    _refuse_names(config.benchmarks.names or config.data.eval, options.n)
    suite = benchmarks.set_up(config, options.workdir, options.step)
    phrase = encode_answer_phrase(config, suite.tokenizer)
    for task in suite.tasks:
        _refuse(task)
    if options.dry_run:
        console.say("\n".join(task.benchmark.label for task in suite.tasks))
        return
    result = {"n": options.n, "sets": {}}
    with jax.set_mesh(suite.mesh):
        sampling = put_sampling(suite.mesh, temperature=1.0)
        _, params = suite.load_policy()
        for task in suite.tasks:
            measure = likelihood.make_likelihood(
                suite.mesh,
                task.problems,
                thoughts=options.n,
                seed=suite.seed,
                generation=suite.generation,
                compute=suite.compute,
                phrase=phrase,
                eos_id=suite.tokenizer.eos_id,
            )
            label, count = task.benchmark.spec, len(task.problems)
            with console.progress(f"likelihood {label}", count, unit="problem") as on:
                summary = likelihood.summary(measure(params, sampling, on))
            result["sets"][label] = {"problems": count} | summary
            console.say(_table(label, count, summary))
    console.say(json.dumps(result, allow_nan=False))


def _refuse_names(names: str, n: int) -> None:
    """InputError where no set is named, or one with thoughts of its own."""
    from limr_jax.evaluation import benchmarks

    if not names.strip(", "):
        raise InputError(
            "no set is named; give --sets=proofs:test, or a config with data.eval"
        )
    for name in map(str.strip, names.split(",")):
        if benchmarks.split_name(name)[1]:
            raise InputError(
                f"--sets={names}: each has --n={n} thoughts a problem, at temperature "
                f"1; leave out what stands behind the @ of {name}"
            )


def _refuse(task) -> None:
    """InputError where a set cannot be measured."""
    if len(task.problems) == 1:
        raise InputError(
            f"{task.benchmark.spec}: holds one problem, and thoughts are compared "
            "with those of another; give two or more"
        )
    empty = int((task.problems.answer_length_N == 0).sum())
    if empty:
        raise InputError(
            f"{task.benchmark.spec}: {empty} of {len(task.problems)} problems have "
            "no reference answer; leave them out"
        )


def _table(label: str, count: int, summary: dict) -> str:
    lines = [f"{label}: {count:,} problems"]
    for name, value in summary.items():
        if not name.endswith("_interval"):
            low, high = summary[f"{name}_interval"]
            lines.append(f"  {name:<22} {value:9.3f}  [{low:.3f}, {high:.3f}]")
    return "\n".join(lines)


if __name__ == "__main__":
    config_lib.run_main(main)
