"""Every step stands once, after any interruption, and on any kind of output."""

import gzip
import io
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from limr_jax import metrics


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
    metrics.Dump(tmp_path / "run", write=False).add(1, rows(1))
    assert not (tmp_path / "run").exists()


def test_a_line_by_hand():
    values = {"reward": 0.4125, "kl": 1.2e-4, "seconds": 3.0, "epoch": 1.5, "other": 9}
    assert metrics.line(7, values, num_steps=120) == (
        "step   7/120  epoch  1.50  reward  0.412  kl  1.2e-04  seconds   3.00"
    )
    assert metrics.line(
        7, {"accuracy": 0.5, "kl": None, "tokens_per_second": 12345}
    ) == ("step     7  accuracy 50.00%  kl        -  tokens/s   12,345")
    other = dict(values, reward=-0.5, kl=3e-12, seconds=123.4, epoch=12.25)
    assert len(metrics.line(99, other, num_steps=120)) == len(
        metrics.line(7, values, num_steps=120)
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_and_elsewhere(capsys):
    terminal, file, quick = Terminal(), io.StringIO(), io.StringIO()
    with metrics.progress("rollout", 4, unit="wave", stream=terminal) as advance:
        for _ in range(4):
            advance()
    assert "rollout" in terminal.getvalue() and "\r" in terminal.getvalue()
    with metrics.progress("rollout", 4, unit="wave", every=0, stream=file) as advance:
        advance()
        advance(3)
    assert file.getvalue() == (
        "rollout 1/4 waves, 0 s, 0 s left\nrollout 4/4 waves, 0 s, 0 s left\n"
    )
    with metrics.progress("rollout", stream=quick) as advance:
        advance()
    assert quick.getvalue() == ""
    metrics.say("step 1")
    assert capsys.readouterr().out == "step 1\n"


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
    dump = metrics.Dump(tmp_path)
    for step in (1, 2, 3):
        dump.add(step, rows(step))
    found = list(metrics.read_dump(tmp_path))
    assert found == [{"step": step} | row for step in (1, 2, 3) for row in rows(step)]
    assert {row["step"] for row in metrics.read_dump(tmp_path, steps={1, 3})} == {1, 3}
    (segment,) = (tmp_path / "rollouts").iterdir()
    assert len(gzip.decompress(segment.read_bytes()).splitlines()) == 12
    assert list(metrics.read_dump(tmp_path / "nowhere")) == []
    # A member longer than the pieces that it is read in.
    noise = np.random.default_rng(0).bytes(200_000).hex()
    dump.add(4, [dict(rows(4)[0], prompt=noise)])
    dump.add(5, rows(5))
    assert [row["prompt"] for row in metrics.read_dump(tmp_path, steps={4})] == [noise]
    assert len(list(metrics.read_dump(tmp_path))) == 17
    metrics.Dump(tmp_path / "few", rows_per_step=2).add(1, rows(1))
    assert [row["sample"] for row in metrics.read_dump(tmp_path / "few")] == [0, 1]


@pytest.mark.parametrize("max_bytes", [2**28, 2500])
def test_a_resumed_dump_equals_the_unbroken_one(tmp_path, max_bytes):
    def contents(folder):
        return {
            path.name: path.read_bytes() for path in (folder / "rollouts").iterdir()
        }

    unbroken = metrics.Dump(tmp_path / "a", max_bytes=max_bytes)
    for step in range(1, 30):
        unbroken.add(step, rows(step))
    for torn in (0, 1, 40):
        folder = tmp_path / str(torn)
        dump = metrics.Dump(folder, max_bytes=max_bytes)
        for step in range(1, 26):
            dump.add(step, rows(step))
        last = sorted((folder / "rollouts").iterdir())[-1]
        last.write_bytes(last.read_bytes()[: -torn or None])
        steps = [row["step"] for row in metrics.read_dump(folder)]
        assert steps[-1] == (24 if torn else 25)
        dump = metrics.Dump(folder, step=23, max_bytes=max_bytes)
        assert [row["step"] for row in metrics.read_dump(folder)][-1] == 23
        for step in range(24, 30):
            dump.add(step, rows(step))
        assert contents(folder) == contents(tmp_path / "a")


def test_a_dump_stays_within_its_bound_and_keeps_the_newest(tmp_path):
    dump = metrics.Dump(tmp_path, max_bytes=4000)
    for step in range(1, 101):
        dump.add(step, rows(step))
        size = sum(path.stat().st_size for path in (tmp_path / "rollouts").iterdir())
        assert size <= 4000
    steps = sorted({row["step"] for row in metrics.read_dump(tmp_path)})
    assert steps == list(range(steps[0], 101)) and 10 < len(steps) < 40
    # Nothing at all, where that is asked for.
    metrics.Dump(tmp_path / "none", max_bytes=0).add(1, rows(1))
    assert not (tmp_path / "none").exists()
    # A fresh start in a folder that a killed one left.
    metrics.Dump(tmp_path, step=0)
    assert list(metrics.read_dump(tmp_path)) == []
