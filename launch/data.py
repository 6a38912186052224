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

import numpy as np

from limr_jax import platform
from limr_jax.config.load import Parser, run_main

# Counting needs no accelerator, and a run on this host may hold it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

with platform.importing_jax():
    from limr_jax.data.datasets import catalogue, tfds
    from limr_jax.data.overlap import (
        evaluation_sets,
        normalised_text,
        overlapping_ids,
    )
    from limr_jax.data.problems import chats, load_problems, named_file
    from limr_jax.data.tokenizer import load_tokenizer


def main(argv: list[str]) -> None:
    """One command: describe or list."""
    parser = Parser("launch/data.py", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    one = commands.add_parser("describe")
    one.add_argument("spec", help="name, name:split[a:b] or FILE.jsonl[a:b]")
    one.add_argument(
        "--tokenizer", help="directory or file; lengths in its tokens; default: none"
    )
    one.add_argument("--data_dir", default="~/.cache/limr_jax", help="prepared sets")
    one.add_argument("--manual_dir", help="local copies of source files; default: none")
    one.add_argument(
        "--eval",
        action="append",
        default=[],
        metavar="SPEC",
        help="one more evaluation set to compare with, again and again; default: none",
    )
    options = parser.parse_args(argv)
    print(json.dumps(_list() if options.command == "list" else _describe(options)))


def _list() -> dict:
    for name in tfds.names():
        known = catalogue.FACTS.get(name)
        print(f"{name:14} {known.about if known else 'made by this package'}")
        for split, each in known.splits.items() if known else ():
            count = "?" if each.rows is None else f"{each.rows:,}"
            print(f"{'':14}   :{split}, {count} problems, {known.licence}")
            for url, _ in each.sources:
                print(f"{'':14}     {url}")
    return {"names": tfds.names(), "evaluation": list(catalogue.EVALUATION_SETS)}


def _describe(options) -> dict:
    data_dir, manual_dir = options.data_dir, options.manual_dir
    problems = load_problems(options.spec, data_dir=data_dir, manual_dir=manual_dir)
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    facts = {"problems": len(problems), "digest": problems.digest}
    for column in ("level", "verifiable"):
        if column in problems.columns:
            counts = collections.Counter(map(str, problems.columns[column]))
            facts[column] = dict(sorted(counts.items()))
    facts["without_answer"] = [
        problem_id
        for problem_id, answer in zip(problems.ids, problems.answers, strict=True)
        if not answer.strip()
    ]
    facts["unit"] = "tokens" if tokenizer else "characters"
    facts |= _lengths(problems, tokenizer)
    facts["duplicates"] = _duplicates(problems)
    public, absent = evaluation_sets(data_dir=data_dir, manual_dir=manual_dir)
    # An evaluation set holds itself, all of it. Another split of its name is another
    # set, and one that is asked for by --eval is compared whatever it is.
    sets = [x for x in public if x.source not in _own_names(options.spec)]
    sets += [
        load_problems(spec, data_dir=data_dir, manual_dir=manual_dir)
        for spec in options.eval
    ]
    facts["overlap"] = {
        each.source: [list(pair) for pair in overlapping_ids(problems, each)]
        for each in sets
    }
    facts["not_compared"] = absent
    _show(options.spec, facts)
    return facts


def _own_names(spec: str) -> set[str]:
    """'name:split' of a prepared set, of each of its splits where none is named."""
    if named_file(spec) is not None:
        return set()
    name, _, split = spec.partition("[")[0].partition(":")
    facts = catalogue.FACTS.get(name)
    splits = [split] if split else facts.splits if facts else ()
    return {f"{name}:{each}" for each in splits}


def _lengths(problems, tokenizer) -> dict:
    """Shortest, quartiles, 99 % and longest of prompts and answers."""
    if tokenizer:
        prompts = tokenizer.encode_chats(chats(problems, tokenizer))
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
        groups[normalised_text(prompt)].append(problem_id)
    return [ids for ids in groups.values() if len(ids) > 1]


def _show(spec: str, facts: dict) -> None:
    print(f"{spec}: {facts['problems']:,} problems, sha256 {facts['digest'][:12]}")
    for column in ("level", "verifiable"):
        if column in facts:
            counts = [f"{value}: {count:,}" for value, count in facts[column].items()]
            print(f"  {column:10} {', '.join(counts)}")
    for name in ("prompt", "answer"):
        lengths = [f"{key} {value:,.0f}" for key, value in facts[name].items()]
        print(f"  {name:10} {', '.join(lengths)} {facts['unit']}")
    if facts["without_answer"]:
        first = ", ".join(facts["without_answer"][:3])
        print(f"  no answer  {len(facts['without_answer'])}: {first}")
    print(f"  twice      {len(facts['duplicates'])} problems")
    for ids in facts["duplicates"][:5]:
        print(f"             {' = '.join(ids)}")
    for name, pairs in facts["overlap"].items():
        print(f"  in {name}: {len(pairs)}")
        for here, there in pairs[:5]:
            print(f"             {here} = {there}")
    if facts["not_compared"]:
        print(f"  not on this machine: {', '.join(facts['not_compared'])}")


if __name__ == "__main__":
    run_main(main)
