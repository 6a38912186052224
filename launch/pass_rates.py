"""What old rollouts say of a policy's pass rates, held against fresh samples.

    python launch/pass_rates.py runs/a runs/b --steps 16,32,48,64 --out DIR

RUN          a finished run with a checkpoint and a whole dump of each step
             (checkpoint.every=1, checkpoint.keep=num_steps, dump.rows_per_step=0)
--steps      the steps after which pass rates are estimated (default 16,32,48,64)
--samples N  fresh samples a problem that are the truth (default 64)
--out DIR    default runs/pass_rates

Importance sampling of the last visits, the decayed Beta at several decays, BOTS, and
what fresh rollouts would buy: bias, error, coverage of 95 % intervals, and the chance
of a mixed group among the problems that each would choose. Given again, the command
goes on where it stopped. DIR has pass_rates.md and pass_rates.json. The last line on
stdout is one JSON object.
"""

import json

from limr_jax.config.load import Parser, run_main
from limr_jax.errors import InputError
from limr_jax.storage import files


def main(argv: list[str]) -> None:
    """Parse, collect, compare, report."""
    parser = Parser("launch/pass_rates.py", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="finished runs' folders")
    parser.add_argument(
        "--steps",
        metavar="N,N",
        default="16,32,48,64",
        help="after which pass rates are estimated",
    )
    parser.add_argument(
        "--samples", type=int, metavar="N", default=64, help="fresh samples a problem"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="runs/pass_rates",
        help="folder of what it writes",
    )
    options = parser.parse_args(argv)
    steps = _steps(options.steps)
    if options.samples < 2:
        raise InputError(f"--samples={options.samples} must be 2 or more")
    out = files.local(options.out, "--out")
    # Imported late: a misspelt flag is answered at once.
    import jax

    from limr_jax import console
    from limr_jax.studies import old_rollouts, pass_rate_errors

    reports, costs, differ = {}, {}, {}
    for workdir in options.runs:
        run = old_rollouts.open_run(workdir, steps, out)
        with jax.set_mesh(run.run.mesh):
            rollouts = old_rollouts.write_again(run)
            differ[workdir] = int(sum(x["differs"] for x in rollouts))
            for step in steps:
                case = old_rollouts.case(run, rollouts, step, samples=options.samples)
                reports[workdir, step] = pass_rate_errors.report(case)
            costs[workdir] = old_rollouts.seconds(run, rollouts, max(steps))
    result = pass_rate_errors.summary(reports)
    result |= {"seconds": costs, "rollouts_that_differ": differ}
    pass_rate_errors.write(out, result)
    console.say(pass_rate_errors.markdown(result))
    shown = ("best_beta", "limits", "seconds", "rollouts_that_differ")
    console.say(json.dumps({name: result[name] for name in shown} | {"out": str(out)}))


def _steps(text: str) -> list[int]:
    steps = sorted({int(x) for x in text.split(",") if x.strip().isdigit()})
    if not steps or steps[0] < 1 or len(steps) != len(text.split(",")):
        raise InputError(
            f"--steps={text} must be different steps, each at least 1, as in 16,32"
        )
    return steps


if __name__ == "__main__":
    run_main(main)
