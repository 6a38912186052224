"""Eight virtual CPU devices, no silent rank promotion, and where the data lies."""

import os
import pathlib
import signal

# Before jax is imported: a lent machine's accelerator is not what these tests are of.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

from limr_jax import compiling

# A shell starts a job in the background with SIGINT ignored, and what tests start would
# inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real data beside the checkout; skip where it is absent."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"needs real data in {path}, which is not on this machine")
    return path


@pytest.fixture(scope="module")
def quick_compiler():
    """For tests of which the compiler's time is the most."""
    before = jax.config.read("jax_disable_most_optimizations")
    options = dict(compiling.CPU)
    jax.config.update("jax_disable_most_optimizations", True)
    compiling.CPU["xla_backend_optimization_level"] = 0
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    compiling.CPU.update(options)
