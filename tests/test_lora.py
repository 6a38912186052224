"""Runs that learn adapters alone, beside a base that nothing changes."""

import dataclasses
import itertools
import json
import pathlib
import runpy
import shutil
from functools import partial

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_policy import QUICK, quick
from tiny_run import (
    ROOT,
    configure,
    one_device,
    run_records,
    set_up,
    stopping,
    with_parity,
    write_problems,
)

from limr_jax.compilation import slices
from limr_jax.compilation.calls import plan
from limr_jax.errors import InputError
from limr_jax.evaluation import benchmarks, trained_policy
from limr_jax.models import hf_weights, int8, lora, transformer
from limr_jax.models.attention import kernel_check
from limr_jax.models.from_config import load_base
from limr_jax.sharding import make_mesh
from limr_jax.storage import array_digest, checkpoint, metrics
from limr_jax.storage.array_digest import params_digest
from limr_jax.train import train

STEPS = 4
FIELDS = {
    "model__lora__rank": 2,
    "kl__coefficient": 0.1,
    "num_steps": STEPS,
    "checkpoint__every": 1,
    "checkpoint__keep": 9,
}
EXPORT = runpy.run_path(str(ROOT / "launch/export.py"))["main"]


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("data") / "train.jsonl", 10)


@pytest.fixture(scope="module")
def whole(quick_compiler, problems, tmp_path_factory):
    """(workdir of an unbroken run, the run's parts, its config)."""
    workdir = tmp_path_factory.mktemp("whole")
    config = configure(problems, **FIELDS)
    made = with_parity(set_up(config))
    train(made, config, workdir)
    return workdir, made, config


@pytest.fixture(scope="module")
def quantised(quick_compiler, problems, tmp_path_factory):
    """As `whole`, over an int8 base, which the run's parts hold."""
    workdir = tmp_path_factory.mktemp("quantised")
    config = configure(problems, **FIELDS, model__base_dtype="int8")
    made = with_parity(set_up(config))
    base = made.load_base()
    made = made.__class__(**vars(made) | {"load_base": lambda: base})
    train(made, config, workdir)
    return workdir, made, config


def rows_of(workdir):
    return list(metrics.read_metrics(workdir))


def test_it_learns_and_rollouts_log_probabilities_are_the_learners(whole):
    rows = rows_of(whole[0])
    assert len(rows) == STEPS
    for row in rows:
        assert row["gradient_norm"] > 0
        assert row["drift"] <= row["drift_max"] < 1e-5
    assert len({row["compile_count"] for row in rows}) == 1
    # The reference is the base: the policy is it before the first update, not after.
    assert rows[0]["kl"] < 1e-9
    assert all(row["kl"] > 1e-7 for row in rows[1:])


def test_checkpoints_hold_adapters_and_no_reference_is_made(whole):
    workdir, made, _ = whole
    assert made.programs.copy is None and made.programs.reference
    names = array_digest.named(made.programs.state.train)
    ends = {name.rpartition("/")[2] for name in names if "/blocks/" in name}
    assert ends == {"lora_a", "lora_b"}
    # All else is the optimiser's count.
    assert all("/blocks/" in name or names[name].ndim == 0 for name in names)
    with checkpoint.Checkpointer(workdir, read_only=True) as saver:
        first, _ = saver.restore(1, made.programs.state)
        last, meta = saver.restore(STEPS, made.programs.state)
    for one, other in zip(
        jax.tree.leaves(first.train.params),
        jax.tree.leaves(last.train.params),
        strict=True,
    ):
        assert not np.array_equal(one, other)
    assert len(meta["base"]) == 16


def test_the_base_stays_as_it_is(whole, tmp_path, monkeypatch):
    """Its arrays, kept by a run's caller, before and after steps."""
    _, made, config = whole
    base = made.load_base()
    before = params_digest(base)
    changed = made.__class__(**vars(made) | {"load_base": lambda: base})
    train(changed, config, tmp_path)
    assert params_digest(base) == before
    assert run_records(tmp_path) == run_records(whole[0])


def test_a_run_over_an_int8_base(quantised):
    """Rollout, learner and reference read the base, which no step changes."""
    workdir, made, config = quantised
    rows = rows_of(workdir)
    assert len(rows) == STEPS
    for row in rows:
        assert row["gradient_norm"] > 0
        assert row["drift"] <= row["drift_max"] < 1e-5
    assert len({row["compile_count"] for row in rows}) == 1
    assert rows[0]["kl"] < 1e-9
    assert all(row["kl"] > 1e-7 for row in rows[1:])
    base, again = made.load_base(), load_base(config, made.compute.model, made.mesh)
    assert params_digest(base) == params_digest(again)
    assert base["blocks"]["0"]["mlp"]["up"]["kernel"].dtype == "int8"
    assert base["embedder"]["embedding"].dtype == "bfloat16"
    learned = array_digest.named(made.programs.state.train)
    assert not any("kernel" in name for name in learned)


def test_a_stop_over_an_int8_base_changes_nothing(quantised, whole, tmp_path):
    workdir, made, config = quantised
    with pytest.raises(KeyboardInterrupt):
        train(stopping(made, 3), config, tmp_path)
    # Another base is refused by the config, and by its digest.
    with pytest.raises(InputError, match="base_dtype"):
        train(whole[1], whole[2], tmp_path)
    other = made.__class__(**vars(made) | {"load_base": whole[1].load_base})
    with pytest.raises(InputError, match="its adapters are of a base of the digest"):
        train(other, config, tmp_path)
    # Of scales alone, too.
    base = made.load_base()
    up = base["blocks"]["0"]["mlp"]["up"]
    mlp = base["blocks"]["0"]["mlp"] | {
        "up": up | {"kernel_scale": 2 * up["kernel_scale"]}
    }
    block = base["blocks"]["0"] | {"mlp": mlp}
    scaled = base | {"blocks": base["blocks"] | {"0": block}}
    other = made.__class__(**vars(made) | {"load_base": lambda: scaled})
    with pytest.raises(InputError, match="its adapters are of a base of the digest"):
        train(other, config, tmp_path)
    train(made, config, tmp_path)
    assert run_records(tmp_path) == run_records(workdir)


@pytest.mark.slow
def test_a_reference_that_is_reset(whole, problems, tmp_path):
    """It is the base, then base and a copy of the adapters; stopped after a reset."""
    config = configure(problems, **FIELDS, kl__reset_every=2)
    made = with_parity(set_up(config))
    with pytest.raises(KeyboardInterrupt):
        train(stopping(made, 4), config, tmp_path)
    with checkpoint.Checkpointer(tmp_path, read_only=True) as saver:
        states = {k: saver.restore(k, made.programs.state)[0] for k in (1, 2, 3)}
    adapters = jax.tree.structure(states[2].train.params)
    assert jax.tree.structure(states[1].reference) == adapters
    assert not any(np.any(x) for x in jax.tree.leaves(states[1].reference))
    for step in (2, 3):
        jax.tree.map(
            np.testing.assert_array_equal,
            states[step].reference,
            states[2].train.params,
        )
    train(made, config, tmp_path)
    rows = rows_of(tmp_path)
    # Until the first reset all is as without one, bit for bit.
    assert run_records(tmp_path)["metrics"][:2] == run_records(whole[0])["metrics"][:2]
    assert rows[2]["kl"] < 1e-9 and rows[3]["kl"] > 1e-7
    assert len({row["compile_count"] for row in rows[:3]}) == 1


@pytest.mark.parametrize("step", [1, 3])
def test_a_stop_changes_nothing(whole, tmp_path, step):
    workdir, made, config = whole
    with pytest.raises(KeyboardInterrupt):
        train(stopping(made, step), config, tmp_path)
    train(made, config, tmp_path)
    assert run_records(tmp_path) == run_records(workdir)


def test_another_base_is_refused(whole, tmp_path):
    _, made, config = whole
    with pytest.raises(KeyboardInterrupt):
        train(stopping(made, 3), config, tmp_path)
    doubled = made.__class__(
        **vars(made)
        | {"load_base": lambda: jax.tree.map(lambda x: 2 * x, made.load_base())}
    )
    with pytest.raises(InputError, match="its adapters are of a base of the digest"):
        train(doubled, config, tmp_path)
    # And by whoever evaluates it.
    model_config, mesh = made.compute.model, made.mesh
    with pytest.raises(InputError, match="its adapters are of a base of the digest"):
        trained_policy.load_params(tmp_path, 2, model_config, mesh, doubled.load_base)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"kl__placement": "reward", "model__base_dtype": "bfloat16"},
        {
            "kl__coefficient": 0.0,
            "filter__tau": 0.0,
            "mismatch__recompute": True,
            "minibatches_per_step": 2,
        },
        {
            "model__base_dtype": "int8",
            "model__architecture": "gemma2",
            "model__lora__targets": "q,v,down",
        },
        {
            "filter__groups": "mixed",
            "filter__max_rounds": 2,
            "rollout__calls": 2,
            "model__lora__scaling": "rs",
        },
    ],
    ids=["kl in the reward, bf16 base", "filter", "gemma, int8 base", "rounds"],
)
def test_other_ways_to_learn(fields, quick_compiler, problems, tmp_path):
    config = configure(problems, **FIELDS | {"num_steps": 3} | fields)
    made = with_parity(set_up(config))
    base = made.load_base()
    kernel = base["blocks"]["0"]["mlp"]["up"]["kernel"]
    assert kernel.dtype == config.model.base_dtype
    assert base["final_norm"]["scale"].dtype == "float32"
    train(made, config, tmp_path)
    rows = rows_of(tmp_path)
    assert len({row["compile_count"] for row in rows}) == 1
    assert any(row["gradient_norm"] > 0 for row in rows)
    for row in rows:
        # Of the policy before the step, in whatever dtype the base is.
        assert row["mismatch/log_weight_max"] < 1e-5
        assert ("kl" in row) == bool(config.kl.coefficient)


MESHES = [(4, 1, 2), (1, 4, 2), (2, 2, 2)]
# Both bases and every axis.
IN_CI = {("whole", (2, 2, 2)), ("quantised", (1, 4, 2))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "mesh"),
    [
        pytest.param(*pair, marks=[] if pair in IN_CI else pytest.mark.soak)
        for pair in itertools.product(("whole", "quantised"), MESHES)
    ],
)
def test_eight_devices_are_one(run, mesh, quick_compiler, request, tmp_path):
    """On meshes that divide base and adapters; no two scores of these tie."""
    workdir, here_made, config = request.getfixturevalue(run)
    sizes = dict(zip(("data", "fsdp", "tensor"), mesh))
    config = config.copy_and_resolve_references()
    config.mesh.update(sizes)
    made = with_parity(set_up(config, devices=8))
    train(made, config, tmp_path)
    one, other = run_records(workdir), run_records(tmp_path)
    assert [x["response"] for x in one["rollouts"]] == [
        x["response"] for x in other["rollouts"]
    ]
    for here, there in zip(one["metrics"], other["metrics"], strict=True):
        assert there["drift_max"] < 1e-5
        for name in ("loss", "reward", "entropy", "kl"):
            assert there[name] == pytest.approx(here[name], abs=1e-5), name
        assert there["gradient_norm"] == pytest.approx(here["gradient_norm"], rel=1e-4)
    # Another device's checkpoint is the same adapters, and the same base.
    with checkpoint.Checkpointer(tmp_path, read_only=True) as saver:
        _, meta = saver.restore(STEPS, made.programs.state)
    with checkpoint.Checkpointer(workdir, read_only=True) as saver:
        _, expected = saver.restore(STEPS, here_made.programs.state)
    assert meta["base"] == expected["base"]


def exported(workdir, out, *flags, capsys) -> dict:
    EXPORT(["--workdir", str(workdir), "--out", str(out), *flags])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_export_and_begin_from_it(whole, problems, tmp_path, capsys):
    """A run's merged model is a base; adapters on it are a run's first."""
    workdir, _, config = whole
    base_dir = tmp_path / "base"
    merged = exported(workdir, base_dir, capsys=capsys)
    result = json.loads((pathlib.Path(workdir) / "result.json").read_text())
    assert merged["params_digest"] == result["params_digest"]
    sizes = {f"model__{name}": 0 for name in ("width", "layers", "heads")}
    sizes |= {f"model__{name}": 0 for name in ("kv_heads", "head_dim", "mlp_width")}
    fields = FIELDS | sizes | {"model__init": base_dir}
    config = configure(problems, **fields)
    made = with_parity(set_up(config))
    train(made, config, tmp_path / "run")
    assert exported(tmp_path / "run", tmp_path / "peft", "--peft", capsys=capsys)
    assert exported(tmp_path / "run", tmp_path / "merged", capsys=capsys)

    model_config, mesh = made.compute.model, made.mesh
    params = trained_policy.load_params(
        tmp_path / "run", STEPS, model_config, mesh, made.load_base
    )
    again = configure(problems, **fields, model__lora__init=tmp_path / "peft")
    from_peft = set_up(again)
    assert from_peft.identity["content"]["model.lora.init"]
    learned = from_peft.load_params()
    jax.tree.map(np.testing.assert_array_equal, learned, lora.split(params)[1])
    # An evaluation of base and adapters says both.
    peft_dir = str(tmp_path / "peft")
    fields_of_both = fields | {"model__lora__init": peft_dir}
    asked = configure(problems, **fields_of_both, benchmarks__names=problems)
    with one_device(benchmarks):
        suite = benchmarks.set_up(asked)
    suite.close()
    both = {"init": str(base_dir), "adapters": peft_dir}
    assert suite.identity["policy"] == both
    jax.tree.map(np.testing.assert_array_equal, suite.load_policy()[1], params)
    # What is merged, in the file's fp32, gives the logits of base and adapters.
    tokens_BT = np.arange(12).reshape(2, 6)
    position_BT = np.tile(np.arange(6), (2, 1))

    @partial(jax.jit, static_argnames="config", compiler_options=QUICK)
    def logits(params, config):
        how = {"config": config, "dtype": np.float32}
        hidden = transformer.forward(params, tokens_BT, position_BT, **how)
        return transformer.unembed(params, hidden, **how)

    one = make_mesh(1, 1, 1, jax.devices()[:1])
    whole_model = hf_weights.load_params(tmp_path / "merged", model_config.base, one)
    np.testing.assert_allclose(
        logits(params, model_config),
        logits(whole_model, model_config.base),
        rtol=0,
        atol=1e-4,
    )
    # The directory of the base is another now.
    exported(tmp_path / "run", tmp_path / "other", capsys=capsys)
    other = configure(
        problems,
        **fields | {"model__init": tmp_path / "other"},
        model__lora__init=tmp_path / "peft",
    )
    with pytest.raises(InputError, match="was trained on a base of the digest"):
        set_up(other)
    random = FIELDS | {"model__lora__init": tmp_path / "peft"}
    with pytest.raises(InputError, match="and model.init is random; give the base"):
        set_up(configure(problems, **random))
    _export_from_another_place(tmp_path, base_dir, capsys)
    _refused_before_anything_is_read(tmp_path / "peft", problems, fields)


def _export_from_another_place(tmp_path, base_dir, capsys):
    """The base of tmp_path/run lies elsewhere now, or another one is given for it."""
    moved = base_dir.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"model.init=.* is not there; give --init="):
        exported(tmp_path / "run", tmp_path / "again", capsys=capsys)
    with pytest.raises(InputError, match="--init=/nowhere is not there; check"):
        exported(tmp_path / "run", tmp_path / "again", "--init=/nowhere", capsys=capsys)
    # The checkpoint has the base's digest, and the run the settings of its config.json.
    with pytest.raises(InputError, match="adapters are of a base of the digest"):
        place = f"--init={tmp_path / 'other'}"
        exported(tmp_path / "run", tmp_path / "again", place, capsys=capsys)
    assert not (tmp_path / "again").exists()
    again = exported(
        tmp_path / "run", tmp_path / "again", f"--init={moved}", capsys=capsys
    )
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert again["params_digest"] == result["params_digest"]
    moved.rename(base_dir)
    shutil.copytree(base_dir, tmp_path / "turned")
    file = tmp_path / "turned/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_theta": 777.0}))
    with pytest.raises(
        InputError, match="rope of model.init=.*would be another policy"
    ):
        place = f"--init={tmp_path / 'turned'}"
        exported(tmp_path / "run", tmp_path / "x", place, capsys=capsys)
    file.unlink()
    with pytest.raises(InputError, match="turned is not a checkpoint"):
        exported(tmp_path / "run", tmp_path / "x", place, capsys=capsys)


def _refused_before_anything_is_read(peft_dir, problems, fields):
    def refused(set_up, line, **changed):
        config = configure(
            problems, **fields | {"model__lora__init": peft_dir} | changed
        )
        with pytest.raises(InputError, match=line):
            set_up(config)

    evaluated = {"benchmarks__names": problems}
    refused(benchmarks.set_up, "alpha=99.0, but", **evaluated, model__lora__alpha=99.0)
    gone = {"model__lora__init": peft_dir / "gone"}
    refused(benchmarks.set_up, "has no adapter_config.json", **evaluated, **gone)
    file = peft_dir / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = np.nan
    save_file(tensors, file)
    refused(set_up, "holds nan or inf")


def test_a_random_base_has_no_peft_directory(whole, tmp_path):
    with pytest.raises(InputError, match="--peft: the base of .* is random"):
        EXPORT(["--workdir", str(whole[0]), "--out", str(tmp_path / "x"), "--peft"])


def test_the_compile_report_goes_by_the_same_calls(whole, problems, monkeypatch):
    """Each program gets the base where a run gives it."""
    monkeypatch.setattr(slices, "devices", lambda _: jax.devices()[:1])
    stand_ins = {"type": "v4-8", "problems": 10, "answer_length": 2}
    fields = FIELDS | {f"slice__{name}": x for name, x in stand_ins.items()}
    fields |= {"algorithm": "ppo", "critic__learning_rate": 0.01}
    calls = {call.name: call for call in plan(configure(problems, **fields)).calls}
    assert "copy" not in calls
    base = whole[1].programs.base

    def shapes(tree):
        return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]

    assert shapes(calls["update"].args[-1]) == shapes(base)
    assert shapes(calls["reference"].args[0]) == shapes(base)
    for name in ("generate", "values"):
        params = dict(calls[name].args[0])
        params.pop("value_head", None)
        assert shapes(lora.split(params)[0]) == shapes(base)


def test_a_base_is_loaded_in_its_dtype(whole, problems, tmp_path, capsys):
    """As bf16 from a checkpoint, norms in fp32: what its fp32 digits round to."""
    exported(whole[0], tmp_path / "base", capsys=capsys)
    sizes = {f"model__{name}": 0 for name in ("width", "layers", "heads")}
    sizes |= {f"model__{name}": 0 for name in ("kv_heads", "head_dim", "mlp_width")}
    fields = FIELDS | sizes | {"model__init": tmp_path / "base"}
    config = configure(problems, **fields, model__base_dtype="bfloat16")
    model_config, mesh = whole[1].compute.model, whole[1].mesh
    half = load_base(config, model_config, mesh)
    config = configure(problems, **fields)
    full = load_base(config, model_config, mesh)
    expected = transformer.compute_params(full, "bfloat16")
    jax.tree.map(np.testing.assert_array_equal, half, expected)
    assert half["final_norm"]["scale"].dtype == "float32"
    assert half["embedder"]["embedding"].dtype == "bfloat16"
    # As int8, quantised from the file's digits, not from bf16's.
    config = configure(problems, **fields, model__base_dtype="int8")
    steps = load_base(config, model_config, mesh)
    expected = transformer.compute_params(int8.quantise_params(full), "bfloat16")
    jax.tree.map(np.testing.assert_array_equal, steps, expected)


def test_an_evaluation_computes_with_the_kernels_that_were_settled_on(
    quantised, problems, monkeypatch
):
    def settle(model_config, *_, **__):
        return dataclasses.replace(model_config, attention_kernel=False), {}

    workdir, _, config = quantised
    config = config.copy_and_resolve_references()
    config.benchmarks.names, config.model.attention = str(problems), "auto"
    monkeypatch.setattr(kernel_check, "settle", settle)
    suite = benchmarks.set_up(config, str(workdir))
    suite.close()
    assert suite.compute.model.attention_kernel is False


@pytest.mark.parametrize("field, value", [("alpha", 512.0), ("scaling", "rs")])
def test_another_scale_is_another_policy(quantised, problems, field, value):
    workdir, _, config = quantised
    config = config.copy_and_resolve_references()
    config.benchmarks.names = str(problems)
    config.model.lora[field] = value
    with pytest.raises(InputError, match=f"model.lora.{field}={value}, and .* was"):
        benchmarks.set_up(config, str(workdir))


def test_an_evaluation_is_of_base_and_adapters(quantised, problems):
    """What launch/evaluate.py and launch/likelihood.py ask: the run's last policy."""
    workdir, _, config = quantised
    config = config.copy_and_resolve_references()
    config.benchmarks.names = str(problems)
    with one_device(benchmarks):
        digest, params = benchmarks.set_up(config, str(workdir)).load_policy()
    result = json.loads((pathlib.Path(workdir) / "result.json").read_text())
    assert digest == result["params_digest"]
    assert params["blocks"]["0"]["mlp"]["up"]["kernel"].dtype == "int8"


@pytest.mark.slow
def test_export_over_an_int8_base(quantised, tmp_path, capsys):
    """Merged: the dequantised base and the adapters."""
    workdir, made, _ = quantised
    exported(workdir, tmp_path / "merged", capsys=capsys)
    model_config = made.compute.model
    params = trained_policy.load_params(
        workdir, STEPS, model_config, made.mesh, made.load_base
    )
    expected = quick(partial(lora.merge, lora=model_config.lora))(params)
    one = make_mesh(1, 1, 1, jax.devices()[:1])
    merged = hf_weights.load_params(tmp_path / "merged", model_config.base, one)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), merged, expected)
