"""A run small enough to train in a test: its problems, its config, its parts."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from tiny_policy import random_params

from limr_jax import setup, sharding
from limr_jax.config import load
from limr_jax.data import tokenizer
from limr_jax.models import from_config
from limr_jax.programs import Graded
from limr_jax.storage import checkpoint, metrics, rollout_dump
from limr_jax.storage.workdir import claim, read_result

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODEL = {
    "width": 16,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 4,
    "mlp_width": 32,
}
FIELDS = {
    "tokenizer": ROOT / "limr_jax/assets/arithmetic",
    "num_steps": 6,
    "prompts_per_step": 4,
    "group_size": 2,
    "rollout.max_prompt_length": 16,
    "rollout.max_response_length": 6,
    "optimizer.learning_rate": 0.01,
    "evaluation.samples": 0,
    "checkpoint.every": 2,
    **{f"model.{name}": size for name, size in MODEL.items()},
}


def write_problems(path: pathlib.Path, count: int, add: int = 1) -> pathlib.Path:
    """A JSONL file of `count` problems 'i+add='."""
    rows = [
        {
            "id": f"{path.stem}/{i}",
            "problem": f"{i}+{add}=",
            "answer": str(i + add),
            "level": i % 2,
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def short_sighted(path: pathlib.Path, positions: int) -> pathlib.Path:
    """A copy of the embedded model that was trained for so many positions."""
    shutil.copytree(ROOT / "limr_jax/assets/arithmetic", path)
    written = json.loads((path / "config.json").read_text())
    written["max_position_embeddings"] = positions
    (path / "config.json").write_text(json.dumps(written))
    return path


def arguments(fields: dict) -> list[str]:
    """The command line of base.py, FIELDS and `fields`."""
    overrides = [f"--config.{name}={x}" for name, x in (FIELDS | fields).items()]
    return ["--config", str(ROOT / "configs/base.py"), *overrides]


def configure(train: pathlib.Path, **fields):
    """The config of a tiny run; `a__b` is the field a.b."""
    fields = {name.replace("__", "."): value for name, value in fields.items()}
    return load.load(arguments({"data.train": train} | fields))[0]


@contextlib.contextmanager
def one_device(module, devices: int = 1):
    """While it lasts the module's meshes are of the first virtual devices alone."""
    make = partial(sharding.make_mesh, devices=jax.devices()[:devices])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_mesh", make)
        yield


def set_up(config, devices: int = 1) -> setup.Run:
    """The parts of a run on so many of the virtual devices."""
    with one_device(setup, devices):
        return setup.set_up(config)


def checkpoints(folder: pathlib.Path, count: int) -> pathlib.Path:
    """The workdir of a run with random policies as its checkpoints of steps 1 and 2.

    Its held-out problems are folder/held_out.jsonl, so many.
    """
    problems = write_problems(folder / "held_out.jsonl", count)
    config = configure(folder / "train.jsonl", data__eval=problems, rollout__slots=4)
    vocabulary = tokenizer.load_tokenizer(config.tokenizer).vocab_size
    model_config = from_config.read_model_config(config.model, vocabulary)
    workdir = folder / "run"
    claim(workdir, {"config": config.to_dict(), "version": "0"})
    with checkpoint.Checkpointer(workdir, keep=2) as saver:
        for step in (1, 2):
            params = random_params(model_config, seed=step)
            state = {"train": {"params": params, "moment": np.ones(3)}}
            saver.save(step, jax.device_put(state), {})
    return workdir


def with_parity(run: setup.Run) -> setup.Run:
    """The run with rewards that a random policy gets, seldom the same in a group.

    Right where the first token is even; invalid where the second is a multiple of 8.
    """

    def grade(written, drawn):
        first_PG = written.response_BT[:, 0].reshape(-1, written.group)
        second_PG = written.response_BT[:, 1].reshape(-1, written.group)
        reward_PG = (first_PG % 16).astype(jnp.float32) / 15
        even_PG = (first_PG % 2 == 0).astype(jnp.float32)
        valid_PG = second_PG % 8 > 0
        if written.asked_B is not None:
            valid_PG &= written.asked_B.reshape(valid_PG.shape)
        return Graded(reward_PG, even_PG, valid_PG, valid_PG)

    rows = NamedSharding(run.mesh, sharding.BATCH)
    grade = jax.jit(grade, out_shardings=rows)
    return dataclasses.replace(run, grade=grade, grade_eval=grade)


def at_step(run: setup.Run, step: int, act) -> setup.Run:
    """The run with `act()` called before grading at this step of a `train` call."""
    calls = []

    def grade(written, drawn):
        calls.append(1)
        if len(calls) == step:
            act()
        return run.grade(written, drawn)

    return dataclasses.replace(run, grade=grade)


def interrupt():
    raise KeyboardInterrupt


def stopping(run: setup.Run, step: int) -> setup.Run:
    """The run, interrupted before grading at this step of a `train` call."""
    return at_step(run, step, interrupt)


def run_records(workdir) -> dict:
    """All that a run leaves behind, but for what differs from one run to the next."""

    def lasting(row):
        passing = ("seconds", "compile_count", "workdir")
        return {
            name: value
            for name, value in row.items()
            if not name.split("/")[-1].startswith(passing)
            and not name.endswith("per_second")
        }

    return {
        "metrics": [lasting(row) for row in metrics.read_metrics(workdir)],
        "evals": [lasting(row) for row in metrics.read_metrics(workdir, metrics.EVALS)],
        "rollouts": list(rollout_dump.read_dump(workdir)),
        "result": lasting(read_result(workdir) or {}),
    }
