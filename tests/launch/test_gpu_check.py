"""launch/gpu_check.sh without a GPU: every part with tiny sizes, and what can fail."""

import json
import os
import runpy
import subprocess
import sys
import time
import types

import pytest
from tiny_run import ROOT

from limr_jax.errors import InputError
from limr_jax.models.config import ModelConfig

CHECK = types.SimpleNamespace(**runpy.run_path(str(ROOT / "launch/gpu_check.py")))
PARTS = types.SimpleNamespace(**runpy.run_path(str(ROOT / "launch/gpu_parts.py")))


def shell(*arguments, **environment):
    return subprocess.run(
        ["bash", ROOT / "launch/gpu_check.sh", *map(str, arguments)],
        env=os.environ | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "wanted",
    [
        # A dry run's two steps are of one size.
        pytest.param(tuple(name for name in CHECK.LIMITS if name != "1.5b"), id="most"),
        pytest.param(tuple(CHECK.LIMITS), id="all", marks=pytest.mark.soak),
    ],
)
def test_a_dry_run_of_every_part(tmp_path, wanted):
    out, steps = tmp_path / "out", set(CHECK.STEPS) & set(wanted)
    assert set(CHECK.LIMITS) == set(PARTS.PARTS)
    parts = ",".join(wanted)
    flags = ["--dry_run", "--out", out, "--limit", "1700", "--parts", parts]
    ended = shell(*flags, JAX_PLATFORMS="cpu")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    whole = json.loads((out / "gpu_check.json").read_text())
    parts = whole["parts"]
    assert set(parts) == set(wanted)
    states = {name: part["state"] for name, part in parts.items()}
    # torch is an extra of the tests.
    assert states.pop("transformers") in ("ran", "skipped")
    assert set(states.values()) == {"ran"}
    assert parts["main_job"]["rows"][-1]["steps"] == 2
    assert parts["attention"]["rows"][-1]["failed"] == 0
    assert parts["attention"]["rows"][-1]["passed"] >= 1
    size = PARTS.TINY
    rows = parts["drafts"]["rows"]
    assert [row["rollouts"] for row in rows] == [size.group, 8 * size.group]
    for row in rows:
        kinds = ("without", "right", "wrong")
        without, right, wrong = (row[x]["decode_steps"] for x in kinds)
        assert right < without and wrong <= without
        assert [row[x]["differing_responses"] for x in kinds] == [0, 0, 0]
        assert row["right"]["tokens"] == row["without"]["tokens"] > row["rollouts"]
    rollouts = size.prompts * size.group
    for name in steps:
        fixed, ragged = parts[name]["rows"]
        assert (fixed["variant"], ragged["variant"]) == ("fixed", "ragged")
        # No response ends before the limit, then most do, by the same programs.
        assert fixed["tokens"]["min"] == rollouts * size.response_length
        assert rollouts < ragged["tokens"]["median"] < 0.9 * fixed["tokens"]["min"]
        assert fixed["compiles_while_timed"] == ragged["compiles_while_timed"] == 0
        assert ragged["first_step_s"] < fixed["first_step_s"]
        assert 0 <= ragged["drift"]["median"] <= ragged["drift_max"]["median"] < 0.1
    # The table has every figure, and no aim is reached by tiny sizes.
    figures = {(row["part"], row["figure"]) for row in whole["table"]}
    for name in steps:
        assert (f"{name} fixed", "update MFU") in figures
        assert (f"{name} ragged", "generate / bandwidth") in figures
    assert ("drafts, 4 responses", "generation, right drafts / none") in figures
    assert {row["reached"] for row in whole["table"]} == {None}
    table = (out / "gpu_check.md").read_text()
    assert table in ended.stdout
    assert "A dry run" in table
    # What may come back from a lent machine.
    assert len(list(out.iterdir())) <= 8


def test_a_package_that_is_not_there_is_named(tmp_path):
    # A Python that finds nothing but its own library.
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    ended = shell("--dry_run", PYTHON=str(bare))
    assert ended.returncode == 2
    # Where this checkout has wheels, pip has spoken before.
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"error: {bare} lacks jax, flax, optax, ")
    assert last.endswith("carry their wheels in .whl/ (launch/GPU.md)")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--limit", "0"], "--limit=0.0 must be above 0 seconds"),
        (["--size", "7b"], "unknown argument '--size'; see --help"),
        (
            ["--parts", "peaks,2b"],
            "--parts='2b' is unknown; did you mean '1.5b'? (0.5b, 1.5b, attention, "
            "drafts, main_job, peaks, transformers)",
        ),
        (
            ["--config.rollout.slotz=256"],
            "--config.rollout.slotz=256: no field 'rollout.slotz'; the nearest is "
            "rollout.slots",
        ),
    ],
)
def test_a_mistake_is_one_line(tmp_path, arguments, said):
    with pytest.raises(InputError) as caught:
        CHECK.main(["--out", str(tmp_path / "new"), *arguments])
    assert str(caught.value) == said
    assert not [*tmp_path.iterdir()]


PART = """
import json, sys, time
name = sys.argv[1]
if name == "peaks":
    print(json.dumps({"platform": "gpu", "device": "a GPU", "jax": "1", "python": "3",
                      "bytes_per_second": 2e12, "flops_per_second": 5e14}))
elif name == "0.5b":
    print("no JSON")
    sys.exit("error: out of memory | again")
elif name == "main_job":
    print(json.dumps({"eval_accuracy_before": 0.23, "eval_accuracy_after": 0.5}))
elif name == "attention":
    print(json.dumps({"passed": 3, "failed": 1, "skipped": 0, "failures": ["a::b"]}))
    time.sleep(600)
elif name == "transformers":
    print(json.dumps({"absent": "no torch here"}))
"""


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """PART in the place of launch/gpu_parts.py; `attention` is late after 3 s."""
    (tmp_path / "gpu_parts.py").write_text(PART)
    names = CHECK.main.__globals__
    monkeypatch.setitem(names, "LAUNCH", tmp_path)
    monkeypatch.setitem(names, "LEAST", 1)
    monkeypatch.setitem(names, "LIMITS", names["LIMITS"] | {"attention": 3})
    return tmp_path / "out"


def test_what_fails_or_is_late_is_named_and_the_rest_goes_on(parts, capsys):
    wanted = "peaks,0.5b,main_job,attention,transformers"
    begun = time.monotonic()
    assert CHECK.main(["--out", str(parts), "--parts", wanted]) == 1
    assert time.monotonic() - begun < 60
    whole = json.loads((parts / "gpu_check.json").read_text())
    assert {name: part["state"] for name, part in whole["parts"].items()} == {
        "peaks": "ran",
        "0.5b": "failed (1): error: out of memory | again",
        "main_job": "ran",
        "attention": "late: stopped after 3 s",
        "transformers": "skipped",
    }
    # What it gave before it was stopped counts.
    assert [row for row in whole["table"] if row["part"] == "attention"] == [
        {
            "part": "attention",
            "figure": "tests",
            "got": "3 passed, 1 failed, 0 skipped",
            "aim": "none failed",
            "reached": False,
        },
        {
            "part": "attention",
            "figure": "failed",
            "got": "a::b",
            "aim": "",
            "reached": None,
        },
    ]
    out, err = capsys.readouterr()
    assert "| 0.5b | failed (1): error: out of memory / again |" in out
    assert "| transformers | skipped: no torch here |" in out
    assert "on a CPU 67.0 | 50.0 | within 6.0 points | no |" in out
    # Also where a log does not come back.
    assert "no JSON" in err and "out of memory" in err
    assert "no JSON" in (parts / "0.5b.log").read_text()


def test_parts_that_the_time_is_too_short_for(parts, monkeypatch):
    monkeypatch.setitem(CHECK.main.__globals__, "LEAST", 1000)
    assert CHECK.main(["--out", str(parts), "--parts", "peaks"]) == 1
    whole = json.loads((parts / "gpu_check.json").read_text())
    assert whole["parts"]["peaks"]["state"] == "not run: time was up"


def test_without_a_gpu_nothing_large_begins(parts, monkeypatch):
    path = parts.parent / "gpu_parts.py"
    path.write_text(PART.replace('"platform": "gpu"', '"platform": "cpu"'))
    with pytest.raises(InputError, match="JAX finds no GPU here, but a GPU: see"):
        CHECK.main(["--out", str(parts)])
    whole = json.loads((parts / "gpu_check.json").read_text())
    assert set(whole["parts"]) == {"peaks"}


def row_of(variant):
    """What a step gives, in numbers that are easy to divide."""
    names = ("step_s", "generate_s", "update_s", "gen_tok_per_s", "update_tok_per_s")
    figures = {name: {"median": 2.0, "n": 1} for name in (*names, "drift", "drift_max")}
    return figures | {
        "variant": variant,
        "decode_bytes": 3e12,
        "update_flops": 4e14,
        "peak_device_gib": 1.0,
        "first_step_s": 1.0,
    }


def test_shares_by_hand():
    peak = {"device": "a GPU", "jax": "1", "python": "3"}
    peak |= {"bytes_per_second": 2e12, "flops_per_second": 5e14}
    peer = {"size": "1.5b", "variant": "fixed", "tokens_per_second": 4.0, "columns": 9}
    rows = {"peaks": [peak], "1.5b": [row_of("fixed")], "transformers": [peer]}
    results = {name: {"rows": each} for name, each in rows.items()}
    table = {
        row["figure"]: (row["got"], row["reached"])
        for row in CHECK.figures(results, dry_run=False)
        if row["part"] == "1.5b fixed"
    }
    # 3 TB at 2 TB/s are 1.5 of 2 s; 400 TFLOP at 500 TFLOP/s 0.8 of 2 s.
    assert table["generate / bandwidth"] == ("0.750", True)
    assert table["update MFU"] == ("0.400", False)
    assert table["generate / transformers' (9 columns)"] == ("0.50", False)


def test_what_a_step_cannot_spare_by_hand():
    """One layer, 2 prompts of 3 tokens, 2 responses each of 4."""
    model = ModelConfig(
        vocab_size=10, width=4, layers=1, heads=2, kv_heads=1, head_dim=2, mlp_width=8
    )
    params = types.SimpleNamespace(size=100)
    state = types.SimpleNamespace(train=types.SimpleNamespace(params=[params]))
    run = types.SimpleNamespace(
        compute=types.SimpleNamespace(model=model),
        programs=types.SimpleNamespace(state=state),
    )
    size = PARTS.Size({}, prompts=2, group=2, prompt_length=3, response_length=4)
    figures = {"tokens": {"median": 16.0}}
    fixed = PARTS.needs(run, size, figures, "fixed")
    # 3 decode steps read 100 weights of 2 bytes. A token's keys and values are 8 bytes;
    # 4 rows read 3 + 2 of them in the mean, in each step.
    assert fixed["decode_bytes"] == 3 * 200 + 8 * 12 * 5
    # 60 parameters in the layer, over 4 · 3 + 16 columns; the head of 40 at 16. Queries
    # of prompts see 1.5 columns in the mean, the others 5; each takes 2 · 2 · 4 FLOPs.
    forward = 2 * 60 * 28 + 2 * 40 * 16 + 4 * 4 * (12 * 1.5 + 16 * 5)
    assert fixed["update_flops"] == 3 * forward
    ragged = PARTS.needs(run, size, figures, "ragged")
    assert ragged["decode_bytes"] == fixed["decode_bytes"]
    less = 2 * 60 * 6 + 4 * 4 * 6 * 1.5
    assert ragged["update_flops"] == 3 * (forward - less)


@pytest.mark.parametrize("name", CHECK.STEPS)
def test_real_sizes_are_a_config(name, tmp_path, monkeypatch):
    """The steps that no test runs: their config loads, their rows are no others'."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    bench = types.SimpleNamespace(**runpy.run_path(str(ROOT / "launch/bench.py")))
    size = PARTS.SIZES[name]
    vocabulary = PARTS._dimensions(size).vocab_size
    load = PARTS.workload(name, size, vocabulary)
    flags = [f"--config.{field}={value}" for field, value in size.fields.items()]
    flags += ["--config.model.init=random"]
    options, flags = bench._parse(["--workload", name, *flags])
    config = bench._config(PARTS._benchlib(0.0), load, options, 1, flags)
    assert config.model.preset == f"qwen2.5-{name}"
    assert (config.prompts_per_step, config.group_size) == (64, 8)
    assert config.rollout.max_prompt_length == 256
    assert config.rollout.max_response_length == 1024
    assert config.model.dtype == "bfloat16"
    # One in 512 tokens ends a response.
    assert len(load["model"]["eos_token_id"]) == round(vocabulary / 512)
    assert 512 % config.micro_batch_rows == 0
