"""The plan for a slice: what is tried, what is kept, what is said. Its compiler is a
formula here; `-m soak` has libtpu's."""

import dataclasses
import json
import shutil
import types

import jax
import pytest
from tiny_run import ROOT

from limr_jax.compilation import compile, planner, report, slices
from limr_jax.compilation.compile import Compiled
from limr_jax.config.config_file import load
from limr_jax.errors import InputError
from limr_jax.models.from_config import DIMENSIONS

GIB = report.GIB
SLOT = 1 / 64  # GiB of a slot, all devices together
ROW = 0.25  # GiB of a row of a micro-batch, likewise
DEVICES = slices.devices("v5litepod-8")


def divide(config):
    """As `check_batch` refuses slots and micro-batches."""
    devices = config.mesh.data * config.mesh.fsdp
    if config.rollout.slots % devices or config.micro_batch_rows % devices:
        raise InputError(f"slots or rows do not divide over {devices} devices")


def compiled(name: str, gib: float, seconds: float, error: str = "") -> Compiled:
    return Compiled(
        name=name,
        phase="step",
        seconds=1.0,
        error=error,
        arguments=int(gib * GIB),
        output=0,
        temporaries=0,
        code=0,
        elsewhere=0,
        flops=0.0,
        hbm_bytes=seconds * slices.CHIPS["v5e"].hbm_bandwidth,
        collectives={"all-reduce": (1, 0.0)},
        kernels=[],
    )


@pytest.fixture
def config(tmp_path):
    config = load(str(ROOT / "configs/tiny.py"), "base")
    config = planner._with(
        config,
        {
            "num_steps": 50,
            "prompts_per_step": 64,
            "group_size": 8,
            "data.cache_dir": str(tmp_path / "cache"),
        },
    )
    return config


@pytest.fixture
def compiles(monkeypatch):
    """(name, fields of the config) of each compile; what it gives is by formulas."""
    done = []

    def plan(config):
        if config.mesh.tensor == 8:
            raise InputError("heads=4 do not divide over mesh.tensor=8")
        divide(config)
        programs = [
            types.SimpleNamespace(name=name, phase="step", config=config)
            for name in ("draw", "generate", "update")
        ]
        return types.SimpleNamespace(calls=programs)

    def compile_call(call):
        config, mesh = call.config, call.config.mesh
        done.append((call.name, config))
        by_rows = mesh.data * mesh.fsdp
        base = {"float32": 16, "int8": 4}[config.model.base_dtype] / mesh.tensor
        if call.name == "generate":
            slots = config.rollout.slots or 512
            waves = -(-512 // slots)
            gib = base + slots * SLOT / by_rows
            return compiled("generate", gib, waves * (1 + 3 / mesh.tensor))
        gib = 1 + config.micro_batch_rows * ROW / by_rows
        return compiled("update", gib, 10 + 64 / config.micro_batch_rows)

    monkeypatch.setattr(slices, "devices", lambda name: [None] * 8)
    monkeypatch.setattr(planner.calls, "plan", plan)
    monkeypatch.setattr(compile, "compile_call", compile_call)
    monkeypatch.setattr(report, "column_bytes", lambda planned: SLOT * GIB)
    monkeypatch.setattr(report, "slot_columns", lambda planned: 1)
    return done


def day(text="v5e-8, 9h"):
    return planner.parse_goal(text)


def test_the_best_of_every_mesh(config, compiles):
    config.rollout.slots, config.micro_batch_rows = 64, 16
    rows = planner.plan(config, day())
    best = rows[0]
    # 512 slots in one wave need 16/4 + 512/64/2 of 15.75 GiB.
    assert best.settings == {
        "slice.type": "v5litepod-8",
        "mesh.data": 1,
        "mesh.fsdp": 2,
        "mesh.tensor": 4,
        "rollout.slots": 512,
        "micro_batch_rows": 64,
    }
    assert (best.reason, best.otherwise) == ("", 0)
    assert best.gib == pytest.approx(9, abs=0.01)
    assert best.seconds == pytest.approx(1.75 + 10 + 1)
    assert best.steps == (int(9 * 3600 / 12.75), int(9 * 3600 / 12.75 / 3))
    # One device along tensor holds all 16 GiB of the base.
    reasons = {row.settings["mesh.tensor"]: row.reason for row in rows}
    assert "does not fit: generate; 16.1 of 15.75" in reasons[1]
    assert reasons[8] == "heads=4 do not divide over mesh.tensor=8"
    said = planner.text(rows, day(), config)
    assert "best: --config.slice.type=v5litepod-8 --config.mesh.data=1 " in said
    assert all(row.reason in said for row in rows)
    # Another slot number is another generation, and the same update.
    updates = [c for name, c in compiles if name == "update"]
    of = {(c.mesh.data, c.mesh.tensor, c.micro_batch_rows) for c in updates}
    assert len(of) == len(updates)


def test_more_slots_than_fit_are_lowered(config, compiles):
    config.rollout.slots = 512
    config.group_size, config.prompts_per_step = 8, 512  # 4,096 rollouts
    config.mesh.fsdp, config.mesh.tensor, config.mesh.data = 8, 1, 1
    config.model.base_dtype, config.model.lora.rank = "int8", 8
    fitting = [row for row in planner.plan(config, day()) if row.gib is not None]
    for settings in (row.settings for row in fitting):
        devices = settings["mesh.data"] * settings["mesh.fsdp"]
        base = 4 / settings["mesh.tensor"]
        assert settings["rollout.slots"] / devices * SLOT + base <= 15.75
    assert len(fitting) > 3


def test_slots_and_rows_that_a_mesh_does_not_divide_are_lowered(config, compiles):
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, 1, 8
    config.rollout.slots, config.micro_batch_rows = 122, 6
    rows = planner.plan(config, day())
    fitting = [row.settings for row in rows if row.gib is not None]
    assert {each["mesh.fsdp"] for each in fitting} == {2, 4, 8}
    for each in fitting:
        assert each["rollout.slots"] % each["mesh.fsdp"] == 0
        assert each["micro_batch_rows"] % each["mesh.fsdp"] == 0
    assert [row.reason for row in rows if row.gib is None] == [
        "heads=4 do not divide over mesh.tensor=8"
    ]


def test_the_settings_are_those_that_were_compiled(config, compiles, monkeypatch):
    # Nothing says how much too large it is, and nothing fits.
    formula = compile.compile_call

    def compile_call(call):
        said = formula(call)
        if call.name == "generate":
            said = dataclasses.replace(said, arguments=0, error="RESOURCE_EXHAUSTED")
        return said

    monkeypatch.setattr(compile, "compile_call", compile_call)
    config.prompts_per_step = 4096
    rows = planner.plan(config, day())
    done = {c.rollout.slots for name, c in compiles if name == "generate"}
    assert all(row.settings["rollout.slots"] in done for row in rows if row.gib)


def test_a_mesh_that_does_not_compile_is_a_row(config, compiles, monkeypatch):
    formula = compile.compile_call

    def compile_call(call):
        if call.config.mesh.tensor == 4:
            raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic\nfailed")
        return formula(call)

    monkeypatch.setattr(compile, "compile_call", compile_call)
    rows = planner.plan(config, day())
    assert not rows[0].reason
    reasons = {row.settings["mesh.tensor"]: row.reason for row in rows}
    assert reasons[4] == "does not compile: INTERNAL: Mosaic failed"


def test_another_slice_than_the_config_has_is_a_setting(config, compiles):
    best = planner.plan(config, day())[0]
    assert best.settings["slice.type"] == "v5litepod-8"
    config.slice.type = "v5litepod-8"
    assert "slice.type" not in planner.plan(config, day())[0].settings


def test_too_short_for_a_step(config, compiles):
    rows = planner.plan(config, day("v5e-8, 0.001h"))
    assert rows[0].reason == "too slow for 50 steps: none would end in time"


def test_a_judge_that_is_the_base_stays_it(config):
    """As int8, too: of other numbers it would be a copy beside the base."""
    checkpoint = ROOT / "limr_jax/assets/arithmetic"
    fields = {f"model.{name}": 0 for name in DIMENSIONS}
    fields |= {"model.lora.rank": 2, "model.init": str(checkpoint)}
    alone = {"model.base_dtype": "int8"}
    config = planner._with(config, fields)
    assert list(planner._otherwise(config, DEVICES))[1] == alone
    config.judge.init = str(checkpoint)
    both = alone | {"judge.dtype": "int8"}
    assert list(planner._otherwise(config, DEVICES))[1] == both


def test_adapters_that_are_there_keep_base_and_rank(config):
    config.model.lora.rank, config.model.lora.init = 64, "there"
    config.rollout.max_response_length = 1024
    changes = {name for x in planner._otherwise(config, DEVICES) for name in x}
    assert changes == {"rollout.max_response_length"}


def test_a_lower_rank_keeps_the_scale(config):
    config.model.lora.rank, config.model.lora.alpha = 64, 128.0
    last = list(planner._otherwise(config, DEVICES))[-1]
    assert (last["model.lora.rank"], last["model.lora.alpha"]) == (16, 32.0)
    config.model.lora.scaling = "rs"
    assert list(planner._otherwise(config, DEVICES))[-1]["model.lora.alpha"] == 64.0
    config.model.lora.rank, config.optimizer.learning_rate = 0, 1e-6
    last = list(planner._otherwise(config, DEVICES))[-1]
    assert str(last["optimizer.learning_rate"]) == "1e-05"


def test_rows_of_an_allocation_are_counted(config):
    config.allocation.name, config.allocation.most = "knapsack", 24
    assert planner._micro_batches(config, 8)[-1] == 64 * 24


def test_a_cache_that_cannot_be_written_costs_no_plan(config, compiles, tmp_path):
    rows = planner.plan(config, day())
    (tmp_path / "file").write_text("")
    config.data.cache_dir = str(tmp_path / "file")
    said = []
    assert planner.plan(config, day(), say=said.append) == rows
    assert sum("is not kept: " in line for line in said) == 1


def test_another_compiler_compiles_again(config, compiles, monkeypatch):
    planner.plan(config, day())
    count = len(compiles)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=65536")
    planner.plan(config, day())
    assert len(compiles) == 2 * count
    monkeypatch.setattr(planner.importlib.metadata, "version", lambda name: "9.9")
    planner.plan(config, day())
    assert len(compiles) == 3 * count


def test_another_checkpoint_in_the_same_place_compiles_again(
    config, compiles, tmp_path
):
    place = tmp_path / "model"
    shutil.copytree(ROOT / "limr_jax/assets/arithmetic", place)
    config.model.init = str(place)
    planner.plan(config, day())
    count = len(compiles)
    other = json.loads((place / "config.json").read_text())
    other["rope_theta"] = 12345.0
    (place / "config.json").write_text(json.dumps(other))
    planner.plan(config, day())
    assert len(compiles) == 2 * count


def test_what_a_plan_leaves_out_is_said(config, compiles):
    rows = planner.plan(config, day())
    assert "nor counted here: evaluation; " in planner.text(rows, day(), config)
    config.data.eval = ""
    assert "nor counted here" not in planner.text(rows, day(), config)
    config.filter.groups = "mixed"
    assert "here: a step's generations after the first; " in planner.text(
        rows, day(), config
    )


def test_a_mesh_of_no_devices_is_one_line(config, compiles):
    config.mesh.data, config.mesh.fsdp = 0, -1
    assert not planner.plan(config, day())[0].reason  # other meshes are there


def test_twice_the_same_compiles_once(config, compiles):
    rows = planner.plan(config, day())
    count = len(compiles)
    assert planner.plan(config, day()) == rows and len(compiles) == count
    # Neither the time nor the steps change a program.
    config.num_steps, config.seed = 7, 3
    planner.plan(config, day("v5litepod-8,30m"))
    assert len(compiles) == count
    config.rollout.temperature = 0.7
    planner.plan(config, day())
    assert len(compiles) > count


def test_a_damaged_record_is_compiled_again(config, compiles, tmp_path):
    rows = planner.plan(config, day())
    count = len(compiles)
    for path in (tmp_path / "cache/compiled").iterdir():
        path.write_text(path.read_text()[:40])
    assert planner.plan(config, day()) == rows and len(compiles) == 2 * count


def test_what_learns_otherwise_only_where_nothing_else_does(config, compiles):
    config.num_steps = 5000
    rows = planner.plan(config, day())
    assert rows[0].reason.startswith("too slow for 5,000 steps: --config.num_steps=")
    changed = [row for row in rows if row.otherwise]
    # Adapters beside an int8 base, then shorter responses.
    assert changed[0].settings["model.base_dtype"] == "int8"
    assert changed[0].settings["model.lora.rank"] == 32
    assert {row.settings.get("rollout.max_response_length") for row in changed} >= {
        config.rollout.max_response_length // 2
    } or config.rollout.max_response_length < 256
    assert "nothing ends in time; the nearest: " in planner.text(rows, day(), config)


def test_no_time_left(config, compiles):
    with pytest.raises(InputError, match="not compiled: .* the same command goes on"):
        planner.plan(config, day(), minutes=-1)
    assert not compiles
    planner.plan(config, day())
    count = len(compiles)
    rows = planner.plan(config, day(), minutes=-1)  # all is kept
    assert not rows[0].reason and len(compiles) == count


def test_what_was_found_before_the_time_was_over_is_kept(config, compiles, monkeypatch):
    # The config's own fits and is grown; the third generation would be the best.
    config.rollout.slots, config.micro_batch_rows = 64, 16
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, 2, 4
    config.prompts_per_step = 4096
    formula, clock, said = compile.compile_call, [0.0], []
    monkeypatch.setattr(planner.time, "monotonic", lambda: clock[0])

    def compile_call(call):
        if call.config.micro_batch_rows > 16 and call.name == "update":
            clock[0] = 1e6
        return formula(call)

    monkeypatch.setattr(compile, "compile_call", compile_call)
    rows = planner.plan(config, day("v5e-8, 900h"), say=said.append)
    assert rows[0].settings["micro_batch_rows"] > 16
    assert sum(line.startswith("not compiled: ") for line in said) == 1


def test_a_wrong_config_is_one_line(config, compiles, monkeypatch):
    def wrong(config):
        raise InputError("slice.problems=0 and so on")

    monkeypatch.setattr(planner.calls, "plan", wrong)
    with pytest.raises(InputError, match="slice.problems=0"):
        planner.plan(config, day())


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(1344.4, "1,344"), (12.75, "13"), (5.26, "5.3"), (0.04, "0.04")],
)
def test_seconds_of_a_step_are_never_shown_as_none(seconds, shown):
    row = planner.Row({}, 0, "", gib=1.0, seconds=seconds, steps=(9, 3))
    config = load(str(ROOT / "configs/tiny.py"), "base")
    line = planner.text([row], day(), config).splitlines()[3]
    assert line.split()[1] == shown


def test_as_json(config, compiles):
    rows = planner.plan(config, day())
    made = planner.as_json(rows, day())
    assert made["slice"] == "v5litepod-8" and made["seconds"] == 32400
    assert made["rows"][0] == dataclasses.asdict(rows[0])


@pytest.mark.parametrize(
    ("text", "slice_type", "seconds"),
    [
        ("v5e-8, 9h", "v5litepod-8", 9 * 3600),
        ("v4-32,1.5h", "v4-32", 5400),
        ("v5litepod-1, 90m", "v5litepod-1", 5400),
    ],
)
def test_goals(text, slice_type, seconds):
    assert planner.parse_goal(text) == planner.Goal(slice_type, seconds)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("v5e-8", "is not a slice and a time above 0, of at most 100,000 hours"),
        (f"v5e-8, {'9' * 306}h", "is not a slice and a time above 0"),
        ("v5e-8, 0h", "is not a slice and a time above 0"),
        (f"v5e-8, {'9' * 400}h", "is not a slice and a time above 0"),
        ("v5e-8, 9 days", "is not a slice and a time above 0"),
        ("v5e-8, 9h, 2", "is not a slice and a time above 0"),
        ("v5e-7, 9h", "'v5e-7' is not among the slices: v4-8, "),
        (", 9h", "'' is not among the slices"),
    ],
)
def test_other_goals_are_one_line(text, line):
    with pytest.raises(InputError) as caught:
        planner.parse_goal(text)
    assert line in str(caught.value) and "\n" not in str(caught.value)
