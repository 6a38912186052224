"""Reward curves from the rollouts that other frameworks write: verl, TRL, prime-rl.

Of each framework these were read; what they write was not run here.

    verl       verl/trainer/ppo/ray_trainer.py of volcengine/verl (2026-01-29): where
               trainer.rollout_data_dir says, STEP.jsonl with a line a rollout of
               {input, output, gts, score, step} and what the reward function adds
    trl        trl/trainer/grpo_trainer.py of huggingface/trl (2026-07-24): with
               log_completions, OUTPUT_DIR/completions/completions_STEP.parquet with a
               row a rollout of step, prompt, completion, a column each reward
               function, and advantage. An evaluation writes its own rows in place of
               the step's: train without
    prime-rl   src/prime_rl/monitors/file.py of PrimeIntellect-ai/prime-rl, whose lines
               are the episodes of verifiers/v1/episode.py of PrimeIntellect-ai/
               verifiers (both 2026-08-21): RUN_DIR/rollouts/step_STEP/train/all/
               traces.jsonl; until July 2026 step_STEP/train_rollouts.jsonl, whose lines
               have example_id and reward
    openrlhf   openrlhf/trainer/ppo_trainer.py of OpenRLHF/OpenRLHF (2026-08-13) writes
               no rollouts to a disk: one sample a step goes to its logger. What is read
               is a JSONL file that its reward function can be made to write, with a
               line a rollout of {step, prompt (or id), reward}

A problem is known by its id where there is one (prime-rl, openrlhf), and else by the
whole text of its prompt: two problems of one prompt are one. Its k-th visit is its
epoch k. Rollouts of one step are of one visit, and with prime-rl those of one group,
which may come in two steps.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator

from limr_jax.data import jsonl
from limr_jax.data.datasets import normalise
from limr_jax.errors import InputError, choose, shown
from limr_jax.samplers import score_file
from limr_jax.storage import files
from limr_jax.studies import reward_curves

# Sums of weighted rewards, and what was fp32, miss a whole number by as much.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class DumpedRollout:
    """What a curve needs of a rollout."""

    problem: str
    step: int
    visit: int | str  # the same in all rollouts of one visit of the problem
    reward: float | None  # None: it was not graded


def read(
    path, *, framework: str, reward: str = "", right_at: float | None = 1.0
) -> reward_curves.Curves:
    """The curves of a dump: of each visit the share of rollouts that are right.

    framework: of READERS. reward: the name of the one that is meant, where there are
    several; "": the framework's own. right_at: a rollout is right from this reward on;
    None: the curves are of mean rewards. Raises InputError, with the file and the line,
    for what is not such a dump.
    """
    reader = choose(READERS, framework, "--from")
    place = files.local(path, "--run")
    if not os.path.exists(place):
        raise InputError(f"{path}: no such file or folder; check --run")
    rollouts = list(reader(place, reward))
    if not rollouts:
        raise InputError(f"{path}: holds no rollout; give a dump of at least one step")
    graded = [x.reward for x in rollouts if x.reward is not None]
    if right_at is not None and graded and max(graded) < right_at - _ROUNDING:
        raise InputError(
            f"{path}: the largest of {len(graded):,} rewards is {max(graded):g}, and "
            f"from --right_at={right_at:g} on a rollout is right; give --right_at"
        )
    return reward_curves.of_cells(_cells(rollouts, right_at))


def _cells(rollouts: list[DumpedRollout], right_at: float | None) -> dict:
    """Of each problem and visit, the sum of the values and their count."""
    visits: dict[str, dict[int | str, int]] = {}  # problem → visit → its number
    cells: dict[str, dict[int, list[float]]] = {}
    # Stable: within a step the file's order holds.
    for rollout in sorted(rollouts, key=lambda x: x.step):
        numbers = visits.setdefault(rollout.problem, {})
        epoch = numbers.setdefault(rollout.visit, len(numbers))
        cell = cells.setdefault(rollout.problem, {}).setdefault(epoch, [0.0, 0])
        if rollout.reward is not None:
            value = rollout.reward
            if right_at is not None:
                value = float(value >= right_at - _ROUNDING)
            cell[0] += value
            cell[1] += 1
    return cells


def _verl(folder: pathlib.Path, reward: str) -> Iterator[DumpedRollout]:
    # Of a dump that is half packed the rest would be other curves, without a word.
    for packed in sorted(folder.glob("*.jsonl.gz")):
        raise InputError(f"{packed}: is gzip; unpack the folder's files (gunzip)")
    paths = _numbered(folder.glob("*.jsonl"), lambda path: path.stem)
    if not paths:
        raise InputError(
            f"{folder}: holds no STEP.jsonl; give the folder that verl's "
            "trainer.rollout_data_dir named"
        )
    name = reward or "score"
    for step, path in paths:
        for where, row in jsonl.read_rows(path):
            if row.get("step", step) != step:
                raise InputError(
                    f"{where}: is of step {shown(repr(row['step']))}, in the file of "
                    f"step {step}; give the files the names that verl gave them"
                )
            value = _reward(row, name, where)
            yield DumpedRollout(_text(row, "input", where), step, step, value)


_TRL_OTHERS = ("step", "prompt", "completion", "advantage")


def _trl(folder: pathlib.Path, reward: str) -> Iterator[DumpedRollout]:
    inside = folder / "completions"
    paths = _numbered(
        (inside if inside.is_dir() else folder).glob("completions_*.parquet"),
        lambda path: path.stem.removeprefix("completions_"),
    )
    if not paths:
        raise InputError(
            f"{folder}: holds no completions_STEP.parquet; give the output_dir of a "
            "TRL run with log_completions=True and logging_steps=1"
        )
    before = None
    for step, path in paths:
        rows = list(normalise.read(path))
        texts = [(row.get("prompt"), row.get("completion")) for _, row in rows]
        # Every logged step writes the newest generation, from which several steps may
        # learn (steps_per_generation, num_iterations).
        if texts == before:
            continue
        before = texts
        name = reward or _only_reward([row for _, row in rows], path)
        for where, row in rows:
            # A reward function that says nothing of a row has nan there.
            if isinstance(row.get(name), float) and math.isnan(row[name]):
                row[name] = None
            value = _reward(row, name, where)
            yield DumpedRollout(_text(row, "prompt", where), step, step, value)


def _only_reward(rows: list[dict], path: pathlib.Path) -> str:
    """The one column of rewards; InputError where several might be it."""
    names = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if name not in _TRL_OTHERS
        and any(jsonl.is_number(row.get(name)) for row in rows)
    ]
    if len(names) != 1:
        raise InputError(
            f"{path}: {len(names)} columns of numbers may be the reward "
            f"({', '.join(names) or 'none'}); name one with --reward"
        )
    return names[0]


def _prime_rl(folder: pathlib.Path, reward: str) -> Iterator[DumpedRollout]:
    inside = folder / "rollouts"
    steps = _numbered(
        (inside if inside.is_dir() else folder).glob("step_*"),
        lambda path: path.name.removeprefix("step_"),
    )
    files_of = ((step, _lines_of_step(parent)) for step, parent in steps)
    paths = [(step, path) for step, path in files_of if path]
    if not paths:
        raise InputError(
            f"{folder}: holds no rollouts/step_STEP/train/all/traces.jsonl; give the "
            "run directory of a prime-rl run with its file monitor on"
        )
    for step, path in paths:
        for where, row in jsonl.read_rows(path):
            if "example_id" in row:
                failed = row.get("error") is not None
                value = None if failed else _reward(row, reward or "reward", where)
                problem = _text(row, "example_id", where)
                visit = _visit(row.get("group_id"), step=step, where=where)
                yield DumpedRollout(problem, step, visit, value)
            else:
                yield from _episode(row, step=step, reward=reward, where=where)


def _lines_of_step(folder: pathlib.Path) -> pathlib.Path | None:
    """The file of a step that says most; None where there is none."""
    # `all` has the groups that were dropped, too: without these the curves would be of
    # what was trained on alone.
    names = ("train/all/traces.jsonl", "train/effective/traces.jsonl")
    paths = [folder / name for name in (*names, "train_rollouts.jsonl")]
    return next((path for path in paths if path.is_file()), None)


def _episode(
    row: dict, *, step: int, reward: str, where: str
) -> Iterator[DumpedRollout]:
    """The rollouts of an episode's traces, or of a line that is a trace itself."""
    group = row.get("group")
    name = group.get("id") if isinstance(group, dict) else row.get("group_id")
    visit = _visit(name, step=step, where=where)
    problem = _task(row.get("task"), where)
    traces = row.get("traces", [row])
    if not isinstance(traces, list) or not all(isinstance(x, dict) for x in traces):
        raise InputError(
            f"{where}: the field 'traces' is no list of objects; give an episode of "
            "verifiers as prime-rl writes it"
        )
    # An episode that failed before any trace is a rollout that nobody could grade.
    if not traces:
        yield DumpedRollout(problem, step, visit, None)
    for trace in traces:
        agent = trace.get("agent")
        # A judge's trace, say, is no rollout of the policy.
        if isinstance(agent, dict) and not agent.get("trainable", True):
            continue
        well = trace.get("ok", not trace.get("errors"))
        value = _weighted(trace.get("rewards"), reward, where) if well else None
        yield DumpedRollout(problem, step, visit, value)


def _visit(group, *, step: int, where: str) -> int | str:
    """What rollouts of one visit share: the group's id, or without one the step."""
    if group is None:
        return step
    if type(group) not in (str, int):
        raise InputError(
            f"{where}: the group's id {shown(repr(group))} is no text and no whole "
            "number; give what prime-rl writes"
        )
    # As text, so that no group's number is taken for a step.
    return f"group {group}"


def _task(task, where: str) -> str:
    """What a task is known by: its key, the hash of its content, or its prompt."""
    if not isinstance(task, dict):
        raise InputError(
            f"{where}: the field 'task' is missing or no object; give an episode of "
            "verifiers as prime-rl writes it"
        )
    inner = task.get("data")
    data = task | inner if isinstance(inner, dict) else task
    for name in ("key", "hash", "prompt"):
        if data.get(name) is not None:
            return _text(data, name, where)
    return _text(data, "idx", where)


def _weighted(rewards, name: str, where: str) -> float | None:
    """The sum of a trace's weighted rewards, or the one named; None: not graded."""
    if not isinstance(rewards, dict):
        raise InputError(
            f"{where}: the field 'rewards' is missing or no object; give an episode of "
            "verifiers as prime-rl writes it"
        )
    known = {key: value for key, value in rewards.items() if value is not None}
    if name:
        if known and name not in known:
            raise InputError(
                f"{where}: no reward {name!r} but {shown(', '.join(known))}; give "
                "--reward one of them"
            )
        known = {key: value for key, value in known.items() if key == name}
    total = None
    for key, value in known.items():
        weight = 1.0
        if isinstance(value, dict):
            # A reward that was named counts as it is.
            weight = 1.0 if name else value.get("weight", 1.0)
            value = value.get("score")
        each = [score_file.reward(x, key, where) for x in (value, weight)]
        if None not in each:
            total = (total or 0.0) + each[0] * each[1]
    return score_file.reward(total, "rewards, weighted,", where)


def _openrlhf(path: pathlib.Path, reward: str) -> Iterator[DumpedRollout]:
    if not path.is_file():
        raise InputError(
            f"{path}: OpenRLHF writes no rollouts to a disk; have its reward function "
            'write a JSONL file with a line a rollout, {"step": 1, "prompt": "…", '
            '"reward": 1.0}, and give that file'
        )
    for where, row in jsonl.read_rows(path):
        step = row.get("step")
        if type(step) is not int or step < 0:
            raise InputError(
                f"{where}: the field 'step' is missing or no whole number from 0; give "
                "the step that the rollout is of, or which visit of its problem"
            )
        problem = _text(row, "id" if "id" in row else "prompt", where)
        value = _reward(row, reward or "reward", where)
        yield DumpedRollout(problem, step, step, value)


def _numbered(
    paths: Iterable[pathlib.Path], name: Callable[[pathlib.Path], str]
) -> list[tuple[int, pathlib.Path]]:
    """(number, path) of the paths whose name is a number, by number."""
    named = ((name(path), path) for path in paths)
    numbered = sorted(
        (int(x), path) for x, path in named if x.isascii() and x.isdigit()
    )
    for (one, first), (other, second) in zip(numbered, numbered[1:]):
        if one == other:
            raise InputError(
                f"{first} and {second.name} are both of step {one}; keep one of them"
            )
    return numbered


def _reward(row: dict, name: str, where: str) -> float | None:
    if name not in row or name == "step":
        others = [key for key, x in row.items() if isinstance(x, int | float)]
        others = [key for key in others if key != "step"]
        raise InputError(
            f"{where}: has no reward {name!r}; its numbers are "
            f"{shown(', '.join(others)) or 'none'}: name one with --reward"
        )
    value = row[name]
    # verl's `acc`, say, is true or false.
    value = int(value) if isinstance(value, bool) else value
    return score_file.reward(value, name, where)


def _text(row: dict, name: str, where: str) -> str:
    """The field as text: messages as their JSON, and a whole number as its digits."""
    if isinstance(row.get(name), list):
        return json.dumps(row[name], ensure_ascii=False, sort_keys=True)
    return jsonl.text_field(row, name, where, numbers=True)


# How a framework's dump is read: (path, the reward's name or "") → its rollouts.
READERS: dict[str, Callable[[pathlib.Path, str], Iterator[DumpedRollout]]] = {
    "verl": _verl,
    "trl": _trl,
    "prime-rl": _prime_rl,
    "openrlhf": _openrlhf,
}
