"""launch/tpu.py --first_contact, with tiny dimensions on a CPU's devices."""

import dataclasses
import json
import runpy
import types

import jax
import pytest
from tiny_run import ROOT, arguments, configure, one_device, write_problems

from limr_jax.compilation import compile, first_contact, peaks
from limr_jax.compilation.compile import Compiled
from limr_jax.errors import InputError
from limr_jax.models.attention import kernel_check, ragged_decode
from limr_jax.multihost import processes
from limr_jax.sharding import make_mesh

TPU = types.SimpleNamespace(**runpy.run_path(str(ROOT / "launch/tpu.py")))
# Neither the problems nor the tokenizer are on this machine.
ABSENT = {
    "data.train": "absent.jsonl",
    "tokenizer": "absent",
    "model.vocab_size": 64,
    "rollout.max_response_length": 8,
}


@pytest.fixture(autouse=True)
def quick(monkeypatch, quick_compiler):
    monkeypatch.setattr(peaks, "ROUNDS", 1)
    monkeypatch.setattr(peaks, "CALLS", 1)


def test_each_program_stands_beside_its_bound(tmp_path, capsys):
    """On one device; the JSON says what the text says, and more."""
    with one_device(first_contact):
        fields = arguments(ABSENT)
        workdir = tmp_path / "run"
        code = TPU.main([*fields, "--first_contact", "--workdir", str(workdir)])
    assert code == 0
    said = capsys.readouterr().out
    path = tmp_path / "run.first_contact.json"
    assert said.endswith(
        f"all of it lies in {path}: please send it back (launch/CHIPS.md)\n"
    )
    assert [*tmp_path.iterdir()] == [path]  # the workdir is not begun
    found = json.loads(path.read_text())
    assert found["bound_by"] == "measured peaks" and found["kernels"] == []
    assert found["devices"]["count"] == 1 and found["devices"]["kind"] == "cpu"
    assert found["peaks"]["collectives"] == {}
    rates = found["peaks"]["devices"][0]
    assert rates["bytes_per_second"] > 1e6 and rates["flops_per_second"] > 1e6
    rows = {row["name"]: row for row in found["steps"]["programs"]}
    assert set(rows) == {"init", "draw", "generate", "grade", "observe", "update"}
    for name in ("generate", "update"):
        row = rows[name]
        assert 0 < row["predicted_seconds"] == max(row["bound_seconds"].values())
        assert 0 < row["measured_seconds"] < row["first_seconds"]  # which compiled it
        share = row["predicted_seconds"] / row["measured_seconds"]
        assert row["share_of_bound"] == pytest.approx(share)
        line = next(x for x in said.splitlines() if x.startswith(f"{name} "))
        assert line.split()[1] == f"{row['predicted_seconds']:.4f}"
        assert line.split()[2] == f"{row['measured_seconds']:.4f}"
    assert rows["init"]["measured_seconds"] is None
    assert found["config"]["rollout"]["max_response_length"] == 8


@pytest.mark.slow
def test_with_everything_that_a_step_may_have(tmp_path, monkeypatch):
    """A reference, a critic, groups that are filtered, hosts' grades; eight devices."""
    monkeypatch.setattr(ragged_decode, "INTERPRET", True)
    monkeypatch.setattr(ragged_decode, "BLOCKS", (4,))
    config = configure(
        write_problems(tmp_path / "train.jsonl", 8),
        algorithm="ppo",
        critic__learning_rate=0.01,
        kl__coefficient=0.1,
        filter__groups="mixed",
        reward="math",
        mesh__fsdp=2,
        mesh__tensor=2,
        rollout__max_response_length=8,
        prompts_per_step=8,
        rollout__slots=8,
        micro_batch_rows=4,
    )
    said = []
    found = first_contact.run(config, said.append)
    names = {row["name"] for row in found["steps"]["programs"]}
    assert {"copy", "reference", "values", "collect"} <= names
    measured = [
        row for row in found["steps"]["programs"] if row["name"] not in ("copy", "init")
    ]
    assert all(row["measured_seconds"] > 0 for row in measured)
    assert found["steps"]["prompts"] == 4  # as many as fill the slots once
    assert set(found["peaks"]["collectives"]) == {"data", "fsdp", "tensor"}
    kinds = {kind for each in found["peaks"]["collectives"].values() for kind in each}
    assert kinds == {"all-gather", "reduce-scatter"}
    (kernel,) = found["kernels"]
    assert kernel["kernel"] == "ragged" and not kernel["fault"]
    assert any("kernel ragged" in text and "taken" in text for text in said)
    assert json.dumps(found)


def test_a_kernel_that_fails_is_told_and_ends_nothing(tmp_path, monkeypatch):
    """Even where the config demands it: this is to find out."""
    monkeypatch.setattr(ragged_decode, "INTERPRET", True)
    monkeypatch.setattr(ragged_decode, "BLOCKS", (4,))

    def raises(*_, **__):
        raise NotImplementedError("no such layout")

    monkeypatch.setattr(kernel_check, "compiled", raises)
    config = configure(
        tmp_path / "x.jsonl", model__attention="ragged", rollout__max_response_length=8
    )
    steps = {
        "error": None,
        "rollouts": 1,
        "response_length": 1,
        "prompt_length": 1,
        "programs": [],
    }
    steps["most_in_hbm"] = {"program": "", "foreseen_gib": 0.0, "seen_gib": None}
    refused = []

    def no_steps(config, mesh, model, **_):
        refused.append(model.refused_kernels)
        return steps

    monkeypatch.setattr(first_contact, "_steps", no_steps)
    with one_device(first_contact):
        found = first_contact.run(config, lambda text: None)
    assert found["kernels"][0]["fault"].startswith("it does not compile")
    assert refused == [("ragged",)]


@pytest.mark.parametrize("when", ["compiling", "running"])
def test_a_step_that_fails_is_told_and_the_rest_is_kept(
    tmp_path, monkeypatch, capsys, when
):
    fits = Compiled(
        **dict.fromkeys(("arguments", "output", "temporaries", "code"), 1),
        **dict.fromkeys(("elsewhere", "flops", "hbm_bytes", "seconds"), 1),
        **{"name": "update", "phase": "step", "error": "", "kernels": []},
        collectives={},
    )
    unfit = dataclasses.replace(fits, error="RESOURCE_EXHAUSTED: HBM")

    def fails(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of\nmemory")

    monkeypatch.setattr(first_contact, "_run_steps", fails)
    compiled = [unfit if when == "compiling" else fits]
    monkeypatch.setattr(compile, "compile_all", lambda plan, tell: compiled)
    with one_device(first_contact):
        workdir = tmp_path / "run"
        code = TPU.main(
            [*arguments(ABSENT), "--first_contact", "--workdir", str(workdir)]
        )
    assert code == 1
    error = {
        "compiling": "update does not fit: RESOURCE_EXHAUSTED: HBM",
        "running": "RESOURCE_EXHAUSTED: out of memory",
    }[when]
    assert f"\nthe steps failed: {error}\n" in capsys.readouterr().out
    found = json.loads((tmp_path / "run.first_contact.json").read_text())
    assert found["steps"]["error"] == error
    assert found["steps"]["programs"][0]["measured_seconds"] is None
    assert found["peaks"]["devices"]


@pytest.mark.parametrize(
    "fields, said",
    [
        (
            {"slice.type": "v4-8"},
            "slice.type=v4-8 is 4 v4 chips, but here are 8 devices, cpu: ",
        ),
        (
            {"mesh.fsdp": 3, "mesh.data": 1},
            "mesh data=1 x fsdp=3 x tensor=1 does not make the 8 devices there are; ",
        ),
        (
            {"tokenizer": "absent", "model.init": "absent"},
            "model.init=absent is not on this machine; give model.preset ",
        ),
    ],
)
def test_a_mistake_is_one_line(tmp_path, fields, said):
    own = {"model.width": 0, "model.layers": 0} if "model.init" in fields else {}
    line = arguments(
        {"data.train": "absent.jsonl", "prompts_per_step": 8} | own | fields
    )
    with pytest.raises(InputError) as caught:
        TPU.main([*line, "--first_contact", "--workdir", str(tmp_path / "run")])
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)
    assert not [*tmp_path.iterdir()]


def test_one_host_of_several_does_not_wait_for_the_others(monkeypatch):
    monkeypatch.setattr(processes, "_tpu", lambda: True)
    monkeypatch.setattr(processes, "_slice_hosts", lambda: 4)
    with pytest.raises(InputError, match="one of the slice's 4 hosts: launch/slice.sh"):
        processes.refuse_part_of_a_slice()
    monkeypatch.setenv("LIMR_JAX_SLICE", "0")  # slice_host.sh says so
    processes.refuse_part_of_a_slice()
    monkeypatch.delenv("LIMR_JAX_SLICE")
    monkeypatch.setattr(processes, "_slice_hosts", lambda: 1)
    processes.refuse_part_of_a_slice()


def test_collectives_along_each_axis_that_has_devices():
    mesh = make_mesh(1, 2, 2, devices=jax.devices()[:4])
    rates = peaks.collectives(mesh, numbers=1024)
    assert set(rates) == {"fsdp", "tensor"}
    assert all(rate > 0 for kinds in rates.values() for rate in kinds.values())
