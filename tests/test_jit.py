"""What the compiler is told, and only a CPU's is told it."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limr_jax import jit
from limr_jax.sharding import make_mesh


def test_options_that_this_compiler_has():
    level = {"xla_backend_optimization_level": 1}
    assert jit.known(**level, xla_no_such_option=True) == level


def told(platform, monkeypatch):
    """The compiler's options of a program for a mesh of this platform."""
    found = {}
    monkeypatch.setattr(jit, "known", lambda **options: options)
    monkeypatch.setattr(jit.jax, "jit", lambda f, **options: found.update(options))
    device = types.SimpleNamespace(platform=platform)
    mesh = types.SimpleNamespace(devices=np.array([device]))
    jit.jit(mesh, lambda: 0, donate_argnums=0)
    assert found.pop("donate_argnums") == 0
    return found


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_an_accelerators_compiler_is_told_to_round(platform, monkeypatch):
    assert told(platform, monkeypatch) == {"compiler_options": jit.EVERY}


def test_a_cpus_compiler_is_told(monkeypatch):
    assert told("cpu", monkeypatch) == {"compiler_options": jit.CPU}


def test_this_compiler_has_them_all():
    """A misspelt one would be left out, and nobody would notice."""
    # jax 0.12's has no other emitters any more.
    gone = ["xla_cpu_use_fusion_emitters"] * (jax.__version_info__ >= (0, 12))
    known = {name: x for name, x in jit.CPU.items() if name not in gone}
    assert jit.known(**jit.CPU) == known


def test_a_program_computes_what_it_does():
    x = np.linspace(-3, 3, 64, dtype=np.float32).reshape(8, 8)

    def f(x):
        return jnp.tanh(x) @ jax.nn.softmax(x)

    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    np.testing.assert_allclose(jit.jit(mesh, f)(x), f(x), rtol=0, atol=1e-6)
