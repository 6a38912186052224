"""Programs are compiled in threads before the first step, and once."""

import logging
import re
import types

import jax
import jax.numpy as jnp
import pytest
from tiny_run import configure, set_up, told, write_problems

from limr_jax import ahead, aot, metrics
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


def test_a_step_compiles_nothing_that_was_compiled_ahead(
    made, tmp_path, caplog, log_compiles
):
    jax.clear_caches()
    run, config = made
    with caplog.at_level(logging.WARNING):
        train(run, config, tmp_path / "ahead", ahead.compiling)
    finished = re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)
    for name in ("draw", "generate", "verify", "observe", "reference", "update"):
        assert finished.count(name) == 1, name
    first, second = (
        row["compile_count"] for row in metrics.read_metrics(tmp_path / "ahead")
    )
    assert first == second
    jax.clear_caches()
    train(run, config, tmp_path / "plain")
    assert told(tmp_path / "ahead") == told(tmp_path / "plain")


def test_what_does_not_compile_is_raised_by_whoever_waits(made, monkeypatch):
    run, config = made

    def fails(x):
        raise RuntimeError("no room on the chip")

    calls = [
        types.SimpleNamespace(
            name=name, mesh=run.mesh, program=jax.jit(program), args=(jnp.ones(3),)
        )
        for name, program in (("draw", jnp.sin), ("update", fails))
    ]
    monkeypatch.setattr(aot, "step_calls", lambda *_: calls)
    no_room = pytest.raises(RuntimeError, match="no room on the chip")
    with no_room, ahead.compiling(run, config, None) as ready:
        ready()
