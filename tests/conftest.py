"""Eight virtual CPU devices, no silent rank promotion, where the data lies; what saves
processor time: the order of the files, a compiler that takes little trouble, compiled
programs that are loaded again, a garbage collector that leaves alone what stays."""

import gc
import importlib.metadata
import itertools
import os
import pathlib
import signal

# Before jax is imported: a lent machine's accelerator is not what these tests are of.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from limr_jax import jit

# A shell starts a job in the background with SIGINT ignored, and what tests start would
# inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Most programs of tests are small and run once: with a run's options (jit.py) for those
# that have none the compiler needs less time. At level 0 numbers would be others, and
# some programs that are to agree to the last bit would not.
QUICK_FLAGS = [
    f"--{name}={value}".lower()
    for name, value in jit.CPU.items()
    if name not in jit.EVERY
]


def start_devices() -> None:
    """The compiler reads XLA_FLAGS with the first device, and never again.

    So they are gone before a test begins: a command that finds some asks another
    process whether the compiler knows them.
    """
    with pytest.MonkeyPatch.context() as patch:
        # A later jaxlib may not know them, and would end this process.
        if importlib.metadata.version("jaxlib").startswith("0.10."):
            flags = os.environ.get("XLA_FLAGS", "")
            patch.setenv("XLA_FLAGS", " ".join([*QUICK_FLAGS, flags]))
        jax.devices()


start_devices()
# After the devices: it imports what makes arrays.
import metric_table  # noqa: E402

metric_table.watch()

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The longest first; tests/README.md says how to see which they are.
LONG = (
    "compilation/test_report.py",
    "multihost/test_kill.py",
    "multihost/test_processes.py",
    "test_wheel.py",
    "launch/test_gpu_check.py",
    "test_train.py",
    "test_debug_nans.py",
    "test_devices.py",
    "test_real_input.py",
    "compilation/test_calls.py",
    "compilation/test_warm_up.py",
    "learner/test_jepo.py",
    "samplers/test_group_filter_run.py",
    "storage/test_checkpoint_record.py",
    "test_lora.py",
    "test_lora_algorithms.py",
    "samplers/test_allocation.py",
    "test_fork.py",
    "models/test_summed.py",
    "models/test_kernel_check.py",
    "rewards/math/test_cases.py",
    "models/test_bf16.py",
    "learner/test_critic.py",
    "evaluation/test_likelihood.py",
    "launch/test_ablate.py",
    "learner/test_jepo_exact.py",
    "learner/test_update.py",
    "rollout/test_generate.py",
    "rollout/test_drafts.py",
    "test_sft_lora.py",
    "test_howto.py",
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


def pytest_collection_finish():
    # Tracing makes a great many objects that live a while. By default the garbage
    # collector looks for cycles after every 700 of them.
    gc.set_threshold(100_000)
    leave_out_of_collections()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    if nextitem is not None and nextitem.path != item.path:
        leave_out_of_collections()


FILES_OF_A_LOOK = 20
_ended = itertools.count(1)  # files


def leave_out_of_collections() -> None:
    """What is imported, traced or compiled by now stays to the end of the tests.

    The garbage collector would look through all of it again and again. What an earlier
    file has left may have died since, with the programs that it holds: to look through
    that takes seconds, so it is done after every so many files.
    """
    if next(_ended) % FILES_OF_A_LOOK == 0:
        gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def compiled_before(tmp_path_factory):
    """What one test of this process has compiled, the next one loads.

    A folder for each worker: JAX writes without a lock, and half of a file would be a
    warning where it is read. Programs that compile in less than a tenth of a second
    are not worth a file.
    """
    if jax.config.jax_compilation_cache_dir is None:
        folder = str(tmp_path_factory.mktemp("compiled"))
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture
def compiled_anew():
    """For tests that ask compiled programs what they are: none is loaded."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX looks at the option once
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


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
