"""A kernel that is wrong, or raises, is found before a run begins, and is not taken."""

import dataclasses
import importlib.util
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import QWEN
from tiny_run import configure, run_records, set_up, write_problems

from limr_jax import outputs, train
from limr_jax.compilation import slices
from limr_jax.errors import InputError
from limr_jax.models.attention import dense, kernel_check, ragged_decode, splash
from limr_jax.models.attention.kernel_check import DecodeRows, TextRows
from limr_jax.multihost import agree
from limr_jax.sharding import make_mesh
from limr_jax.storage import metrics
from limr_jax.storage.workdir import read_kernels
from limr_jax.studies import html_report

CONFIG = dataclasses.replace(QWEN, head_dim=64)
TWO_KINDS = dataclasses.replace(
    CONFIG, pattern=("full", "sliding"), window=100, attention_softcap=20.0
)
PACKED = TextRows(256, "packed", learned=True)
DECODE = DecodeRows(8, 16)


@pytest.fixture
def interpreted(monkeypatch):
    """Both kernels on a CPU, in small blocks."""
    for kernel in (splash, ragged_decode):
        monkeypatch.setattr(kernel, "INTERPRET", True)
    monkeypatch.setattr(splash, "QUERIES", (256,))
    monkeypatch.setattr(ragged_decode, "BLOCKS", (4,))


def checked(rows, config=CONFIG, dtype=jnp.float32, shape=(1, 2, 1)):
    mesh = make_mesh(*shape, devices=jax.devices()[: math.prod(shape)])
    return kernel_check.check(config, mesh, dtype, rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, dtype, shape",
    [
        (CONFIG, jnp.float32, (1, 2, 1)),
        (TWO_KINDS, jnp.float32, (1, 2, 2)),
        (CONFIG, jnp.bfloat16, (1, 1, 4)),  # four devices share two kv heads
    ],
)
def test_the_kernels_hold(interpreted, monkeypatch, config, dtype, shape):
    monkeypatch.setattr(ragged_decode, "BLOCKS", (128, 4))
    rows = [
        PACKED,
        TextRows(512, "texts", learned=True),
        TextRows(500, "padded", learned=False),
        DecodeRows(128, 256),
        DecodeRows(256, 100),
    ]
    found = checked(rows, config, dtype, shape)
    assert [x.fault for x in found] == [""] * 5
    exact = dtype == jnp.float32
    assert all(x.gap < (2e-5 if exact else 0.06) for x in found), found
    assert all(x.tolerance == (1e-3 if exact else 0.15) for x in found)


@pytest.mark.parametrize(
    "tokens, most",
    [
        (1, 1),
        pytest.param(5, 5, marks=pytest.mark.slow),
        pytest.param(1, 5, marks=pytest.mark.slow),
        (2, 5),
    ],
)
def test_the_ragged_kernel_holds(interpreted, tokens, most):
    """Windows, whose ring has room for the most tokens that a loop takes a step."""
    rows = dataclasses.replace(DECODE, step_tokens=tokens, most_tokens=most)
    config = dataclasses.replace(TWO_KINDS, head_dim=16, window=4)
    (found,) = checked([rows], config)
    assert not found.fault and found.gap < 1e-5
    assert kernel_check.numbers([found]) == {"kernel_ragged": 1.0}


@pytest.mark.slow
def test_what_the_kernel_writes_is_compared(interpreted, monkeypatch):
    """One number of one column that is not the token's, in fp32."""
    original = ragged_decode.attend

    def attend(*given, **more):
        out, (keys, values) = original(*given, **more)
        return out, (keys, values.at[1, 1, 0, 3, 0].add(5))

    monkeypatch.setattr(ragged_decode, "attend", attend)
    (found,) = checked([DECODE])
    assert found.gap > 0.5 and found.fault


def wrongly(mask_of):
    """In the place of splash: XLA's attention by a mask that is changed."""

    def attend(q, k, v, sight, config):
        T = q.shape[1]
        column_T = jnp.arange(T, dtype=jnp.int32)[None]
        mask_BTT = column_T[..., None] - column_T[:, None] <= sight.near_BT[..., None]
        mask_BTT &= column_T[..., None] >= column_T[:, None]
        far_BT1 = sight.far_BT[..., None]
        mask_BTT |= (column_T[..., None] - column_T[:, None] > far_BT1) & (
            sight.segment_BT[..., None] == sight.segment_BT[:, None]
        )
        return dense.attend(q, k, v, mask_of(mask_BTT), config)

    return attend


def same(mask_BTT):
    return mask_BTT


def drop_oldest(mask_BTT):
    """All that a query sees but the first of them, where it sees several."""
    first_BTT = jnp.cumsum(mask_BTT, axis=2) == 1
    several_BT1 = jnp.sum(mask_BTT, axis=2, keepdims=True) > 1
    return mask_BTT & ~(first_BTT & several_BT1)


def drop_one(mask_BTT):
    """One key, which no query sees but itself."""
    T = mask_BTT.shape[1]
    column_T = np.arange(T)
    kept_TT = (column_T[None] != 130) | (column_T[:, None] == 130)
    return mask_BTT & kept_TT[None]


@pytest.mark.parametrize(
    "dtype, change, holds",
    [
        pytest.param(jnp.float32, same, True, marks=pytest.mark.slow),
        (jnp.bfloat16, same, True),
        pytest.param(jnp.bfloat16, drop_oldest, False, marks=pytest.mark.slow),
        (jnp.bfloat16, drop_one, False),
    ],
)
def test_a_wrong_mask_is_found(interpreted, monkeypatch, dtype, change, holds):
    """With the right one what stands for the kernel passes."""
    monkeypatch.setattr(splash, "attend", wrongly(change))
    (found,) = checked([PACKED], dtype=dtype)
    assert found.kernel == "splash"
    if holds:
        assert not found.fault and found.gap <= found.tolerance
    else:
        assert found.gap > 2 * found.tolerance
        assert found.fault.endswith("apart from XLA's, more than 0.15")


@pytest.mark.slow
def test_what_is_no_number_is_refused(interpreted, monkeypatch):
    """Even if it stands where nobody reads."""
    original = ragged_decode.attend

    def attend(*given, **more):
        out, own = original(*given, **more)
        return out.at[-1].set(jnp.nan), own  # a row that has ended

    monkeypatch.setattr(ragged_decode, "attend", attend)
    (found,) = checked([DECODE])
    assert found.gap == math.inf and "inf apart" in found.fault


@pytest.mark.parametrize(
    "drafts, compared",
    # Loops of 64, 36, 16 and 4 slots: as many tokens a step as 128 rows allow.
    [
        (0, [(1, 1)]),
        (2, [(1, 1), (1, 3), (2, 3), (3, 3)]),
        (8, [(1, 1), (1, 9), (2, 9), (3, 9), (8, 9), (9, 9)]),
    ],
)
def test_each_loop_s_tokens_are_compared(tmp_path, monkeypatch, drafts, compared):
    asked = []

    def settle(config, mesh, dtype, rows, attention):
        asked.extend(rows)
        return config, []

    monkeypatch.setattr(kernel_check, "settle", settle)
    problems = write_problems(tmp_path / "train.jsonl", 8)
    shape = {"prompts_per_step": 8, "group_size": 8, "num_steps": 1}
    lengths = {"rollout__max_response_length": 64, "rollout__compactions": 6}
    set_up(configure(problems, rollout__drafts=drafts, **shape, **lengths), 1)
    decode = [x for x in asked if isinstance(x, DecodeRows)]
    assert [(x.step_tokens, x.most_tokens) for x in decode] == compared


def raising(*_, **__):
    raise NotImplementedError("no such\nlayout")


def tiny(tmp_path, **fields):
    problems = write_problems(tmp_path / "train.jsonl", 8)
    return configure(problems, num_steps=1, rollout__max_response_length=8, **fields)


@pytest.fixture
def ragged_alone(monkeypatch):
    monkeypatch.setattr(ragged_decode, "INTERPRET", True)
    monkeypatch.setattr(ragged_decode, "BLOCKS", (4,))


@pytest.mark.slow
def test_a_run_takes_xla_s_attention_instead(
    tmp_path, ragged_alone, monkeypatch, capsys
):
    """And says so in one line, in the metrics, in kernels.json and on the page."""
    config = tiny(tmp_path)
    monkeypatch.setattr(ragged_decode, "attend", raising)
    made = set_up(config, 1)
    said = capsys.readouterr().err
    assert said == (
        "warning: the ragged kernel, rows of 8 columns, prompts of 16: it does not "
        "compile (NotImplementedError: no such layout); XLA's attention takes its "
        "place\n"
    )
    assert made.compute.model.refused_kernels == ("ragged",)
    assert not made.compute.model.takes("ragged") and made.compute.model.takes("splash")
    workdir = tmp_path / "run"
    train.train(made, config, workdir)
    (row,) = metrics.read_metrics(workdir)
    assert row["kernel_ragged"] == 0.0 and "kernel_splash" not in row
    (kept,) = read_kernels(workdir)
    assert kept["gap"] is None and kept["fault"].startswith("it does not compile")
    expected = tmp_path / "xla"
    by_xla = tiny(tmp_path, model__attention="xla")
    train.train(set_up(by_xla, 1), by_xla, expected)
    page = html_report.page([workdir], samples=1)
    assert "<h2>Kernels</h2>" in page and "no such layout" in page
    assert "<h2>Kernels</h2>" not in html_report.page([expected], samples=1)
    # The rollouts are those of model.attention=xla.
    assert run_records(workdir)["rollouts"] == run_records(expected)["rollouts"]


def test_a_start_that_takes_other_kernels_than_the_last_says_so(tmp_path, capsys):
    """A kernel is taken where it holds in rows of all kinds."""

    def finding(kernel, fault):
        return kernel_check.Finding(
            kernel, "rows", gap=None, tolerance=0.1, seconds=1.0, fault=fault
        )

    ragged, refused = finding("ragged", ""), finding("ragged", "no such layout")
    splash = [finding("splash", ""), finding("splash", "")]

    def warnings(*starts):
        workdir = tmp_path / str(len(list(tmp_path.iterdir())))
        workdir.mkdir()
        for findings in starts:
            outputs.write_kernels(types.SimpleNamespace(kernels=findings), workdir)
        return capsys.readouterr().err

    assert warnings([ragged, *splash], [refused, *splash]) == (
        "warning: the ragged kernel was taken by this run's last start and is refused "
        "by this one: from here on the run is not bit for bit what it would have been\n"
    )
    back = warnings([splash[0], finding("splash", "0.3 apart")], splash)
    assert "the splash kernel was refused by this run's last start and is taken" in back
    assert warnings([ragged], [refused], [refused]).count("warning") == 1
    for damaged in ("", "{", '{"kernels": 5}', '{"kernels": [{"kernel": ["a"]}]}'):
        (tmp_path / "kernels.json").write_text(damaged)
        outputs.write_kernels(types.SimpleNamespace(kernels=[ragged]), tmp_path)
        assert read_kernels(tmp_path) == [ragged.as_json()]
    (tmp_path / "kernels.json").unlink()
    for starts in ([refused], [refused]), ([], [ragged]), ([ragged], splash):
        assert not warnings(*starts)


@pytest.mark.parametrize(
    "wanted, planted, said",
    [
        (
            "ragged",
            raising,
            "model.attention=ragged: the ragged kernel, rows of 8 columns, prompts of "
            "16: it does not compile (NotImplementedError: no such layout); with auto "
            "XLA's attention takes its place",
        ),
        (
            "splash",
            None,
            "model.attention=splash, but nothing in this run is for that kernel: it is "
            "for a TPU, and for rows of the lengths that limr_jax/models/attention/ "
            "says; give auto",
        ),
    ],
)
def test_a_run_that_demands_a_kernel_ends(
    tmp_path, ragged_alone, monkeypatch, wanted, planted, said
):
    if planted:
        monkeypatch.setattr(ragged_decode, "attend", planted)
    with pytest.raises(InputError) as caught:
        set_up(tiny(tmp_path, model__attention=wanted), 1)
    assert str(caught.value) == said


def test_one_process_refuses_for_all(interpreted, monkeypatch):
    """Whichever it is, and whether its kernel raises or is wrong."""
    reports = {
        "kernels that compile": lambda mine: [mine, ["", "no room"]],
        "kernels that run": lambda mine: [mine, mine],
        "kernels' gaps": lambda mine: [[0.5, None], mine],
    }
    monkeypatch.setattr(agree, "exchange", lambda name, mine: reports[name](mine))
    right = lambda: [jnp.zeros((1, 1))]  # noqa: E731
    monkeypatch.setattr(kernel_check, "compiled", lambda *_: (right, [()]))
    found = checked([DECODE, DecodeRows(4, 8)])
    assert found[0].gap == 0.5 and found[0].fault.startswith("it is 0.5 apart")
    assert found[1].gap is None and found[1].fault == "process 1: no room"
    assert json.dumps([x.as_json() for x in found])


def test_nothing_is_compiled_where_no_kernel_fits(monkeypatch):
    monkeypatch.setattr(kernel_check, "compiled", raising)
    assert checked([PACKED, DECODE]) == []
    config, found = kernel_check.settle(
        CONFIG, make_mesh(1, -1, 1), jnp.float32, [PACKED], "auto"
    )
    assert config == CONFIG and not found


@pytest.mark.parametrize("lay", ["packed", "texts", "padded"])
def test_rows_are_laid_as_forward_takes_them(lay):
    """Each text counts on without a gap, and what belongs together is one piece."""
    columns = 300
    position_BT, segment_BT, branch_BT = kernel_check.lay_out(
        TextRows(columns, lay, learned=False), 4
    )
    assert (position_BT.max(axis=1) > 20).all()
    assert ((position_BT >= 0).sum(axis=1) > columns // 2).all()
    assert (position_BT == -1).any(axis=1).sum() >= 3
    if lay == "padded":
        assert segment_BT is None and branch_BT is None
        return
    assert (branch_BT is None) == (lay == "texts")
    branch_BT = np.zeros_like(segment_BT) if branch_BT is None else branch_BT
    for position_T, segment_T, branch_T in zip(position_BT, segment_BT, branch_BT):
        assert len(set(segment_T[position_T >= 0])) >= 3
        for t in np.flatnonzero(position_T[1:] > 0) + 1:
            same = (segment_T[t], branch_T[t]) == (segment_T[t - 1], branch_T[t - 1])
            if same:
                assert position_T[t] == position_T[t - 1] + 1
            else:  # a response goes on from its prompt
                prompt = (segment_T == segment_T[t]) & (branch_T == 0)
                assert branch_T[t] > 0 and position_T[t] == prompt.sum()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs libtpu, the TPU's compiler: pip install -e '.[tpu]'",
)
@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize(
    "rows", [PACKED, DecodeRows(128, 256, 3, 5)], ids=["text", "decode"]
)
def test_it_compiles_for_a_tpu(rows):
    """The comparison itself: else every kernel would be refused there."""
    devices = slices.devices("v5litepod-4")
    mesh = make_mesh(1, 2, 2, devices=devices)
    config = dataclasses.replace(CONFIG, head_dim=128)
    with jax.set_mesh(mesh):
        assert rows.fits(config)
    program, calls = kernel_check.compiled(rows, config, mesh, jnp.bfloat16)
    assert "tpu_custom_call" in program.as_text()
    assert len(calls) == 1
