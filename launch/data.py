"""Look at a set of problems before training on it.

    python launch/data.py describe ../shared/data/math_lvl3to5.jsonl \\
        --tokenizer ../shared/tokenizers/qwen2 --manual_dir ../shared/data
    python launch/data.py describe gsm8k:train[:1000]
    python launch/data.py list

`describe` prints counts, levels, lengths (in tokens, or in characters without
--tokenizer), problems that occur twice, and those that are in an evaluation set.
Only evaluation sets on this machine are compared, the rest are named; --eval SPEC adds
one. `list` prints the names of the data sets and where they come from. The last line on
stdout is one JSON object.
"""

import collections
import json
import os
import re

# Counting needs no accelerator, and a run on this host may hold it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

from limr_jax import data, text
from limr_jax.config import Parser, run_main
from limr_jax.datasets import facts, prepared


def main(argv: list[str]) -> None:
    """One command: describe or list."""
    parser = Parser("launch/data.py", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    one = commands.add_parser("describe")
    one.add_argument("spec", help="name, name:split[a:b] or FILE.jsonl[a:b]")
    one.add_argument("--tokenizer", help="directory or file; lengths in its tokens")
    one.add_argument("--data_dir", default="~/.cache/limr_jax", help="prepared sets")
    one.add_argument("--manual_dir", help="local copies of source files")
    one.add_argument("--eval", action="append", default=[], metavar="SPEC")
    options = parser.parse_args(argv)
    print(json.dumps(_list() if options.command == "list" else _describe(options)))


def _list() -> dict:
    for name in prepared.names():
        known = facts.FACTS.get(name)
        print(f"{name:14} {known.about if known else 'made by this package'}")
        for split, each in known.splits.items() if known else ():
            count = "?" if each.rows is None else f"{each.rows:,}"
            print(f"{'':14}   :{split}, {count} problems, {known.licence}")
            for url, _ in each.sources:
                print(f"{'':14}     {url}")
    return {"names": prepared.names(), "evaluation": list(facts.EVALUATION_SETS)}


def _describe(options) -> dict:
    where = {"data_dir": options.data_dir, "manual_dir": options.manual_dir}
    problems = data.load_problems(options.spec, **where)
    tokenizer = text.load_tokenizer(options.tokenizer) if options.tokenizer else None
    said = {"problems": len(problems), "digest": problems.digest}
    for column in ("level", "verifiable"):
        if column in problems.columns:
            counts = collections.Counter(map(str, problems.columns[column]))
            said[column] = dict(sorted(counts.items()))
    said["without_answer"] = [
        problem_id
        for problem_id, answer in zip(problems.ids, problems.answers, strict=True)
        if not answer.strip()
    ]
    said["unit"] = "tokens" if tokenizer else "characters"
    said |= _lengths(problems, tokenizer)
    said["duplicates"] = _duplicates(problems)
    sets, absent = data.evaluation_sets(**where)
    sets += [data.load_problems(spec, **where) for spec in options.eval]
    said["overlap"] = {
        each.source: [list(pair) for pair in data.overlap(problems, each)]
        for each in sets
        if each.source.split(":")[0] != re.split(r"[:\[]", options.spec)[0]
    }
    said["not_compared"] = absent
    _show(options.spec, said)
    return said


def _lengths(problems, tokenizer) -> dict:
    """Shortest, quartiles, 99 % and longest of prompts and answers."""
    if tokenizer:
        prompts = tokenizer.encode_chats(data.chats(problems, tokenizer))
        answers = tokenizer.encode_batch(problems.answers, continued=True)
    else:
        prompts, answers = problems.prompts, problems.answers
    names = ("min", "25%", "50%", "75%", "99%", "max")
    return {
        name: dict(
            zip(
                names,
                np.percentile(list(map(len, rows)), [0, 25, 50, 75, 99, 100]).tolist(),
            )
        )
        for name, rows in (("prompt", prompts), ("answer", answers))
    }


def _duplicates(problems) -> list[list[str]]:
    """The ids of each problem that occurs more than once."""
    groups = collections.defaultdict(list)
    for problem_id, prompt in zip(problems.ids, problems.prompts, strict=True):
        groups[data.same_text(prompt)].append(problem_id)
    return [ids for ids in groups.values() if len(ids) > 1]


def _show(spec: str, said: dict) -> None:
    print(f"{spec}: {said['problems']:,} problems, sha256 {said['digest'][:12]}")
    for column in ("level", "verifiable"):
        if column in said:
            counts = [f"{value}: {count:,}" for value, count in said[column].items()]
            print(f"  {column:10} {', '.join(counts)}")
    for name in ("prompt", "answer"):
        lengths = [f"{key} {value:,.0f}" for key, value in said[name].items()]
        print(f"  {name:10} {', '.join(lengths)} {said['unit']}")
    if said["without_answer"]:
        first = ", ".join(said["without_answer"][:3])
        print(f"  no answer  {len(said['without_answer'])}: {first}")
    print(f"  twice      {len(said['duplicates'])} problems")
    for ids in said["duplicates"][:5]:
        print(f"             {' = '.join(ids)}")
    for name, pairs in said["overlap"].items():
        print(f"  in {name}: {len(pairs)}")
        for here, there in pairs[:5]:
            print(f"             {here} = {there}")
    if said["not_compared"]:
        print(f"  not on this machine: {', '.join(said['not_compared'])}")


if __name__ == "__main__":
    run_main(main)
