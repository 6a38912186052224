"""What a user gets wrong: one line on stderr, exit code 2, nothing done."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time

import jax
import pytest
from tiny_run import MODEL, ROOT, arguments, configure, set_up, write_problems

from limr_jax import config, run, text
from limr_jax.errors import InputError

MAIN = runpy.run_path(str(ROOT / "launch/tpu.py"))["main"]
ROW = {"id": "a", "problem": "1+1=", "answer": "2"}
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: (
        compiled.append(seconds) if "backend_compile" in event else None
    )
)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Ten problems."""
    return write_problems(tmp_path_factory.mktemp("problems") / "train.jsonl", 10)


@pytest.fixture
def launch(train, tmp_path, monkeypatch, capsys):
    """(fields, workdir=None) → exit code, stdout, stderr of launch/tpu.py."""

    def start(fields, *flags):
        fields = {"data.train": train, "mesh.tensor": 2, "mesh.fsdp": 4} | fields
        argv = [*arguments(fields), "--workdir", str(tmp_path / "run"), *flags]
        monkeypatch.setattr(sys, "argv", ["launch/tpu.py", *argv])
        with pytest.raises(SystemExit) as exit:
            config.run_main(MAIN)
        return exit.value.code, *capsys.readouterr()

    return start


@pytest.fixture(scope="module", autouse=True)
def keys(train):
    """Every set-up makes the keys of its seed, once a process; that compiles."""
    fields = {"data.train": train, "mesh.tensor": 2, "mesh.fsdp": 4}
    run.set_up(config.load(arguments(fields))[0])


@pytest.fixture
def refused(launch, tmp_path):
    """Launches; checks all that holds of a refusal; returns the line."""

    def start(fields):
        before = len(compiled)
        code, out, err = launch(fields)
        assert code == 2
        assert err.startswith("error: ") and err.count("\n") == 1, err
        assert out == ""
        assert len(compiled) == before
        assert not (tmp_path / "run").exists()
        return err

    return start


def test_a_dry_run_tells_and_touches_nothing(launch, tmp_path, train):
    start = time.monotonic()
    code, out, err = launch({}, "--dry_run")
    assert time.monotonic() - start < 30  # 1 s; many times that on a busy machine
    assert not code and err == ""
    assert "prompts_per_step: 4" in out
    assert "mesh: data 1 x fsdp 4 x tensor 2 on cpu" in out
    assert "reference: none" in out
    assert f"problems: 10 of {train}" in out
    embedding, attention, mlp = 16, 16 * 4 * (4 + 2 + 2 + 4) + 4 * 8, 3 * 16 * 32
    tokenizer = text.load_tokenizer(ROOT / "limr_jax/assets/arithmetic")
    vocabulary = -(-tokenizer.vocab_size // 128) * 128
    layers = 2 * (attention + mlp + 2 * 16)
    assert f"policy: {vocabulary * embedding + layers + 16:,} parameters" in out
    assert list(tmp_path.iterdir()) == []


PPO = {"algorithm": "ppo", "critic.learning_rate": 0.1}
JEPO = {"algorithm": "jepo"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"promts_per_step": 4}, ["promts_per_step", "nearest is prompts_per_step"]),
        ({"num_steps": "ten"}, ["num_steps=ten", "whole number"]),
        ({"num_steps": 0}, ["num_steps=0", "at least 1"]),
        ({"seed": -1}, ["seed=-1", "4294967295"]),
        ({"seed": 2**32}, ["seed=4294967296", "4294967295"]),
        ({"checkpoint.every": 0}, ["checkpoint.every=0", "at least 1"]),
        ({"evaluation.samples": -1}, ["evaluation.samples=-1"]),
        ({"data.train": ""}, ["data.train", "empty"]),
        ({"data.train": "nowhere.jsonl"}, ["nowhere.jsonl", "no such file"]),
        ({"data.train": "/proc/self/mem"}, ["/proc/self/mem", "cannot be read"]),
        ({"data.train": "nosuchset:train"}, ["nosuchset"]),
        ({"data.eval": "nowhere.jsonl"}, ["nowhere.jsonl", "no such file"]),
        ({"data.too_long": "cut"}, ["data.too_long='cut'", "leave_out", "refuse"]),
        (
            {"data.too_long": "refuse", "rollout.max_prompt_length": 2},
            ["exceed", "train/0", "raise the limit"],
        ),
        ({"tokenizer": "nowhere"}, ["nowhere", "no such file"]),
        ({"tokenizer": ""}, ["tokenizer", "empty"]),
        ({"mesh.data": 3}, ["data=3 x fsdp=4 x tensor=2", "8 devices"]),
        ({"mesh.data": -1, "mesh.fsdp": -1}, ["fsdp=-1", "one of them"]),
        ({"mesh.fsdp": 1, "mesh.tensor": 8}, ["tensor=8", "4 heads"]),
        ({"mesh.fsdp": 8, "mesh.tensor": 1}, ["prompts_per_step=4", "8 devices"]),
        ({"prompts_per_step": 12}, ["prompts_per_step=12", "10 problems"]),
        ({"sampler.name": "lym"}, ["sampler.name='lym'", "'lim'"]),
        (
            {"sampler.name": "lim", "sampler.lim.weights": "sofmax"},
            ["sampler.lim.weights='sofmax'", "'softmax'"],
        ),
        ({"sampler.lim.warmup_epochs": 0}, ["warmup_epochs=0", "at least 1"]),
        ({"sampler.lim.floor": 1.5}, ["sampler.lim.floor=1.5", "from 0 to 1"]),
        (
            {"sampler.lim.scores": "scores.jsonl"},
            ["sampler.lim.scores=scores.jsonl", "sampler.name=uniform", "empty"],
        ),
        ({"sampler.lim.temperature": 0}, ["sampler.lim.temperature=0.0", "above 0"]),
        ({"sampler.dynamic.max_rounds": 0}, ["max_rounds=0", "at least 1"]),
        ({"sampler.dynamic.max_age": 2}, ["max_age=2", "from 0 to 1"]),
        (
            {"sampler.name": "dynamic"},
            ["sampler.dynamic.max_rounds=4", "prompts_per_step=4", "has 10"],
        ),
        (
            {"sampler.name": "dynamic", "algorithm": "jepo"},
            ["sampler.name=dynamic", "algorithm=jepo"],
        ),
        (
            {"sampler.name": "dynamic", "reward": "0.2*my.module.brevity, math"},
            ["sampler.name=dynamic", "my.module.brevity shapes", "verifier"],
        ),
        (
            {"sampler.name": "dynamic", "reward": "0.2*my.module.brevity"},
            ["sampler.name=dynamic", "my.module.brevity shapes", "verifier"],
        ),
        (
            {"sampler.name": "dynamic", "group_size": 1, "algorithm": "reinforce_pp"},
            ["sampler.name=dynamic", "group_size=1"],
        ),
        ({"sampler.cdas.weights": "papr"}, ["sampler.cdas.weights='papr'", "'paper'"]),
        ({"sampler.mopps.pool": 0}, ["sampler.mopps.pool=0", "at least 1"]),
        ({"sampler.mopps.prior": 0}, ["sampler.mopps.prior=0.0", "above 0"]),
        ({"sampler.greso.floor": -1}, ["sampler.greso.floor=-1.0", "from 0 to 1"]),
        (
            {"sampler.name": "curriculum", "sampler.curriculum.column": "levle"},
            ["sampler.curriculum.column='levle'", "level"],
        ),
        (
            {"sampler.name": "curriculum", "sampler.curriculum.minimum": 2},
            ["sampler.curriculum.minimum=2", "0 problems", "prompts_per_step=4"],
        ),
        (
            {"sampler.name": "adarft"},
            ["sampler.adarft.column='difficulty'", "no such column"],
        ),
        ({"algorithm": "grop"}, ["algorithm='grop'", "'grpo'"]),
        ({"loss_normaliser": "tokens"}, ["loss_normaliser='tokens'", "'token'"]),
        ({"kl.estimator": "k4"}, ["kl.estimator='k4'"]),
        ({"kl.placement": "los"}, ["kl.placement='los'", "'loss'"]),
        ({"kl.coefficient": -0.1}, ["kl.coefficient=-0.1", "0 or more"]),
        ({"kl.coefficient": 1, "kl.estimator": "k1"}, ["k1", "k2 or k3"]),
        ({"rollout.slots": 5}, ["rollout.slots=5", "multiple", "4 devices"]),
        ({"rollout.slots": -4}, ["rollout.slots=-4", "0 is all"]),
        ({"micro_batch_rows": 3}, ["micro_batch_rows=3", "8 rollouts"]),
        ({"row_responses": 3}, ["row_responses=3", "1 to group_size=2"]),
        ({"minibatches_per_step": 3}, ["minibatches_per_step=3", "2 rollouts"]),
        ({"minibatches_per_step": 0}, ["minibatches_per_step=0", "at least 1"]),
        (
            {"critic.learning_rate": 0.1, "algorithm": "rloo"},
            ["critic.learning_rate=0.1", "rloo", "no critic"],
        ),
        ({"algorithm": "ppo"}, ["critic.learning_rate=0", "above 0"]),
        (PPO | {"filter.tau": 0}, ["filter.tau=0", "ppo"]),
        (PPO | {"critic.lam": 1.5}, ["critic.lam=1.5", "0 to 1"]),
        (PPO | {"critic.value_clip": 0}, ["critic.value_clip=0"]),
        ({"kl.target": 0.1}, ["kl.target=0.1", "kl.coefficient=0"]),
        ({"reward": "none"}, ["reward=none", "algorithm=grpo", "jepo"]),
        (
            JEPO | {"reward": "none", "sampler.name": "lim"},
            ["sampler.name=lim", "reward=none", "uniform"],
        ),
        (
            JEPO | {"reward": "none", "jepo.semi_verifiable": True},
            ["jepo.semi_verifiable=True", "reward=none", "verifier"],
        ),
        ({"jepo.semi_verifiable": True}, ["jepo.semi_verifiable=True", "grpo"]),
        (JEPO | {"jepo.estimator": "two_sample"}, ["'two_sample'", "'one_sample'"]),
        (JEPO | {"jepo.beta_sup": -1}, ["jepo.beta_sup=-1", "0 or more"]),
        (JEPO | {"filter.tau": 0}, ["filter.tau=0", "jepo"]),
        (JEPO | {"loss_normaliser": "sequence"}, ["loss_normaliser=sequence", "jepo"]),
        (JEPO | {"group_size": 1}, ["group_size=1", "jepo"]),
        ({"kl.coefficient": 0.1, "kl.gain": 0}, ["kl.gain=0", "above 0"]),
        ({"rollout.temperature": 0}, ["rollout.temperature=0", "above 0"]),
        ({"rollout.top_p": 0}, ["rollout.top_p=0", "out of range"]),
        ({"rollout.max_response_length": 0}, ["rollout.max_response_length=0"]),
        ({"group_size": 1}, ["group_size=1", "reinforce_pp"]),
        ({"reward": "tokn"}, ["tokn"]),
        ({"reward": "no.such.function"}, ["no.such.function"]),
        ({"reward": "judge"}, ["reward=judge", "judge.init"]),
        ({"judge.init": "nowhere"}, ["judge.init=nowhere", "reward=token"]),
        ({"reward": "math", "judge.init": "nowhere"}, ["nowhere", "no such file"]),
        ({"judge.max_length": 0}, ["judge.max_length=0", "at least 1"]),
        ({"answer_phrase": ""}, ["answer_phrase=''", "no token"]),
        ({"optimizer.clip_norm": -1}, ["optimizer.clip_norm=-1.0", "at least 0"]),
        ({"optimizer.learning_rate": -1}, ["optimizer.learning_rate=-1.0"]),
        ({"optimizer.learning_rate": "inf"}, ["learning_rate=inf", "finite"]),
        ({"optimizer.b1": 2}, ["optimizer.b1=2.0", "below 1"]),
        ({"optimizer.epsilon": 0}, ["optimizer.epsilon=0.0", "above 0"]),
        ({"optimizer.decay_to": 2}, ["optimizer.decay_to=2.0", "from 0 to 1"]),
        (
            {"optimizer.warmup_steps": 5, "optimizer.decay_steps": 5},
            ["decay_steps=5", "more than", "warmup_steps=5"],
        ),
        ({"clip.low": -3}, ["clip.low=-3.0", "from 0 to 1"]),
        ({"clip.high": -3}, ["clip.high=-3.0", "at least 0"]),
        ({"grader.wall_seconds": 0}, ["grader.wall_seconds=0.0", "above 0"]),
        ({"grader.cpu_seconds": -1}, ["grader.cpu_seconds=-1.0", "above 0"]),
        ({"grader.memory_mib": 0}, ["grader.memory_mib=0", "at least 1"]),
        ({"overlong.weight": -1}, ["overlong.weight=-1.0", "at least 0"]),
        ({"reward": ".a.b"}, ["reward function '.a.b'", "give module.name"]),
        ({"model.width": 0}, ["model.width=0", "model.mlp_width"]),
        ({"model.width": -16}, ["model.width=-16", "at least 0"]),
        ({"model.kv_heads": 3}, ["4 heads over 3 kv heads"]),
        ({"model.head_dim": 3}, ["head_dim", "3", "even"]),
        ({"model.vocab_size": 100}, ["vocabulary of 100", "smaller"]),
        ({"model.architecture": "qwen7"}, ["qwen7", "qwen2"]),
        ({"model.dtype": "float8"}, ["model.dtype='float8'"]),
        ({"model.attention": "flash"}, ["model.attention='flash'"]),
        ({"model.init": "nowhere"}, ["nowhere", "not a checkpoint"]),
    ],
    ids=lambda value: (
        ",".join(f"{k}={x}" for k, x in value.items())
        if isinstance(value, dict)
        else ""
    ),
)
def test_a_wrong_setting(refused, fields, said):
    line = refused(fields)
    for part in said:
        assert part in line, line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", ["holds no problem"]),
        (b"\n\n", ["holds no problem"]),
        (b'{"id": "a\xff"}\n', [":1", "not UTF-8", "0xff"]),
        (json.dumps(ROW).encode() + b"\n{broken\n", [":2", "not JSON"]),
        (b"[1, 2]\n", [":1", "not an object"]),
        (b'{"id": "a", "problem": "1+1="}\n', [":1", "'answer' is missing"]),
        (b'{"id": "a", "answer": "2"}\n', [":1", "'problem' is missing"]),
        (b'{"problem": "1", "answer": "2"}\n', [":1", "'id' is missing"]),
        ((json.dumps(ROW) + "\n").encode() * 2, [":2", "'a'", ":1"]),
        (json.dumps(ROW | {"level": [1]}).encode(), [":1", "level [1]"]),
    ],
)
def test_a_wrong_file(refused, tmp_path_factory, content, said):
    path = tmp_path_factory.mktemp("wrong") / "wrong.jsonl"
    path.write_bytes(content)
    line = refused({"data.train": path})
    assert str(path) in line
    for part in said:
        assert part in line, line


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def grade(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        (
            "def grade(prompts, completions, **columns): return [0] * len(prompts)",
            "column 'prompts'",
        ),
    ],
)
def test_a_reward_of_the_users(refused, tmp_path_factory, monkeypatch, source, said):
    """Code that does not load, and a column that stands for what it gets already."""
    folder = tmp_path_factory.mktemp("graders")
    (folder / "grader_that_fails.py").write_text(source + "\n")
    rows = [ROW | {"id": str(i), "prompts": "x"} for i in range(8)]
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    line = refused({"data.train": path, "reward": "grader_that_fails.grade"})
    sys.modules.pop("grader_that_fails", None)
    assert said in line and "grader_that_fails" in line


def test_cdas_with_one_problem_has_nothing_to_align(train):
    """On one device: on more a batch has more problems."""
    before = len(compiled)
    alone = configure(f"{train}[:1]", sampler__name="cdas", prompts_per_step=1)
    with pytest.raises(InputError, match="sampler.name=cdas with 1 problem"):
        set_up(alone)
    assert len(compiled) == before


def test_no_reference_answer_to_learn_from(refused, tmp_path_factory):
    path = tmp_path_factory.mktemp("unanswered") / "unanswered.jsonl"
    rows = [ROW | {"id": str(i), "answer": "2" if i % 2 else ""} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = refused(JEPO | {"data.train": path})
    assert "4 of 8 problems" in line and "first '0'" in line


def test_held_out_problems_in_the_training_set(refused, train):
    assert "10 of 10 problems" in refused({"data.eval": train})


@pytest.fixture
def checkpoint(shared, tmp_path_factory):
    """A copy of a real checkpoint, and the fields that leave its dimensions alone."""
    copy = tmp_path_factory.mktemp("checkpoint") / "qwen2"
    shutil.copytree(shared / "models/qwen2-tiny", copy)
    return copy, {"model.init": copy, **{f"model.{name}": 0 for name in MODEL}}


def test_a_checkpoint_that_does_not_fit(refused, checkpoint):
    copy, fields = checkpoint
    width = json.loads((copy / "config.json").read_text())["hidden_size"]
    line = refused(fields | {"model.width": 2 * width})
    tensor = r"tensor model\.layers\.0\.self_attn\.k_proj\.weight"
    shapes = (
        rf"has shape \[32, {width}\], the configuration asks for \[32, {2 * width}\]"
    )
    assert re.search(f"{tensor} {shapes}", line)


def test_a_checkpoint_that_is_damaged(refused, checkpoint):
    copy, fields = checkpoint
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "truncated" in refused(fields)
    weights.unlink()
    assert "is not a checkpoint" in refused(fields)
    (copy / "config.json").write_text("{")
    assert "config.json cannot be read" in refused(fields)


def test_a_vocabulary_smaller_than_the_tokenizers(refused, checkpoint, shared):
    _, fields = checkpoint
    tokenizer = shared / "tokenizers/qwen2"
    line = refused(fields | {"tokenizer": tokenizer, "rollout.max_prompt_length": 200})
    assert "vocabulary of" in line and "smaller than the tokenizer's" in line


def test_anothers_workdir_stays_as_it_is(launch, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text('{"config": {}}')
    code, _, err = launch({})
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    assert "holds a run that differs" in err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config.nom_steps=3"], b"the nearest is num_steps"),
        (["--config.data.train=nowhere.jsonl"], b"nowhere.jsonl: no such file"),
        (["--coordinator=127.0.0.1:1", "--processes=2"], b"give all three"),
        (["--process=two"], b"--process=two: must be a whole number"),
        (["--config=configs/v4_32.py:kll=0"], b"argument='kll' is unknown; did you"),
        (["--config=configs/v4_32.py:kl=off"], b"kl=off: must be a number"),
        (["--config=configs/v4_32.py:kl=0,kl=1"], b"argument kl is there twice"),
    ],
)
def test_as_a_user_starts_it(tmp_path, arguments, said):
    workdir = tmp_path / "run"
    command = [sys.executable, "launch/tpu.py", "--config", "configs/tiny.py"]
    ended = subprocess.run(
        [*command, "--workdir", workdir, *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        timeout=300,
    )
    assert ended.returncode == 2
    assert ended.stdout == b""
    assert ended.stderr.startswith(b"error: ") and ended.stderr.count(b"\n") == 1
    assert said in ended.stderr
    assert not workdir.exists()
