"""300 steps of a real process need no more memory, files or room than 50 of them."""

import gzip
import json
import os
import statistics
import subprocess
import sys

import pytest
from tiny_run import ROOT, arguments, write_problems

from limr_jax.storage import metrics

STEPS = 300
WARM = range(46, 56)  # steps that later ones are compared with
REWARD = '''
"""What a random policy gets now and then; notes what the process has at each call."""

import json
import os


def chance(prompts, completions, **columns):
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    row = {
        "kib": int(fields["VmRSS"].split()[0]),
        "threads": int(fields["Threads"]),
        "files": len(os.listdir("/proc/self/fd")),
    }
    with open("flat.jsonl", "a") as file:
        file.write(json.dumps(row) + "\\n")
    return [sum(map(ord, c)) % 4 / 3 for c in completions]
'''
FIELDS = {
    "num_steps": STEPS,
    "model.layers": 1,
    "sampler.name": "lim",
    "reward": "flat_reward.chance",
    "rollout.max_response_length": 10,
    "rollout.slots": 3,
    "evaluation.every": 25,
    "checkpoint.every": 10,  # twice as often as by default
    "checkpoint.keep": 2,
    "dump.max_bytes": 40_000,
}


def folder_size(path) -> int:
    return sum(x.stat().st_size for x in path.rglob("*") if x.is_file())


@pytest.mark.soak
def test_three_hundred_steps_grow_nothing(tmp_path, capsys):
    write_problems(tmp_path / "train.jsonl", 40)
    write_problems(tmp_path / "eval.jsonl", 8, add=2)
    (tmp_path / "flat_reward.py").write_text(REWARD)
    data = {f"data.{x}": tmp_path / f"{x}.jsonl" for x in ("train", "eval")}
    run = tmp_path / "run"
    made = subprocess.run(
        [sys.executable, str(ROOT / "launch/tpu.py"), *arguments(FIELDS | data)]
        + ["--workdir", str(run)],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert made.returncode == 0, made.stderr
    rows = [json.loads(x) for x in (tmp_path / "flat.jsonl").read_text().splitlines()]
    # Evaluations call it too.
    calls = len(rows) / STEPS
    assert 1 <= calls < 1.5
    warm = rows[int(WARM.start * calls) : int(WARM.stop * calls)]
    last = rows[-len(warm) :]
    shown = []
    for name, grows in (("kib", 1.02), ("threads", 1), ("files", 1)):
        # The least of a while: a save under way has files and threads of its own.
        value = statistics.median if name == "kib" else min
        before, after = (value(row[name] for row in part) for part in (warm, last))
        shown.append(f"{name} {before:.0f} → {after:.0f}")
        assert after <= before * grows, shown
    counts = {row["compile_count"] for row in metrics.read_metrics(run)}
    assert len(counts) == 1
    # The workdir: checkpoints and rollouts are bounded, a line a step is not.
    sizes = {path.name: folder_size(path) for path in run.iterdir() if path.is_dir()}
    kept = sorted((run / "checkpoints").iterdir())
    assert len(kept) == 2
    segments = sorted((run / "rollouts").iterdir())
    assert sizes["rollouts"] <= 40_000 + max(x.stat().st_size for x in segments)
    with gzip.open(segments[-1], "rt") as file:
        assert json.loads(file.readlines()[-1])["step"] == STEPS
    lines = sizes["tensorboard"] + sum(
        (run / name).stat().st_size for name in (metrics.METRICS, metrics.EVALS)
    )
    assert lines < STEPS * 8_000
    extra = {path.name for path in run.iterdir()}
    assert extra == {
        ".lock",
        "checkpoints",
        "evals.jsonl",
        "metrics.jsonl",
        "result.json",
        "rollouts",
        "run.json",
        "tensorboard",
    }
    with capsys.disabled():
        print(f"\n{', '.join(shown)}; {sizes}, {lines // STEPS} bytes of lines a step")
