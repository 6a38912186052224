"""What drafted rollouts would save, simulated over a run's dumped rollouts.

    python launch/drafts.py runs/tiny --k 1,2,4,8 --n 3

A token never changes by a draft, so that only decode steps are counted: tokens a step
and row, by the number of a problem's visit. `longest` is the same of each group's
longest rollout, which a loop waits for. Of the last visit so many rollouts a problem
are known as the run's rollout.drafts_kept says. The last line on stdout is one JSON
object.
"""

import collections
import json
import os

# To count tokens is no reason to take the accelerator from a run on this host.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from limr_jax.config.load import Parser, run_main
from limr_jax.errors import InputError


def main(argv: list[str]) -> None:
    """Parse, read the dump, simulate, print a table."""
    parser = Parser("launch/drafts.py", __doc__)
    parser.add_argument(
        "run",
        metavar="RUN",
        help="a run with a dump of whole rollouts (dump.rows_per_step=0)",
    )
    parser.add_argument(
        "--k",
        metavar="A,B",
        default="1,2,4,8",
        help="tokens that a draft proposes at most",
    )
    parser.add_argument(
        "--n",
        metavar="A,B",
        default="3",
        help="last tokens of a row that are looked up",
    )
    parser.add_argument(
        "--sources",
        metavar="A,B",
        default="visit,siblings,prompt,both",
        help="where they are looked up",
    )
    parser.add_argument(
        "--groups",
        type=int,
        metavar="N",
        default=0,
        help="only the first N groups (problem and step); 0: all",
    )
    options = parser.parse_args(argv)
    ks, ns = (_numbers(options, name) for name in ("k", "n"))
    if options.groups < 0:
        raise InputError(f"--groups={options.groups} must be 0 or more")
    from limr_jax import console
    from limr_jax.data.tokenizer import load_tokenizer
    from limr_jax.errors import choose
    from limr_jax.evaluation.trained_policy import read_config
    from limr_jax.platform import resolve
    from limr_jax.storage import rollout_dump
    from limr_jax.storage.workdir import read_run
    from limr_jax.studies import drafts, reward_curves

    sources = options.sources.split(",")
    for source in sources:
        choose(dict.fromkeys(drafts.SOURCES), source, "--sources")
    tokenizer = load_tokenizer(resolve(read_config(options.run).tokenizer))
    dumped = list(rollout_dump.whole_rows(options.run, drafts.NEEDS))
    if not dumped:
        raise InputError(
            f"{options.run} has no dumped rollouts; give a run with dump.max_bytes "
            "above 0"
        )
    at_step = collections.Counter(row["step"] for row in dumped)
    reward_curves.check_whole(options.run, at_step)
    groups = drafts.groups_of(dumped, tokenizer)[: options.groups or None]
    stored = read_run(options.run)["config"]
    kept = stored.get("rollout", {}).get("drafts_kept")  # an older run: all
    rows = []
    with console.progress("simulate", len(ns) * len(ks) * len(sources)) as tick:
        for n in ns:
            for source in sources:
                for k in ks:
                    counts = drafts.simulate(groups, source=source, n=n, k=k, kept=kept)
                    rows += [
                        {
                            "n": n,
                            "source": source,
                            "k": k,
                            "visit": visit,
                            "rollout_tokens": count.tokens,
                            "tokens_a_step": _ratio(count.tokens, count.row_steps),
                            "longest": _ratio(
                                count.longest_tokens, count.longest_steps
                            ),
                        }
                        for visit, count in counts.items()
                    ]
                    tick()
    console.say("| n | source | K | visit | tokens | tokens a step | longest |")
    console.say("|" + "---|" * 7)
    for row in rows:
        cells = [row["n"], row["source"], row["k"], row["visit"]]
        cells.append(f"{row['rollout_tokens']:,}")
        for ratio in (row["tokens_a_step"], row["longest"]):
            cells.append("–" if ratio is None else f"{ratio:.2f}")
        console.say("| " + " | ".join(map(str, cells)) + " |")
    console.say(json.dumps({"run": options.run, "groups": len(groups), "rows": rows}))


def _ratio(tokens: int, steps: int) -> float | None:
    # A rollout of one token takes no decode step.
    return tokens / steps if steps else None


def _numbers(options, name: str) -> list[int]:
    """The whole numbers from 1 of a flag."""
    text = getattr(options, name)
    numbers = [int(x) if x.isascii() and x.isdigit() else 0 for x in text.split(",")]
    if min(numbers) < 1 or max(numbers) > 64:
        raise InputError(
            f"--{name}={text} must be whole numbers from 1 to 64, with commas between"
        )
    return numbers


if __name__ == "__main__":
    run_main(main)
