"""launch/scale.py: a point as a test has time for, and what several say together."""

import dataclasses
import json
import runpy

import pytest
from tiny_run import ROOT

from limr_jax import platform
from limr_jax.errors import InputError
from limr_jax.studies import plots

SCRIPT = runpy.run_path(str(ROOT / "launch/scale.py"))


@pytest.mark.slow
def test_a_point_is_the_steps_of_a_run(quick_compiler):
    fields = {"prompts_per_step": 8, "rollout.slots": 32}
    fields |= {"rollout.max_response_length": 8, "mesh.data": 4, "mesh.fsdp": 2}
    row = SCRIPT["measured"](SCRIPT["Point"]("problems", 40, fields, problems=40), 2)
    assert (row["rollouts"], row["problems"], row["devices"]) == (64, 40, 8)
    assert row["steps"] == 2 and row["compiles_while_timed"] == 0
    assert 64 <= row["tokens"] <= 64 * 8
    assert row["seconds_least"] <= row["seconds"]
    assert row["generate"] + row["update"] < row["seconds"] * 2
    sampler = row["sampler_seconds"]
    assert min(sampler.values()) > 0
    assert row["sampler_share"] == pytest.approx(
        (sampler["draw"] + sampler["update"]) / row["seconds"], rel=0.1
    )
    assert row["memory_mib"] > 100


def row(axis, value, seconds, flops, memory):
    return {
        "axis": axis, "value": value, "seconds": seconds, "flops": flops,
        "memory_mib": memory, "tokens": 10 * value, "generate": 0.1, "update": 0.2,
        "sampler_share": 0.004,
    }  # fmt: skip


def test_growth_by_hand(tmp_path):
    """Twice the work in three times the seconds: 1.50."""
    rows = [row("length", 64, 3.0, 2e9, 300), row("length", 32, 1.0, 1e9, 200)]
    axes = SCRIPT["by_axis"](rows + [row("devices", 1, 1.0, 1e9, 100)])
    assert list(axes) == ["length", "devices"]
    assert [r["value"] for r in axes["length"]] == [32, 64]
    last = axes["length"][1]
    assert (last["work"], last["growth"], last["memory_growth"]) == (2, 3, 1.5)
    lines = SCRIPT["table"](axes).splitlines()
    assert len(lines) == 5
    assert lines[3].split(" | ")[6:9] == ["2.0", "1.50", "300"]
    plots.save(plots.growth(axes), tmp_path / "scale.png")
    assert (tmp_path / "scale.png").stat().st_size > 1000


def test_points_that_are_there_are_not_made_again(tmp_path, monkeypatch, capsys):
    made = []

    def fake(point, steps):
        made.append((point.axis, point.value))
        return row(point.axis, point.value, 1.0, 1e9, 100)

    monkeypatch.setitem(SCRIPT["main"].__globals__, "in_a_process", fake)
    asked = ["--out", str(tmp_path / "out"), "--scale"]
    SCRIPT["main"]([*asked, "length"])
    SCRIPT["main"]([*asked, "length,devices"])
    assert made == [("length", n) for n in (32, 128, 512)] + [
        ("devices", n) for n in (1, 2, 4, 8)
    ]
    kept = (tmp_path / "out/points.jsonl").read_text().splitlines()
    assert [json.loads(line)["value"] for line in kept] == [32, 128, 512, 1, 2, 4, 8]
    assert (tmp_path / "out/scale.md").read_text() in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, said",
    [
        (
            ["--scale=width"],
            "--scale='width' is unknown; did you mean 'length'? (devices, length, "
            "problems, rollouts)",
        ),
        (["--steps=0"], "--steps=0 must be at least 1"),
    ],
)
def test_a_mistake_is_one_line(argv, said, tmp_path):
    with pytest.raises(InputError) as caught:
        SCRIPT["main"]([*argv, "--out", str(tmp_path / "out")])
    assert str(caught.value) == said
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_is_known_before_any_point(tmp_path):
    out = tmp_path / "file"
    out.write_text("")
    with pytest.raises(InputError) as caught:
        SCRIPT["main"](["--out", str(out)])
    assert str(caught.value) == (
        f"{out}/points.jsonl cannot be written: {out} is no folder; give another --out"
    )


@pytest.mark.slow
def test_a_point_that_fails_says_why(monkeypatch):
    point = SCRIPT["points"]()["length"][0]
    broken = dataclasses.replace(point, fields={"prompts_per_step": 0})
    with pytest.raises(
        InputError, match="length 32 failed: error: --config.prompts_per_step"
    ):
        SCRIPT["in_a_process"](broken, 1)


def test_a_point_has_the_users_environment(monkeypatch):
    """PYTHONPATH and XLA_FLAGS are added to, not replaced."""
    seen = []

    def start(command, *, env, **_):
        seen.append((env["PYTHONPATH"], env["XLA_FLAGS"]))
        raise InterruptedError

    monkeypatch.setattr(SCRIPT["subprocess"], "Popen", start)
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    with pytest.raises(InterruptedError):
        SCRIPT["in_a_process"](SCRIPT["points"]()["devices"][1], 1)
    assert seen == [
        (
            f"{platform.import_root()}:/mine",
            "--xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=2",
        )
    ]
