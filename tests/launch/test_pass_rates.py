"""The command line of launch/pass_rates.py; what it does is tested in tests/studies."""

import importlib.util
import pathlib

import pytest

from limr_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location(
    "launch_pass_rates", ROOT / "launch" / "pass_rates.py"
)
launch = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(launch)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--steps", "0,16"], "--steps=0,16 must be different steps"),
        (["--steps", "16,16"], "--steps=16,16 must be different steps"),
        (["--steps", "16,x"], "--steps=16,x must be different steps"),
        (["--samples", "1"], "--samples=1 must be 2 or more"),
        (["--out", "gs://bucket/a"], "--out"),
        ([], "is no finished run"),
    ],
)
def test_a_mistake_is_one_line(words, message, tmp_path):
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match=message) as error:
        launch.main([str(tmp_path / "run"), *out, *words])
    assert "\n" not in str(error.value)
