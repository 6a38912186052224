"""Every single fault in the newest checkpoint: the newest whole one, or one line."""

import gc
import json
import logging
import random
import shutil
import sys
import types
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import quick

from limr_jax.errors import InputError
from limr_jax.evaluation import trained_policy
from limr_jax.models import transformer
from limr_jax.models.hf_config import parse_config
from limr_jax.sharding import make_mesh
from limr_jax.storage import checkpoint, checkpoint_record

STEPS = (2, 4, 6)
META = {"seconds": 1.5, "note": "meta"}


def state_of(step):
    """Arrays of several dtypes, one of them large enough for a file's own part."""
    return {
        "params": {
            "embed": jnp.arange(4096.0).reshape(64, 64) * step,
            "half": jnp.full((3, 5), step, jnp.bfloat16),
            "nothing": jnp.zeros((0,)),
        },
        "flag": jnp.array([True, False]),
        "step": jnp.int32(step),
    }


SHAPES = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state_of(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with three whole steps."""
    workdir = tmp_path_factory.mktemp("saved")
    with checkpoint.Checkpointer(workdir, keep=3) as saver:
        for step in STEPS:
            saver.save(step, state_of(step), META)
    return workdir


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of it, made anew by each call."""

    def make():
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        return shutil.copytree(saved, tmp_path / "copy")

    return make


def contents(workdir) -> dict:
    paths = [path for path in workdir.rglob("*") if path.name != ".lock"]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


def go_on(workdir, keep=2):
    """(step, lines) of the newest whole one, whose bits are right."""
    lines = []
    with checkpoint.Checkpointer(workdir, keep=keep) as saver:
        step, state, meta = saver.restore_newest(SHAPES, say=lines.append)
    jax.tree.map(np.testing.assert_array_equal, state, state_of(step))
    assert meta == META
    return step, lines


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


FAULTS = {
    "truncated": lambda path: path.write_bytes(
        path.read_bytes()[: path.stat().st_size // 2]
    ),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
    "one bit flipped": lambda path: flip(path, 4 * path.stat().st_size),
}


@pytest.mark.slow
def test_every_file_and_every_fault(copy, saved, capsys):
    """The table of tests/RECORDS.md; `pytest -s` prints it."""
    newest = saved / "checkpoints/6"
    files = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]
    table, ends = [], []
    for file in sorted(files):
        for fault, damage in FAULTS.items():
            workdir = copy()
            damage(workdir / "checkpoints/6" / file)
            before = contents(workdir)
            step, lines = go_on(workdir)
            assert contents(workdir) == before  # nothing is removed by looking
            where = f"{workdir}/checkpoints/6 is damaged: "
            if step == 6:
                assert not lines, (file, fault)
            else:
                (line,) = lines
                assert step == 4 and line.startswith(where) and "\n" not in line
                assert line.endswith("; going on without it") and len(line) < 600
            said = "; ".join(lines).removeprefix(where)
            ends.append(step)
            table.append(f"| {file} | {fault} | {step} | {said} |")
    with capsys.disabled():
        print("", *table, sep="\n")
    # What is not read may be gone, but all that is read is missed: the record, the list
    # of arrays (which may be gone: the record has it too), the index, and the arrays.
    assert len(files) >= 14 and ends.count(4) == 4 + 3 + 4 + 4 + 4


@pytest.mark.parametrize("part", ["state", "meta", "none", "both"])
def test_half_copied_folders(copy, part):
    """7 and 8 hold a part of 6, or all of it: none is the step that it is called."""
    workdir = copy()
    folder = workdir / "checkpoints"
    for step in ("7", "8"):
        (folder / step).mkdir()
        for name in {"both": ["state", "meta"], "none": []}.get(part, [part]):
            shutil.copytree(folder / "6" / name, folder / step / name)
    before = contents(workdir)
    step, lines = go_on(workdir)
    assert step == 6 and contents(workdir) == before
    missing = part in ("state", "none")
    what = "No such file or directory" if missing else "is of step 6"
    assert lines == [
        f"{folder}/{step} is damaged: meta/metadata{':' * missing} {what}; going on "
        "without it"
        for step in (8, 7)
    ]


def test_the_next_save_takes_the_place_of_what_was_damaged(copy):
    """And not before; the step that was restored stays until others are whole."""
    workdir = copy()
    folder = workdir / "checkpoints"
    shutil.copytree(folder / "6/state", folder / "8/state")
    flip(next((folder / "6/state/d").iterdir()), 100)
    with checkpoint.Checkpointer(workdir, keep=2) as saver:
        assert saver.restore_newest(SHAPES, say=lambda _: None).step == 4
        assert saver.latest() == 4  # what a run says that stands
        assert sorted(x.name for x in folder.iterdir()) == ["2", "4", "6", "8"]
        assert saver.save(6, state_of(6), META)
        saver.wait()
        assert sorted(x.name for x in folder.iterdir()) == ["4", "6"]
        assert saver.save(8, state_of(8), META)
    assert go_on(workdir) == (8, [])


def test_none_is_whole(copy):
    workdir = copy()
    folder = workdir / "checkpoints"
    for step in STEPS:
        (folder / f"{step}/meta/metadata").write_text("{")
    before = contents(workdir)
    with checkpoint.Checkpointer(workdir) as saver, pytest.raises(InputError) as raised:
        saver.restore_newest(SHAPES, say=pytest.fail)
    assert str(raised.value) == (
        f"none of the checkpoints 2, 4, 6 in {folder} is whole ({folder}/6 is damaged: "
        "meta/metadata: Expecting property name enclosed in double quotes: line 1 "
        "column 2 (char 1)): put a whole one there, or give another --workdir to start "
        "anew; nothing was removed"
    )
    assert contents(workdir) == before


def test_a_config_that_does_not_fit_is_no_damage(copy):
    """It is refused, and no older step is tried."""
    other = {**SHAPES, "new": SHAPES["step"]}
    misfit = pytest.raises(InputError, match="6 does not fit: it lacks new ")
    with checkpoint.Checkpointer(copy()) as saver, misfit:
        saver.restore_newest(other, say=pytest.fail)


def test_what_cannot_be_reached_is_no_damage(copy, monkeypatch):
    """The newest may be whole: the run does not go back behind it."""
    workdir = copy()

    real = checkpoint._handler
    for error, text in (
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (ValueError("UNAVAILABLE: try later [source"), "UNAVAILABLE: try later"),
    ):

        class Handler:
            def restore(self, *_, error=error, **__):
                raise error

        monkeypatch.setattr(checkpoint, "_handler", Handler)
        raises = pytest.raises(InputError)
        with checkpoint.Checkpointer(workdir) as saver, raises as raised:
            saver.restore_newest(SHAPES, say=pytest.fail)
        assert str(raised.value) == (
            f"{workdir}/checkpoints/6 cannot be read (state: {text}); mend it, then "
            "give the same command again"
        )
    monkeypatch.setattr(checkpoint, "_handler", real)
    assert go_on(workdir) == (6, [])


def damages(path, choose: random.Random) -> str:
    """Do something to a file that disks and copies do; what it was."""
    data = bytearray(path.read_bytes())
    kind = choose.choice(["bit", "cut", "zeros", "longer", "noise"])
    at = choose.randrange(len(data))
    if kind == "bit":
        data[at] ^= 1 << choose.randrange(8)
    elif kind == "cut":
        del data[at:]
    elif kind == "longer":
        data += data[at:]
    else:
        end = min(len(data), at + choose.choice([1, 8, 512]))
        noise = choose.randbytes(end - at)
        data[at:end] = noise if kind == "noise" else bytes(end - at)
    path.write_bytes(data)
    return f"{path.name}: {kind} at {at}"


@pytest.mark.slow
@pytest.mark.parametrize("count", [60, pytest.param(3000, marks=pytest.mark.soak)])
def test_random_damage(copy, saved, count):
    """Whatever is restored has the bits of a step that was saved."""
    choose = random.Random(count)
    workdir, seen = copy(), {6: 0, 4: 0}
    newest = workdir / "checkpoints/6"
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    for _ in range(count):
        path = choose.choice(files)
        whole = path.read_bytes()
        what = damages(path, choose)
        step, lines = go_on(workdir)
        assert len(lines) == (step == 4), what
        seen[step] += 1
        path.write_bytes(whole)
    assert seen[4] > count / 8 and seen[6] > count / 8
    print(f"\n{seen}")


@pytest.mark.slow
def test_what_ends_unheard_is_silent(tmp_path, capfd, caplog):
    """Orbax raises one of the failures; none of the others prints a traceback."""
    state = {f"{i}": jnp.full((64, 64), i) for i in range(30)}
    with checkpoint.Checkpointer(tmp_path) as saver:
        saver.save(1, state, {})
    for data in tmp_path.rglob("ocdbt.process_0/d/*"):
        data.write_bytes(data.read_bytes()[:1000])
    for _ in range(10):
        none = pytest.raises(InputError, match="none of the checkpoints 1 in ")
        with checkpoint.Checkpointer(tmp_path) as saver, none:
            saver.restore_newest(state, say=pytest.fail)
        gc.collect()
    assert capfd.readouterr().err == "" and not caplog.records


def test_what_others_leave_unheard_is_said(monkeypatch):
    def raised(error):
        try:
            raise error
        except type(error):
            return error

    def kept(error):
        told = (type(error), error, error.__traceback__) if error else None
        made = logging.LogRecord("asyncio", 40, "x.py", 1, "unheard", (), told)
        return bool(logging.getLogger("asyncio").filter(made))

    assert kept(None) and kept(raised(ValueError("OUT_OF_RANGE")))
    assert not kept(ValueError("OUT_OF_RANGE"))  # made in C++, and never raised
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    for _ in range(2):
        checkpoint_record.silence_unheard()
        hook = sys.unraisablehook
    checkpoint_record.silence_unheard()
    assert sys.unraisablehook is hook  # not wrapped once more at each call
    never = "coroutine '{}' was never awaited"
    mine, orbax = never.format("my_reward"), never.format("_read_array_index_and_put")
    for text in ("Event loop is closed", "something else", mine, orbax):
        sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(text)))
    assert [str(x.exc_value) for x in heard] == ["something else", mine]
    with pytest.warns(RuntimeWarning) as warned:
        checkpoint_record.silence_unheard()  # `warns` has its own filters
        for text in (mine, orbax):
            warnings.warn(text, RuntimeWarning, stacklevel=1)
    assert [str(x.message) for x in warned] == [mine]


def test_a_checkpoint_of_0_2_is_read_by_tools_alone(copy):
    """It has no digests, which a run does not go on without."""
    workdir = copy()
    for step in STEPS:
        file = workdir / f"checkpoints/{step}/meta/metadata"
        file.write_text(json.dumps({"seconds": 1.5}))
    with checkpoint.Checkpointer(workdir, read_only=True) as reader:
        state, meta = reader.restore(6, {"step": SHAPES["step"]}, partial=True)
        assert int(state["step"]) == 6 and meta == {}
    refused = pytest.raises(InputError, match="6 is of limr_jax 0.2, without digests")
    with checkpoint.Checkpointer(workdir) as saver, refused:
        saver.restore_newest(SHAPES, say=pytest.fail)


CONFIG = parse_config(
    {
        "model_type": "qwen3",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "intermediate_size": 24,
        "vocab_size": 384,
        "tie_word_embeddings": True,
    }
)


@pytest.mark.slow
def test_who_looks_at_a_damaged_step_is_told_of_the_others(tmp_path):
    params = quick(partial(transformer.init_params, CONFIG))(jax.random.key(0))
    with checkpoint.Checkpointer(tmp_path, keep=2) as saver:
        for step in (1, 2):
            saver.save(step, {"train": {"params": params}}, {})
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    newest = tmp_path / "checkpoints/2"
    data = max((newest / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    flip(data, 4 * data.stat().st_size)
    with pytest.raises(InputError) as raised:
        trained_policy.load_params(tmp_path, 2, CONFIG, mesh)
    said = str(raised.value)
    assert said.startswith(f"{newest} is damaged: train/params/")
    assert said.endswith(" differs from what was saved; give --step with one of [1]")
    trained_policy.load_params(tmp_path, 1, CONFIG, mesh)


def test_a_step_that_goes_while_it_is_read(copy, monkeypatch):
    """The run that wrote it has saved newer ones meanwhile."""
    workdir = copy()
    read = checkpoint_record.read

    def late(path, *_):
        shutil.rmtree(path)
        return read(path, *_)

    monkeypatch.setattr(checkpoint_record, "read", late)
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    with pytest.raises(InputError) as raised:
        trained_policy.load_params(workdir, 4, CONFIG, mesh)
    assert str(raised.value) == (
        f"{workdir}: the checkpoint of step 4 was removed while it was read, for the "
        "run goes on; give the same command again"
    )
