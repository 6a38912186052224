"""Slices by name, and what JAX takes where libtpu is there without a TPU."""

import itertools
import math
import os
import subprocess
import sys
import types

import pytest
from tiny_run import ROOT

from limr_jax import platform
from limr_jax.compilation import slices
from limr_jax.errors import InputError

DEVICES = """
import sys
from limr_jax.config import load
EARLY
def main(argv):
    import jax
    print(jax.devices()[0].platform)

load.run_main(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("early", ["", "import jax"])
def test_libtpu_without_a_tpu_is_left_in_peace(early):
    """Nothing on stderr, whether JAX was imported before or not."""
    pytest.importorskip("libtpu", reason="libtpu is not installed: '.[test]' brings it")
    if platform.attached() or os.path.exists("/dev/nvidia0"):
        pytest.skip("this machine has an accelerator, which is used")
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    ended = subprocess.run(
        [sys.executable, "-c", DEVICES.replace("EARLY", early)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("cpu\n", "", 0)


@pytest.mark.parametrize("there", ["tpu", "gpu", "asked", "no libtpu"])
def test_whoever_has_or_wants_an_accelerator_keeps_it(monkeypatch, there):
    asked = "tpu,cpu" if there == "asked" else ""
    monkeypatch.setenv("JAX_PLATFORMS", asked)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(platform, "attached", lambda: there == "tpu")
    monkeypatch.setattr(
        platform.os.path,
        "exists",
        lambda path: there == "gpu" and path == "/dev/nvidia0",
    )
    monkeypatch.setattr(
        platform.importlib.util, "find_spec", lambda name: there != "no libtpu" or None
    )
    platform.spare_libtpu()
    assert os.environ["JAX_PLATFORMS"] == asked


@pytest.mark.slow
@pytest.mark.parametrize("config", ["v4_32", "v6e_16"])
def test_a_report_without_libtpu_is_one_line(config, tmp_path):
    """Nothing is written."""
    hidden = "import sys; sys.modules['libtpu'] = None; sys.argv[0] = 'launch/tpu.py'"
    run = "import runpy; runpy.run_path('launch/tpu.py', run_name='__main__')"
    ended = subprocess.run(
        [sys.executable, "-c", f"{hidden}; sys.path.insert(0, '.'); {run}"]
        + ["--compile_only", "--config", f"configs/{config}.py"]
        + ["--workdir", str(tmp_path / "run")],
        cwd=ROOT,
        # JAX sets it where libtpu is installed.
        env={k: v for k, v in os.environ.items() if k != "TPU_LIBRARY_PATH"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2, ended.stderr
    assert "pip install -e '.[tpu]'" in ended.stderr
    assert ended.stderr.count("\n") == 1 and not ended.stdout
    assert not [*tmp_path.iterdir()]


def test_every_slice_has_a_chip_and_its_number_of_chips():
    for name, given in slices.SLICES.items():
        assert given.chip in slices.CHIPS
        # v4 and v5p count cores, two a chip.
        cores = 2 if given.chip in ("v4", "v5p") else 1
        count = math.prod(map(int, given.topology.split("x")))
        assert count * cores == int(name.rsplit("-", 1)[1])


def chips(kind, topology, count=None):
    """Devices of a slice, as JAX names and places them."""
    sides = [range(int(side)) for side in topology.split("x")]
    places = list(itertools.product(*sides))[:count]
    return [types.SimpleNamespace(device_kind=kind, coords=place) for place in places]


@pytest.mark.parametrize(
    "slice_type, kind, topology",
    [
        ("v4-32", "TPU v4", "2x2x4"),
        ("v4-32", "TPU v4", "4x2x2"),  # however it lies
        ("v5litepod-16", "TPU v5 lite", "4x4x1"),
        ("v5p-16", "TPU v5", "2x2x2"),
        ("v6e-4", "TPU v6 lite", "2x2x1"),
    ],
)
def test_the_devices_of_a_slice_are_its_type_s(slice_type, kind, topology):
    slices.refuse_other(slice_type, chips(kind, topology))


def test_one_chip_of_a_host_is_a_slice_of_one():
    second = types.SimpleNamespace(device_kind="TPU v5 lite", coords=(1, 0, 0))
    slices.refuse_other("v5litepod-1", [second])


@pytest.mark.parametrize(
    "slice_type, devices, said",
    [
        ("v4-32", chips("TPU v4", "2x2x4", 4), "16 v4 chips, but here are 4 devices"),
        (
            "v4-8",
            chips("TPU v5 lite", "2x2"),
            "4 v4 chips, but here are 4 devices, TPU",
        ),
        ("v4-8", chips("cpu", "2x2"), "4 v4 chips, but here are 4 devices, cpu"),
        (
            "v5litepod-16",
            chips("TPU v5 lite", "2x8"),
            "4x4 chips, but these lie as 2x8",
        ),
    ],
)
def test_other_devices_are_one_line(slice_type, devices, said):
    with pytest.raises(InputError, match=f"^slice.type={slice_type} is {said}[^\n]*$"):
        slices.refuse_other(slice_type, devices)
