"""No script replaces a file of the run that it reads."""

import runpy

import pytest
from tiny_run import ROOT

from limr_jax.errors import InputError
from limr_jax.studies import run_files

# Script → its arguments, but for --out.
SCRIPTS = {
    "lim": ["score", "--run", "run"],
    "texts": ["right", "run"],
    "report": ["run"],
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("out", "name"),
    [
        ("run/metrics.jsonl", "metrics.jsonl"),
        ("link.jsonl", "metrics.jsonl"),
        ("run/rollouts/00000001.jsonl.gz", "rollouts"),
    ],
)
def test_refused_before_anything_is_read(tmp_path, monkeypatch, script, out, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run/rollouts").mkdir(parents=True)
    (tmp_path / "run/metrics.jsonl").write_text("kept")
    (tmp_path / "link.jsonl").symlink_to("run/metrics.jsonl")
    main = runpy.run_path(str(ROOT / f"launch/{script}.py"))["main"]
    with pytest.raises(InputError) as caught:
        main([*SCRIPTS[script], "--out", out])
    assert str(caught.value) == (
        f"--out {out} is of the run run itself ({name}); give another file"
    )
    assert (tmp_path / "run/metrics.jsonl").read_text() == "kept"


def test_a_new_file_beside_them_is_none(tmp_path):
    run_files.refuse(tmp_path / "run/scores.jsonl", tmp_path / "run")
    run_files.refuse(tmp_path / "run.json", tmp_path / "run")
    run_files.refuse("metrics.jsonl", "gs://bucket/run")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_circle_of_links_is_no_file(tmp_path, monkeypatch, script):
    """Before Python 3.13 pathlib's `resolve` raises RuntimeError for one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to("run")
    main = runpy.run_path(str(ROOT / f"launch/{script}.py"))["main"]
    with pytest.raises(InputError):
        main([*SCRIPTS[script], "--out", "out.jsonl"])
