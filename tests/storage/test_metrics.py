"""Every step stands once, after any interruption, and on any kind of output."""

import contextlib
import gzip
import os
import resource
import shutil
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from limr_jax.errors import InputError
from limr_jax.storage import metrics, rollout_dump


def events(workdir):
    """{(tag, step): value} of every event file: the records as TFRecord has them."""
    found = {}
    for path in (workdir / "tensorboard").iterdir():
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                assert (value.tag, event.step) not in found
                found[value.tag, event.step] = value.simple_value
    return found


def test_steps_and_evaluations_stand_in_both_forms(tmp_path):
    with metrics.Metrics(tmp_path) as log:
        first = log.step(
            1, {"reward": jnp.float32(0.5), "kl": np.float32("nan"), "n": 3}
        )
        log.step(2, {"reward": 0.25, "seconds": {"rollout": 1.5}, "ids": ["a"]})
        log.evaluation(2, {"accuracy": 0.75})
        # Each line is there at once.
        assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
    assert first == {"step": 1, "reward": 0.5, "kl": None, "n": 3}
    assert list(metrics.read_metrics(tmp_path)) == [
        first,
        {"step": 2, "reward": 0.25, "seconds": {"rollout": 1.5}, "ids": ["a"]},
    ]
    assert list(metrics.read_metrics(tmp_path, metrics.EVALS)) == [
        {"step": 2, "accuracy": 0.75}
    ]
    found = events(tmp_path)
    assert np.isnan(found.pop(("train/kl", 1)))
    assert found == {
        ("train/reward", 1): 0.5,
        ("train/n", 1): 3.0,
        ("train/reward", 2): 0.25,
        ("train/seconds/rollout", 2): 1.5,
        ("eval/accuracy", 2): 0.75,
    }


def test_a_resumed_run_has_each_step_once(tmp_path):
    with metrics.Metrics(tmp_path) as log:
        log.evaluation(0, {"accuracy": 0.1})
        for step in range(1, 6):
            log.step(step, {"reward": step})
        log.evaluation(4, {"accuracy": 0.4})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "rew')
    with metrics.Metrics(tmp_path, step=3) as log:
        assert [row["step"] for row in metrics.read_metrics(tmp_path)] == [1, 2, 3]
        # What was evaluated before the checkpoint's step need not be again.
        assert log.evaluated(0) == {"step": 0, "accuracy": 0.1}
        assert log.evaluation(0, {"accuracy": 9}) == {"step": 0, "accuracy": 0.1}
        assert log.evaluated(4) is None
        log.step(4, {"reward": 4})
        log.step(5, {"reward": 5})
        log.evaluation(4, {"accuracy": 0.4})
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    assert [row["step"] for row in metrics.read_metrics(tmp_path, metrics.EVALS)] == [
        0,
        4,
    ]
    assert sorted(step for tag, step in events(tmp_path) if tag == "train/reward") == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("torn", ['{"step": 2, "re', '{"step": 2}', "\0\0\0\n", "3\n"])
def test_a_torn_line_is_dropped(tmp_path, torn):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + torn)
    with metrics.Metrics(tmp_path, step=9) as log:
        log.step(2, {})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_only_the_writing_process_writes(tmp_path):
    with metrics.Metrics(tmp_path / "run", write=False) as log:
        assert log.step(1, {"reward": 1.0}) == {"step": 1, "reward": 1.0}
        log.evaluation(1, {"accuracy": 1.0})
        assert log.evaluated(1) == {"step": 1, "accuracy": 1.0}
    rollout_dump.Dump(tmp_path / "run", write=False).add(1, rows(1))
    assert not (tmp_path / "run").exists()


@contextlib.contextmanager
def full_disk(size):
    """No file grows beyond so many bytes. Python ignores the signal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FULL = "cannot be written (File too large); "


def test_a_full_disk_ends_nothing_and_lines_wait_for_room(tmp_path, capsys):
    """A line that fits in part is taken back, and the order of lines is kept."""
    with metrics.Metrics(tmp_path) as log:
        log.step(1, {"reward": 0.5})
        with full_disk((tmp_path / "metrics.jsonl").stat().st_size + 9):
            for step in (2, 3):
                assert log.step(step, {"reward": step})["step"] == step
                log.evaluation(step, {"accuracy": 0.25, "text": "x" * 99})
            assert [x["step"] for x in metrics.read_metrics(tmp_path)] == [1]
            assert log.evaluated(3)["accuracy"] == 0.25
        log.step(4, {"reward": 4})
    assert [x["step"] for x in metrics.read_metrics(tmp_path)] == [1, 2, 3, 4]
    steps = [x["step"] for x in metrics.read_metrics(tmp_path, metrics.EVALS)]
    assert steps == [2, 3]
    # The event file is the largest, so it fails first; each log says so once.
    waits = "its lines wait in memory until there is room"
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {tmp_path}/tensorboard {FULL}TensorBoard lacks these steps until "
        "the run is taken up anew",
        f"warning: {tmp_path}/metrics.jsonl {FULL}{waits}",
        f"warning: {tmp_path}/evals.jsonl {FULL}{waits}",
    ]
    assert {step for _, step in events(tmp_path)} == {1, 4}
    with metrics.Metrics(tmp_path, step=4):
        assert {step for _, step in events(tmp_path)} == {1, 2, 3, 4}


def test_lines_that_never_find_room_are_counted(tmp_path, capsys):
    with metrics.Metrics(tmp_path) as log, full_disk(9):
        log.step(1, {"reward": 0.5})
        log.step(2, {"reward": 0.5})
        log.close()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"warning: {tmp_path}/metrics.jsonl lacks 2 of its lines: no room"
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_tensorboard_that_cannot_be_written_hangs_nothing(tmp_path, capsys):
    """tensorboardX's queue of a thousand is full after so many steps."""
    with metrics.Metrics(tmp_path) as log:
        shutil.rmtree(tmp_path / "tensorboard")
        (tmp_path / "tensorboard").write_text("a file in its place")
        for step in range(1, 1101):
            log.step(step, {"reward": 0.5})
    assert len([*metrics.read_metrics(tmp_path)]) == 1100
    assert capsys.readouterr().err.count("warning: ") == 1


def test_a_dump_without_room_leaves_steps_out(tmp_path, capsys):
    dump = rollout_dump.Dump(tmp_path)
    dump.add(1, rows(1))
    (segment,) = (tmp_path / "rollouts").iterdir()
    whole = segment.read_bytes()
    with full_disk(len(whole) + 20):
        dump.add(2, rows(2))
        dump.add(3, rows(3))
        assert segment.read_bytes() == whole
    dump.add(4, rows(4))
    assert {row["step"] for row in rollout_dump.read_dump(tmp_path)} == {1, 4}
    assert capsys.readouterr().err == (
        f"warning: {tmp_path}/rollouts {FULL}steps that do not fit are left out of it\n"
    )


def test_a_dump_that_is_needed_ends_with_a_line(tmp_path):
    """An evaluation's, which is nothing without its responses."""
    dump = rollout_dump.Dump(tmp_path, needed=True)
    dump.add(1, rows(1))
    (segment,) = (tmp_path / "rollouts").iterdir()
    whole = segment.read_bytes()
    with full_disk(len(whole) + 20), pytest.raises(InputError) as raised:
        dump.add(2, rows(2))
    assert segment.read_bytes() == whole
    assert str(raised.value) == (
        f"{tmp_path}/rollouts: cannot be written (File too large); check path, rights "
        "and room"
    )


def test_only_what_a_run_wrote_is_removed(tmp_path):
    """Other files in its folders stay."""
    for name in ("tensorboard/mine.txt", "rollouts/mine.jsonl.gz", "rollouts/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    dump = rollout_dump.Dump(tmp_path)
    for step in (1, 2):
        with metrics.Metrics(tmp_path, step=step - 1) as log:
            log.step(step, {"reward": 0.5})
        dump.add(step, rows(step))
    rollout_dump.Dump(tmp_path, step=0)
    names = sorted(x.name for x in tmp_path.rglob("*") if x.is_file())
    events_there = [name for name in names if name.startswith("events.out.tfevents.")]
    assert len(events_there) == 1
    assert [x for x in names if x not in events_there] == (
        ["a.txt", "evals.jsonl", "metrics.jsonl", "mine.jsonl.gz", "mine.txt"]
    )


def test_a_dump_shows_no_terminal_what_it_would_obey(tmp_path):
    """Control characters and overrides of direction are escapes; letters are not."""
    evil = "\x1b[31m \x9b2J \x7f \u202eabc\u2066 \u2028 \ud800 \U000e0041 \ufeff"
    text = "½ \u3000 é 四 \u200d ω"  # a wide space and a joiner are writing
    rollout_dump.Dump(tmp_path).add(1, [{"id": evil, "response": evil + text}])
    (row,) = rollout_dump.read_dump(tmp_path)
    assert row == {"step": 1, "id": evil, "response": evil + text}
    (segment,) = (tmp_path / "rollouts").iterdir()
    seen = gzip.decompress(segment.read_bytes()).decode()
    assert text in seen
    assert not [c for c in seen[:-1] if c in evil and c not in " [31m2Jabc"]
    assert "\\u001b[31m \\u009b2J \\u007f \\u202eabc" in seen
    assert "\\udb40\\udc41" in seen  # beyond 16 bits: a pair


DAMAGED_LINES = [
    b"\0\0\0\n",
    b'{"step": 2, "rew\n',
    b"3\n",
    b'{"step": true}\n',
    b'{"step": "2"}\n',
    b'{"step": ' + b"9" * 5000 + b"}\n",
    b'{"step": 2, "x": ' + b"[" * 10**5 + b"\n",
    b"\xff\xfe\n",
    b"x" * (2**24 + 5) + b"\n",
    b"x" * 2**24 + b'{"step": 2}\n',  # what is behind the limit is no line
    b"x" * (3 * 2**24) + b"\n",
]


@pytest.mark.parametrize("line", DAMAGED_LINES, ids=range(len(DAMAGED_LINES)))
def test_a_damaged_line_in_the_middle_costs_no_other(tmp_path, line):
    whole = [b'{"step": 1}\n', b'{"step": 3}\n']
    (tmp_path / "metrics.jsonl").write_bytes(line.join(whole))
    assert [row["step"] for row in metrics.read_metrics(tmp_path)] == [1, 3]
    assert metrics.damaged_lines(tmp_path) == 1
    metrics.Metrics(tmp_path, step=3).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(whole)
    assert metrics.damaged_lines(tmp_path) == 0


@pytest.mark.parametrize("place", ["metrics.jsonl", "rollouts/00000001.jsonl.gz"])
def test_a_pipe_in_a_files_place_is_not_waited_for(tmp_path, place):
    (tmp_path / "rollouts").mkdir()
    os.mkfifo(tmp_path / place)
    for read in (metrics.read_metrics, metrics.damaged_lines, rollout_dump.read_dump):
        if ("rollouts" in place) == (read is rollout_dump.read_dump):
            with pytest.raises(InputError) as raised:
                list(read(tmp_path))
            assert str(raised.value) == (
                f"{tmp_path / place} is no file, but a pipe or a device; remove it"
            )
    with pytest.raises(InputError):  # where a run goes on
        metrics.Metrics(tmp_path, step=1)
        rollout_dump.Dump(tmp_path, step=1)


def test_a_dump_that_cannot_be_looked_at_is_no_empty_one(tmp_path):
    (tmp_path / "rollouts").symlink_to("rollouts")
    with pytest.raises(InputError) as raised:
        list(rollout_dump.read_dump(tmp_path))
    assert str(raised.value) == (
        f"{tmp_path} cannot be read ([Errno 40] Too many levels of symbolic links: "
        f"'{tmp_path}/rollouts'); mend it, then give the same command again"
    )


def test_a_member_that_holds_no_step_ends_its_segment(tmp_path):
    (tmp_path / "rollouts").mkdir()
    segment = tmp_path / "rollouts/00000001.jsonl.gz"
    for text in (b"[]\n", b'{"id": 1}\n', b"\xff\n", b"", b'{"step": 1}\n{"st'):
        segment.write_bytes(gzip.compress(b'{"step": 1}\n') + gzip.compress(text))
        assert [*rollout_dump.read_dump(tmp_path)] == [{"step": 1}]


def test_a_member_that_swells_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(rollout_dump, "_LARGEST", 10**6)
    rollout_dump.Dump(tmp_path).add(1, [{"id": "a", "response": "0" * 10**7}])
    assert [*rollout_dump.read_dump(tmp_path)] == []


def rows(step, count=4):
    return [
        {
            "id": f"p{step % 3}",
            "sample": sample,
            "prompt": "1 + 1 =",
            "response": f"½ of {step}\n\ud800 \\boxed{{{sample}}}",
            "reward": np.float32(0.5),
            "correct": np.bool_(True),
            "valid": True,
            "truncated": False,
        }
        for sample in range(count)
    ]


def test_a_dump_gives_back_the_text(tmp_path):
    dump = rollout_dump.Dump(tmp_path)
    for step in (1, 2, 3):
        dump.add(step, rows(step))
    found = list(rollout_dump.read_dump(tmp_path))
    assert found == [{"step": step} | row for step in (1, 2, 3) for row in rows(step)]
    assert {row["step"] for row in rollout_dump.read_dump(tmp_path, steps={1, 3})} == {
        1,
        3,
    }
    (segment,) = (tmp_path / "rollouts").iterdir()
    assert len(gzip.decompress(segment.read_bytes()).splitlines()) == 12
    assert list(rollout_dump.read_dump(tmp_path / "nowhere")) == []
    # A member longer than the pieces that it is read in.
    noise = np.random.default_rng(0).bytes(200_000).hex()
    dump.add(4, [dict(rows(4)[0], prompt=noise)])
    dump.add(5, rows(5))
    assert [row["prompt"] for row in rollout_dump.read_dump(tmp_path, steps={4})] == [
        noise
    ]
    assert len(list(rollout_dump.read_dump(tmp_path))) == 17
    rollout_dump.Dump(tmp_path / "few", rows_per_step=2).add(1, rows(1))
    assert [row["sample"] for row in rollout_dump.read_dump(tmp_path / "few")] == [0, 1]


@pytest.mark.parametrize("max_bytes", [2**28, 2500])
def test_a_resumed_dump_equals_the_unbroken_one(tmp_path, max_bytes):
    def contents(folder):
        return {
            path.name: path.read_bytes() for path in (folder / "rollouts").iterdir()
        }

    unbroken = rollout_dump.Dump(tmp_path / "a", max_bytes=max_bytes)
    for step in range(1, 30):
        unbroken.add(step, rows(step))
    for torn in (0, 1, 40):
        folder = tmp_path / str(torn)
        dump = rollout_dump.Dump(folder, max_bytes=max_bytes)
        for step in range(1, 26):
            dump.add(step, rows(step))
        last = sorted((folder / "rollouts").iterdir())[-1]
        last.write_bytes(last.read_bytes()[: -torn or None])
        steps = [row["step"] for row in rollout_dump.read_dump(folder)]
        assert steps[-1] == (24 if torn else 25)
        dump = rollout_dump.Dump(folder, step=23, max_bytes=max_bytes)
        assert [row["step"] for row in rollout_dump.read_dump(folder)][-1] == 23
        for step in range(24, 30):
            dump.add(step, rows(step))
        assert contents(folder) == contents(tmp_path / "a")


def test_a_dump_stays_within_its_bound_and_keeps_the_newest(tmp_path):
    dump = rollout_dump.Dump(tmp_path, max_bytes=4000)
    for step in range(1, 101):
        dump.add(step, rows(step))
        size = sum(path.stat().st_size for path in (tmp_path / "rollouts").iterdir())
        assert size <= 4000
    steps = sorted({row["step"] for row in rollout_dump.read_dump(tmp_path)})
    assert steps == list(range(steps[0], 101)) and 10 < len(steps) < 40
    # Nothing at all, where that is asked for.
    rollout_dump.Dump(tmp_path / "none", max_bytes=0).add(1, rows(1))
    assert not (tmp_path / "none").exists()
    # A fresh start in a folder that a killed one left.
    rollout_dump.Dump(tmp_path, step=0)
    assert list(rollout_dump.read_dump(tmp_path)) == []


@pytest.mark.parametrize("epoch_steps", [1, 7, 41, 47, 61, 4096])
def test_an_epoch_is_finished_when_its_last_step_is(epoch_steps):
    """As fp32 has it, rounded either way, and a last digit below."""
    for whole in (1, 2, 3, 100):
        below = np.nextafter(np.float32(whole), np.float32(0))
        assert metrics.whole_epochs(float(below)) == whole
        assert metrics.whole_epochs(float(whole)) == whole
        before = np.float32(whole - 1 / epoch_steps)
        assert metrics.whole_epochs(float(before)) == whole - 1
