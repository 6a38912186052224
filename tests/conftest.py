"""Eight virtual CPU devices, no silent rank promotion, and where the data lies."""

import os
import pathlib
import signal

# Before jax is imported: a lent machine's accelerator is not what these tests are of.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

from limr_jax import jit

# A shell starts a job in the background with SIGINT ignored, and what tests start would
# inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The longest first; tests/README.md says how to see which they are.
LONG = (
    "compilation/test_report.py",
    "multihost/test_kill.py",
    "multihost/test_processes.py",
    "test_train.py",
    "test_debug_nans.py",
    "test_devices.py",
    "test_real_input.py",
    "compilation/test_calls.py",
    "compilation/test_warm_up.py",
    "learner/test_jepo.py",
    "samplers/test_group_filter_run.py",
    "rewards/math/test_cases.py",
    "models/test_bf16.py",
    "learner/test_critic.py",
    "evaluation/test_likelihood.py",
    "launch/test_ablate.py",
    "learner/test_jepo_exact.py",
    "learner/test_update.py",
)


def pytest_configure(config):
    # Which puts files of many tests first: they are quick, and one of few long tests
    # would be the last, on one worker.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Files that take long begin first, so that workers end at about the same time."""
    place = {name: i for i, name in enumerate(LONG)}

    def of_file(item):
        name = item.path.relative_to(ROOT / "tests").as_posix()
        return place.get(name, len(LONG))

    items.sort(key=of_file)


@pytest.fixture(autouse=True)
def jax_variables():
    """What a launch script sets for JAX, called in this process, goes with its test."""
    before = {name: x for name, x in os.environ.items() if name.startswith("JAX_")}
    yield
    for name in [name for name in os.environ if name.startswith("JAX_")]:
        del os.environ[name]
    os.environ.update(before)


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
    options = dict(jit.CPU)
    jax.config.update("jax_disable_most_optimizations", True)
    jit.CPU["xla_backend_optimization_level"] = 0
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jit.CPU.update(options)
