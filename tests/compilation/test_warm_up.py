"""Programs are compiled in threads before the first step, and once."""

import contextlib
import logging
import re

import jax
import jax.numpy as jnp
import pytest
from tiny_run import configure, run_records, set_up, write_problems

from limr_jax import step
from limr_jax.compilation import warm_up
from limr_jax.data.prompts import put_prompts
from limr_jax.storage import metrics
from limr_jax.train import train


@pytest.fixture(scope="module")
def made(tmp_path_factory, quick_compiler):
    """(the run, its config): with a reference, on four devices."""
    folder = tmp_path_factory.mktemp("ahead")
    config = configure(
        write_problems(folder / "train.jsonl", 8), num_steps=2, kl__coefficient=0.1
    )
    return set_up(config, 4), config


@pytest.fixture
def log_compiles():
    """Of all threads."""
    jax.config.update("jax_log_compiles", True)
    yield
    jax.config.update("jax_log_compiles", False)


@pytest.mark.slow
def test_a_step_compiles_nothing_that_was_compiled_ahead(
    made, tmp_path, caplog, log_compiles
):
    jax.clear_caches()
    run, config = made
    with caplog.at_level(logging.WARNING):
        train(run, config, tmp_path / "ahead", warm_up.compiling)
    finished = re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)
    for name in ("draw", "generate", "grade", "observe", "reference", "update"):
        assert finished.count(name) == 1, name
    first, second = (
        row["compile_count"] for row in metrics.read_metrics(tmp_path / "ahead")
    )
    assert first == second
    jax.clear_caches()
    train(run, config, tmp_path / "plain")
    assert run_records(tmp_path / "ahead") == run_records(tmp_path / "plain")


def test_what_does_not_compile_is_raised_by_whoever_waits(made, monkeypatch):
    run, config = made

    def fails(x):
        raise RuntimeError("no room on the chip")

    calls = [
        step.Called(name, jax.jit(program), (jnp.ones(3),))
        for name, program in (("draw", jnp.sin), ("update", fails))
    ]
    monkeypatch.setattr(warm_up, "step_calls", lambda *_: calls)
    no_room = pytest.raises(RuntimeError, match="no room on the chip")
    with no_room, warm_up.compiling(run, None) as ready:
        ready()


def way(program, args) -> tuple:
    """A call, as far as it decides what is compiled."""
    leaves, tree = jax.tree.flatten(args)
    places = [(x.shape, str(x.dtype), x.sharding) for x in leaves]
    return program, tree, tuple(places)


def equivalent(one: tuple, other: tuple) -> bool:
    return one[:2] == other[:2] and all(
        a[:2] == b[:2] and a[2].is_equivalent_to(b[2], len(a[0]))
        for a, b in zip(one[2], other[2], strict=True)
    )


RUNS = {
    "two calls": {"kl__coefficient": 0.1},
    "two calls, graded by the hosts, some groups kept": {
        "reward": "math",
        "overlong__buffer": 2,
        "filter__groups": "mixed",
        "filter__max_rounds": 2,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(
            # Of two calls and no more: with all that is compiled in a step, below.
            fields,
            id=name,
            marks=pytest.mark.soak if name == "two calls" else (),
        )
        for name, fields in RUNS.items()
    ],
)
def test_what_is_compiled_ahead_is_what_a_step_calls(tmp_path, quick_compiler, fields):
    """Each program that is called, as it is called, and no other."""
    problems = write_problems(tmp_path / "train.jsonl", 9)
    config = configure(problems, num_steps=1, rollout__calls=2, **fields)
    run, called = set_up(config, 2), []
    ahead_of_it = [
        way(call.program, call.args)
        for call in warm_up.step_calls(run, put_prompts(run.train_set, run.mesh))
    ]

    class Noting(step.Phases):
        def start(self, name, program, *args):
            if hasattr(program, "lower"):
                called.append(way(program, args))
            return super().start(name, program, *args)

        def queue(self, name, program, *args):
            called.append(way(program, args))
            return super().queue(name, program, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limr_jax.train.Phases", Noting)
        train(run, config, tmp_path / "run")
    for each in called:
        assert any(equivalent(each, other) for other in ahead_of_it), each[0]
    for each in ahead_of_it:
        assert any(equivalent(each, other) for other in called), each[0]
    programs = [program for program, *_ in ahead_of_it]
    assert len(programs) == len(set(programs))  # generate once, for both calls
    names = {program.__name__ for program in programs}
    assert {"split", "join", "join_grades", "generate"} <= names


@pytest.mark.slow
def test_with_two_calls_the_first_step_compiles_nothing(tmp_path, quick_compiler):
    """All was compiled when the step began."""
    problems = write_problems(tmp_path / "train.jsonl", 9)
    config = configure(problems, num_steps=1, rollout__calls=2, kl__coefficient=0.1)
    jax.clear_caches()
    before = []

    @contextlib.contextmanager
    def counted(run, prompts):
        with warm_up.compiling(run, prompts) as ready:
            yield lambda: (ready(), before.append(len(step._compilations)))

    train(set_up(config, 2), config, tmp_path / "run", counted)
    (row,) = metrics.read_metrics(tmp_path / "run")
    assert row["compile_count"] == before[0]
