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
from tiny_run import (
    MODEL,
    ROOT,
    arguments,
    configure,
    set_up,
    short_sighted,
    write_problems,
)

from limr_jax import setup
from limr_jax.config import load
from limr_jax.data.tokenizer import load_tokenizer
from limr_jax.errors import InputError
from limr_jax.learner.advantages import ALGORITHMS
from limr_jax.samplers.from_config import SAMPLERS

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
            load.run_main(MAIN)
        return exit.value.code, *capsys.readouterr()

    return start


@pytest.fixture(scope="module", autouse=True)
def keys(train):
    """Every set-up makes the keys of its seed, once a process; that compiles."""
    fields = {"data.train": train, "mesh.tensor": 2, "mesh.fsdp": 4}
    setup.set_up(load.load(arguments(fields))[0])


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


def test_a_filter_in_training_is_warned_of_once(launch):
    """Gradients are of the whole policy; what is on stdout is as it was."""
    code, out, err = launch({"rollout.top_p": 0.8, "rollout.top_k": 5}, "--dry_run")
    assert not code and "prompts_per_step: 4" in out
    assert err == (
        "warning: rollout.top_p=0.8, rollout.top_k=5 in training: tokens are drawn "
        "from a filtered policy, but log-probabilities and gradients are of the whole "
        "one, which is evaluated (at top_p=.8 the gradient's cosine with the right one "
        "was .914); without a filter both are the same policy\n"
    )


def test_a_dry_run_tells_and_touches_nothing(launch, tmp_path, train):
    start = time.monotonic()
    code, out, err = launch({}, "--dry_run")
    assert time.monotonic() - start < 30  # 1 s; many times that on a busy machine
    assert not code and err == ""
    assert "prompts_per_step: 4" in out
    assert "loss: clip, normalised as sequence\n" in out
    assert "mesh: data 1 x fsdp 4 x tensor 2 on cpu" in out
    assert "reference: none" in out
    assert f"problems: 10 of {train}" in out
    embedding, attention, mlp = 16, 16 * 4 * (4 + 2 + 2 + 4) + 4 * 8, 3 * 16 * 32
    tokenizer = load_tokenizer(ROOT / "limr_jax/assets/arithmetic")
    vocabulary = -(-tokenizer.vocab_size // 128) * 128
    layers = 2 * (attention + mlp + 2 * 16)
    assert f"policy: {vocabulary * embedding + layers + 16:,} parameters" in out
    assert list(tmp_path.iterdir()) == []


PPO = {"algorithm": "ppo", "critic.learning_rate": 0.1}
JEPO = {"algorithm": "jepo"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"promts_per_step": 4},
            "--config.promts_per_step=4: no field 'promts_per_step'; the nearest is "
            "prompts_per_step",
        ),
        (
            {"num_steps": "ten"},
            "--config.num_steps=ten: must be a whole number (default 100)",
        ),
        ({"num_steps": 0}, "--config.num_steps=0 must be from 1 to 2147483647"),
        ({"seed": -1}, "--config.seed=-1 must be from 0 to 4294967295"),
        ({"seed": 2**32}, "--config.seed=4294967296 must be from 0 to 4294967295"),
        (
            {"checkpoint.every": 0},
            "--config.checkpoint.every=0 must be from 1 to 2147483647",
        ),
        (
            {"evaluation.samples": -1},
            "--config.evaluation.samples=-1 must be from 0 to 65536",
        ),
        ({"data.train": ""}, "data.train is empty; give --config.data.train=…"),
        (
            {"data.train": "nowhere.jsonl"},
            "nowhere.jsonl: no such file; check the path, or name a public set (python "
            "launch/data.py list)",
        ),
        (
            {"data.train": "/proc/self/mem"},
            "/proc/self/mem: cannot be read (Input/output error); check path and "
            "rights",
        ),
        (
            {"data.train": "nosuchset:train"},
            "nosuchset:train: no data set is called 'nosuchset', the nearest is "
            "'numinamath'; give one of aime24, aime25, amc23, arithmetic, "
            "arithmetic_sft, gsm8k, math12k, math500, math_lvl3to5, minerva_math, "
            "numinamath, olympiadbench, proofs, or a .jsonl file",
        ),
        (
            {"data.eval": "nowhere.jsonl"},
            "nowhere.jsonl: no such file; check the path, or name a public set (python "
            "launch/data.py list)",
        ),
        (
            {"data.too_long": "cut"},
            "--config.data.too_long='cut' is unknown; did you mean 'leave_out'? "
            "(leave_out, refuse)",
        ),
        (
            {"data.too_long": "refuse", "rollout.max_prompt_length": 2},
            "{train}: 10 of 10 problems exceed prompts of 2 tokens, first train/0, "
            "train/1, train/2; raise the limit",
        ),
        (
            {"tokenizer": "nowhere"},
            "nowhere: no such file or directory; give a tokenizer's path",
        ),
        ({"tokenizer": ""}, "tokenizer is empty; give --config.tokenizer=…"),
        (
            {"mesh.data": 3},
            "mesh data=3 x fsdp=4 x tensor=2 does not make the 8 devices there are; "
            "change an axis, or set one to -1",
        ),
        (
            {"mesh.data": -1, "mesh.fsdp": -1},
            "mesh data=-1 x fsdp=-1 x tensor=2: each axis must be 1 or more, one of "
            "them may be -1",
        ),
        (
            {"mesh.fsdp": 1, "mesh.tensor": 8},
            "mesh axis tensor=8 does not divide the 4 heads of "
            "params/blocks/0/attention/o/kernel; use a divisor of 4",
        ),
        (
            {"mesh.fsdp": 8, "mesh.tensor": 1},
            "prompts_per_step=4 does not divide over data x fsdp = 8 devices; use a "
            "multiple of 8",
        ),
        (
            {"prompts_per_step": 12},
            "prompts_per_step=12 is more than the 10 problems of {train}; lower it",
        ),
        (
            {"sampler.name": "lym"},
            "sampler.name='lym' is unknown; did you mean 'lim'? "
            f"({', '.join(sorted(SAMPLERS))})",
        ),
        (
            {"sampler.name": "lim", "sampler.lim.weights": "sofmax"},
            "sampler.lim.weights='sofmax' is unknown; did you mean "
            "'softmax'? (softmax, threshold)",
        ),
        (
            {"sampler.lim.warmup_epochs": 0},
            "sampler.lim.warmup_epochs=0 must be from 1 to 2147483647",
        ),
        (
            {"sampler.lim.floor": 1.5},
            "sampler.lim.floor=1.5 must be from 0 to 1",
        ),
        (
            {"sampler.lim.scores": "scores.jsonl"},
            "sampler.lim.scores=scores.jsonl with sampler.name=uniform, which draws "
            "by no scores; take sampler.name=lim, or leave the scores empty",
        ),
        (
            {"sampler.lim.temperature": 0},
            "sampler.lim.temperature=0.0 must be from 1e-06 to 1e+06",
        ),
        (
            {"filter.max_rounds": 0},
            "--config.filter.max_rounds=0 must be from 1 to 1048576",
        ),
        (
            {"filter.max_age": 2},
            "--config.filter.max_age=2 must be from 0 to 1",
        ),
        (
            {"filter.groups": "mixed"},
            "filter.max_rounds=4 may draw 4 x prompts_per_step=4 problems "
            "in a step, but {train} has 10; lower one of them",
        ),
        (
            {"filter.groups": "mixed", "algorithm": "jepo"},
            "filter.groups=mixed with algorithm=jepo drops the groups without a "
            "right response, which JEPO is for; take filter.groups=none",
        ),
        (
            {"filter.groups": "mixed", "reward": "0.2*my.module.brevity, math"},
            "filter.groups=mixed with reward=0.2*my.module.brevity, math: groups "
            "are kept by raw correctness, which comes from the first, and "
            "my.module.brevity shapes a reward; put the verifier (math, limr, judge "
            "or your own) first",
        ),
        (
            {"sampler.name": "dynamic", "reward": "0.2*my.module.brevity"},
            "sampler.name=dynamic with reward=0.2*my.module.brevity: groups are "
            "kept by raw correctness, which comes from the first, and "
            "my.module.brevity shapes a reward; put the verifier (math, limr, judge "
            "or your own) first",
        ),
        (
            {"filter.groups": "mixed", "group_size": 1, "algorithm": "reinforce_pp"},
            "filter.groups=mixed with group_size=1 keeps nothing, as one rollout "
            "does not vary; raise it",
        ),
        (
            {
                "filter.groups": "mixed",
                "filter.max_rounds": 2,
                "sampler.name": "curriculum",
                "sampler.curriculum.minimum": 1,
            },
            "sampler.curriculum.minimum=1.0: 5 problems of {train} have that level, "
            "fewer than filter.max_rounds=2 x prompts_per_step=4; lower one of them",
        ),
        (
            {"sampler.dynamic.max_rounds": 2},
            "--config.sampler.dynamic.max_rounds=2: no field "
            "'sampler.dynamic.max_rounds'; the nearest is filter.max_rounds",
        ),
        (
            {"sampler.name": "dynamic", "group_size": 1, "algorithm": "reinforce_pp"},
            "sampler.name=dynamic with group_size=1 keeps nothing, as one rollout "
            "does not vary; raise it",
        ),
        (
            {"sampler.unbiased": True, "sampler.name": "mopps"},
            "sampler.unbiased=True with sampler.name=mopps, whose draws have no known "
            "probability; take one of uniform, lim, prioritized, informative",
        ),
        (
            {"sampler.unbiased": True, "sampler.name": "prioritized"},
            "sampler.unbiased=True with sampler.prioritized.floor=0, which may draw "
            "some problems never; give a floor above 0",
        ),
        (
            {"sampler.unbiased": True, "filter.groups": "mixed"},
            "sampler.unbiased=True with filter.groups=mixed, which keeps groups by "
            "what came of them; take filter.groups=none",
        ),
        (
            {"sampler.unbiased": True, "loss_normaliser": "token"},
            "sampler.unbiased=True with loss_normaliser=token, which divides by the "
            "tokens of whatever was drawn; take sequence, rollout or constant",
        ),
        (
            {"sampler.unbiased": True, "loss": "cispo"},
            "sampler.unbiased=True with loss_normaliser=token, which divides by the "
            "tokens of whatever was drawn; take sequence, rollout or constant",
        ),
        (
            {"sampler.unbiased": True, "algorithm": "reinforce_pp"},
            "sampler.unbiased=True with algorithm=reinforce_pp, whose advantages "
            "compare the problems of a step; take grpo, dr_grpo or rloo",
        ),
        (
            {
                "sampler.unbiased": True,
                "filter.tau": 0,
                "filter.normaliser": "kept",
            },
            "sampler.unbiased=True with filter.normaliser=kept, which divides by the "
            "rows that are left; take all",
        ),
        (
            {"sampler.cdas.weights": "papr"},
            "sampler.cdas.weights='papr' is unknown; did you mean 'paper'? "
            "(code, paper)",
        ),
        (
            {
                "sampler.name": "informative",
                "group_size": 1,
                "algorithm": "reinforce_pp",
            },
            "sampler.name=informative with group_size=1 draws by how likely the "
            "rollouts of a group differ, and one does not; raise it or take uniform",
        ),
        (
            {"sampler.mopps.pool": 0},
            "sampler.mopps.pool=0 must be from 1 to 1048576",
        ),
        (
            {"sampler.mopps.prior": 0},
            "sampler.mopps.prior=0.0 must be from 0.001 to 1e+06",
        ),
        (
            {"sampler.greso.floor": -1},
            "sampler.greso.floor=-1.0 must be from 0 to 1",
        ),
        (
            {"sampler.name": "curriculum", "sampler.curriculum.column": "levle"},
            "sampler.curriculum.column='levle': {train} has no such column, but "
            "level; give one of numbers",
        ),
        (
            {"sampler.name": "curriculum", "sampler.curriculum.minimum": 2},
            "sampler.curriculum.minimum=2.0: 0 problems of {train} have that level, "
            "fewer than prompts_per_step=4; lower one of them",
        ),
        (
            {"sampler.name": "adarft"},
            "sampler.adarft.column='difficulty': {train} has no such column, but "
            "level; give one of numbers",
        ),
        (
            {"algorithm": "grop"},
            "algorithm='grop' is unknown; did you mean 'grpo'? "
            f"({', '.join(sorted(ALGORITHMS))})",
        ),
        (
            {"loss_normaliser": "tokens"},
            "--config.loss_normaliser='tokens' is unknown; did you mean 'token'? "
            "(constant, rollout, sequence, token)",
        ),
        (
            {"kl.estimator": "k4"},
            "--config.kl.estimator='k4' is unknown; did you mean 'k3'? (k1, k2, k3)",
        ),
        (
            {"kl.placement": "los"},
            "--config.kl.placement='los' is unknown; did you mean 'loss'? (loss, "
            "reward)",
        ),
        (
            {"kl.coefficient": -0.1},
            "--config.kl.coefficient=-0.1 must be from 0 to 1e+06",
        ),
        (
            {"kl.coefficient": 1, "kl.estimator": "k1"},
            "kl.estimator=k1 with kl.placement=loss has no gradient in expectation; "
            "take k2 or k3, or kl.placement=reward",
        ),
        (
            {"rollout.slots": 5},
            "rollout.slots=5 must be a multiple of data x fsdp = 4 devices, which "
            "have as many each; 0 is all of the step's rollouts",
        ),
        (
            {"rollout.slots": -4},
            "--config.rollout.slots=-4 must be from 0 to 2147483647",
        ),
        (
            {"micro_batch_rows": 3},
            "micro_batch_rows=3 must divide the 8 rollouts of an update and be a "
            "multiple of 4, the devices that share the batch",
        ),
        (
            {"row_responses": 3},
            "row_responses=3 must be from 1 to group_size=2: a row has room for so "
            "many answers to a prompt",
        ),
        (
            {"minibatches_per_step": 3},
            "minibatches_per_step=3 must divide the 2 rollouts that each of 4 "
            "devices has of a step",
        ),
        (
            {"minibatches_per_step": 0},
            "--config.minibatches_per_step=0 must be from 1 to 1048576",
        ),
        *(
            (
                {"kl.estimator": name, "kl.placement": "reward"},
                f"kl.estimator={name} with kl.placement=reward has near the "
                "reference .5 to 6 % of the KL's gradient, and may point the other "
                "way; take k1, or kl.placement=loss",
            )
            for name in ("k2", "k3")
        ),
        (
            {"critic.learning_rate": 0.1, "algorithm": "rloo"},
            "critic.learning_rate=0.1 with algorithm=rloo, which has no critic; "
            "take ppo, or 0",
        ),
        (
            {"algorithm": "ppo"},
            "critic.learning_rate=0.0: algorithm=ppo learns a critic, so it must be "
            "above 0",
        ),
        (
            PPO | {"filter.tau": 0},
            "filter.tau=0.0 with algorithm=ppo: the filter drops rollouts by their "
            "one advantage, and a critic gives each token its own; set filter.tau=-1",
        ),
        (PPO | {"critic.lam": 1.5}, "critic.lam=1.5 must be from 0 to 1"),
        (
            PPO | {"critic.value_clip": 0},
            "--config.critic.value_clip=0.0 must be from 1e-06 to 1e+06",
        ),
        (
            {"kl.target": 0.1},
            "kl.target=0.1 with kl.coefficient=0: there is no KL to adapt; give the "
            "first coefficient, or kl.target=0",
        ),
        (
            {"reward": "none"},
            "reward=none with algorithm=grpo, which learns from rewards; take "
            "algorithm=jepo or another reward",
        ),
        (
            JEPO | {"reward": "none", "sampler.name": "lim"},
            "sampler.name=lim with reward=none: there are no rewards to draw by; "
            "take uniform",
        ),
        (
            JEPO | {"reward": "none", "jepo.semi_verifiable": True},
            "jepo.semi_verifiable=True with algorithm=jepo, reward=none: it needs "
            "jepo and a verifier; set it to False",
        ),
        (
            {"jepo.semi_verifiable": True},
            "jepo.semi_verifiable=True with algorithm=grpo, reward=token: it needs "
            "jepo and a verifier; set it to False",
        ),
        (
            JEPO | {"jepo.estimator": "two_sample"},
            "jepo.estimator='two_sample' is unknown; did you mean "
            "'one_sample'? (multi_sample, one_sample, practical)",
        ),
        (
            JEPO | {"jepo.beta_sup": -1},
            "jepo.beta_sup=-1.0 must be from 0 to 1e+06",
        ),
        (
            JEPO | {"filter.tau": 0},
            "filter.tau=0.0 with algorithm=jepo, whose gradients of thought and "
            "answer go together and have no such thing; set it to -1",
        ),
        (
            JEPO | {"loss_normaliser": "sequence"},
            "loss_normaliser=sequence with algorithm=jepo, whose gradients of "
            "thought and answer go together and have no such thing; take rollout",
        ),
        (
            JEPO | {"group_size": 1},
            "algorithm=jepo compares the rollouts of a group, but group_size=1; "
            "raise it or take reinforce_pp",
        ),
        (
            {"kl.coefficient": 0.1, "kl.gain": 0},
            "--config.kl.gain=0.0 must be from 1e-06 to 4.99",
        ),
        (
            {"rollout.temperature": 0},
            "--config.rollout.temperature=0.0 must be from 0.001 to 1000",
        ),
        ({"rollout.top_p": 0}, "--config.rollout.top_p=0.0 must be from 1e-06 to 1"),
        (
            {"rollout.max_response_length": 0},
            "--config.rollout.max_response_length=0 must be from 1 to 1048576",
        ),
        (
            {"group_size": 1},
            "algorithm=grpo compares the rollouts of a group, but group_size=1; "
            "raise it or take reinforce_pp",
        ),
        (
            {"reward": "tokn"},
            "reward='tokn' is unknown; give one of math, limr, judge or a dotted "
            "path to a function",
        ),
        (
            {"reward": "no.such.function"},
            "reward function 'no.such.function': No module named 'no'; give "
            "module.name of a function (prompts, completions, **columns) -> "
            "list[float | None]",
        ),
        (
            {"reward": "judge"},
            "reward=judge has nobody to ask; give a checkpoint as judge.init",
        ),
        (
            {"reward": "math", "judge.dtype": "int8"},
            "judge.dtype=int8 without judge.init, so that there is no judge; name its "
            "checkpoint, or take judge.dtype=auto",
        ),
        (
            {"judge.init": "nowhere"},
            "judge.init=nowhere with reward=token, which asks no judge; leave it "
            "empty, or take reward=math",
        ),
        (
            {"reward": "math", "judge.init": "nowhere"},
            "judge.init=nowhere has no config.json; give a checkpoint's directory",
        ),
        (
            {"judge.max_length": 0},
            "--config.judge.max_length=0 must be from 1 to 1048576",
        ),
        ({"answer_phrase": ""}, "answer_phrase='' has no token; give another"),
        (
            {"optimizer.clip_norm": -1},
            "--config.optimizer.clip_norm=-1.0 must be from 0 to 1e+06",
        ),
        (
            {"optimizer.learning_rate": -1},
            "--config.optimizer.learning_rate=-1.0 must be from 0 to 1e+38",
        ),
        (
            {"optimizer.learning_rate": "inf"},
            "--config.optimizer.learning_rate=inf must be from 0 to 1e+38",
        ),
        ({"optimizer.b1": 2}, "--config.optimizer.b1=2.0 must be from 0 to 0.999999"),
        (
            {"optimizer.epsilon": 0},
            "--config.optimizer.epsilon=0.0 must be from 1e-30 to 1",
        ),
        (
            {"optimizer.decay_to": 2},
            "--config.optimizer.decay_to=2.0 must be from 0 to 1",
        ),
        (
            {"optimizer.warmup_steps": 5, "optimizer.decay_steps": 5},
            "optimizer.decay_steps=5 must be more than optimizer.warmup_steps=5, "
            "which it counts in; 0 is no decay",
        ),
        ({"clip.low": -3}, "--config.clip.low=-3.0 must be from 0 to 1"),
        ({"clip.high": -3}, "--config.clip.high=-3.0 must be from 0 to 1e+06"),
        (
            {"grader.wall_seconds": 0},
            "--config.grader.wall_seconds=0.0 must be from 0.001 to 1e+06",
        ),
        (
            {"grader.cpu_seconds": -1},
            "--config.grader.cpu_seconds=-1.0 must be from 0.001 to 1e+06",
        ),
        (
            {"grader.memory_mib": 0},
            "--config.grader.memory_mib=0 must be from 1 to 16777216",
        ),
        (
            {"overlong.weight": -1},
            "--config.overlong.weight=-1.0 must be from 0 to 1e+06",
        ),
        (
            {"reward": ".a.b"},
            "reward function '.a.b': TypeError: the 'package' argument is required "
            "to perform a relative import for '.a'; give module.name of a function "
            "(prompts, completions, **columns) -> list[float | None]",
        ),
        (
            {"model.width": 0},
            "model.width=0: a random model needs model.preset, or all of "
            "model.width, model.layers, model.heads, model.kv_heads, "
            "model.head_dim, model.mlp_width",
        ),
        ({"model.width": -16}, "--config.model.width=-16 must be from 0 to 1048576"),
        ({"model.kv_heads": 3}, "model: 4 heads over 3 kv heads"),
        ({"model.head_dim": 3}, "model: head_dim 3 is not even: pairs are turned"),
        (
            {"model.vocab_size": 100},
            "the model's vocabulary of 100 is smaller than the tokenizer's 357; "
            "give the checkpoint's own tokenizer, or a larger model.vocab_size",
        ),
        (
            {"model.architecture": "qwen7"},
            "--config.model.architecture='qwen7' is unknown; did you mean 'qwen3'? "
            "(gemma2, gemma3_text, llama, qwen2, qwen3)",
        ),
        (
            {"model.dtype": "float8"},
            "--config.model.dtype='float8' is unknown; did you mean 'float32'? "
            "(auto, bfloat16, float32)",
        ),
        (
            {"model.attention": "flash"},
            "--config.model.attention='flash' is unknown; did you mean 'splash'? "
            "(auto, ragged, splash, xla)",
        ),
        (
            {"model.init": "nowhere"},
            "nowhere is not a checkpoint: nowhere/config.json: no such file; check "
            "path and rights",
        ),
        (
            {"model.lora.rank": 9},
            "model.lora.rank=9 is larger than 8, a dimension of k's kernel of 16 x 8; "
            "lower it, or leave k out of model.lora.targets",
        ),
        (
            {"model.lora.rank": 2, "model.lora.targets": "q,w"},
            "model.lora.targets='q,w': 'w' is none; write some of "
            "q,k,v,o,gate,up,down, each once, with commas",
        ),
        (
            {"model.base_dtype": "bfloat16"},
            "model.base_dtype=bfloat16 with model.lora.rank=0, which has no adapters "
            "and no frozen base; give a rank, or model.base_dtype=float32",
        ),
        (
            {"model.base_dtype": "int8"},
            "model.base_dtype=int8 with model.lora.rank=0, which has no adapters and "
            "no frozen base; give a rank, or model.base_dtype=float32",
        ),
        (
            {"model.lora.rank": 2, "model.base_dtype": "int4"},
            "--config.model.base_dtype='int4' is unknown; did you mean 'int8'? "
            "(bfloat16, float32, int8)",
        ),
        (
            {"model.lora.init": "nowhere"},
            "model.lora.init=nowhere with model.lora.rank=0, which has no adapters "
            "and no frozen base; give a rank, or model.lora.init=''",
        ),
        (
            {"model.lora.rank": 2, "model.lora.init": "nowhere"},
            "model.lora.init=nowhere has no adapter_config.json; give a directory of "
            "PEFT's, or leave it empty",
        ),
    ],
    ids=lambda value: (
        ",".join(f"{k}={x}" for k, x in value.items())
        if isinstance(value, dict)
        else ""
    ),
)
def test_a_wrong_setting(refused, train, fields, said):
    assert refused(fields) == "error: " + said.replace("{train}", str(train)) + "\n"


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
    assert "config.json: not JSON (Expecting property name" in refused(fields)


def test_rollouts_longer_than_a_checkpoint_was_trained_for(refused, launch, checkpoint):
    """qwen2-tiny has 256 positions; more are taken where the config says so."""
    copy, fields = checkpoint
    fields = fields | {"rollout.max_prompt_length": 200}
    assert refused(fields | {"rollout.max_response_length": 57}) == (
        "error: rollout.max_prompt_length=200 + rollout.max_response_length=57 = 257 "
        f"tokens, but {copy} was trained for 256 (max_position_embeddings); lower "
        "that, or allow it with --config.model.max_length=257\n"
    )
    for more in (
        {"rollout.max_response_length": 56},
        {"rollout.max_response_length": 57, "model.max_length": 257},
    ):
        code, _, err = launch(fields | more, "--dry_run")
        assert (code, err) == (None, "")


def test_a_judge_asked_more_than_it_was_trained_for(refused, tmp_path_factory):
    copy = short_sighted(tmp_path_factory.mktemp("judge") / "model", positions=64)
    fields = {"reward": "judge", "judge.init": copy, "judge.max_length": 65}
    assert refused(fields) == (
        "error: judge.max_length=65 is more than the 64 tokens "
        f"(max_position_embeddings) that {copy} was trained for; lower it\n"
    )


def test_a_vocabulary_smaller_than_the_tokenizers(refused, checkpoint, shared):
    _, fields = checkpoint
    tokenizer = shared / "tokenizers/qwen2"
    line = refused(fields | {"tokenizer": tokenizer, "rollout.max_prompt_length": 200})
    assert "vocabulary of" in line and "smaller than the tokenizer's" in line


def test_anothers_workdir_stays_as_it_is(launch, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text('{"config": {}, "version": "0.2.0"}')
    code, _, err = launch({})
    assert code == 2
    assert err == (
        f"error: {tmp_path}/run was begun by limr_jax 0.2.0, which kept no digests of "
        "what it read, so that it cannot go on (but be evaluated and exported); give "
        "another --workdir\n"
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--plan=v5e-8, 9h", "--dry_run"], "--dry_run and --plan exclude each other"),
        (["--compile_only", "--first_contact"], "--compile_only and --first_contact"),
        (["--plan="], "--plan is empty; write --plan 'v5e-8, 9h'"),
        (["--plan", ""], "--plan is empty"),
        (["--fork="], "--fork is empty; write --fork RUN"),
        (["--fork", "", "--workdir=NEW"], "--fork is empty; write --fork RUN"),
    ],
)
def test_one_thing_at_a_time(flags, said):
    with pytest.raises(InputError, match=re.escape(said)):
        MAIN(["--config", str(ROOT / "configs/tiny.py"), *flags])


def test_an_empty_fork_is_what_a_command_line_without_a_config_is_told_of():
    with pytest.raises(InputError, match="--fork is empty"):
        MAIN(["--fork", "", "--workdir", "NEW"])


@pytest.mark.parametrize("flags", [(), ("--compile_only",)], ids=["train", "compile"])
def test_a_workdir_that_cannot_be_is_known_at_once(
    launch, tmp_path, monkeypatch, flags
):
    """Neither a data set is read, nor is anything compiled."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # as --compile_only sets it
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    file = tmp_path / "file"
    file.write_text("")
    before = len(compiled)
    workdir = f"{file}/run"
    code, out, err = launch(
        {"data.train": "absent.jsonl"}, *flags, "--workdir", workdir
    )
    assert (code, out) == (2, "") and len(compiled) == before
    written = f"{workdir}.compile.json" if flags else f"{workdir}/run.json"
    assert err == (
        f"error: {written} cannot be written: {file} is no folder; give another "
        "--workdir\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "--config.nom_steps=3",
            "--config.nom_steps=3: no field 'nom_steps'; the nearest is num_steps",
        ),
        (
            "--config.data.train=nowhere.jsonl",
            "nowhere.jsonl: no such file; check the path, or name a public set (python "
            "launch/data.py list)",
        ),
        (
            "--coordinator=127.0.0.1:1 --processes=2",
            "--coordinator=127.0.0.1:1 --processes=2 --process=-1: give all three, "
            "with process from 0 to processes - 1, or none of them on a TPU slice",
        ),
        ("--process=two", "--process=two: must be a whole number (default -1)"),
        (
            "--config=configs/v4_32.py:kll=0",
            "--config=configs/v4_32.py:kll=0: argument='kll' is unknown; did you mean "
            "'kl'? (critic, kl)",
        ),
        (
            "--config=configs/v4_32.py:kl=off",
            "--config=configs/v4_32.py:kl=off: kl=off: must be a number (default 0.01)",
        ),
        (
            "--config=configs/v4_32.py:kl=0,kl=1",
            "--config=configs/v4_32.py:kl=0,kl=1: argument kl is there twice; give it "
            "once",
        ),
    ],
)
def test_as_a_user_starts_it(tmp_path, arguments, said):
    workdir = tmp_path / "run"
    command = [sys.executable, "launch/tpu.py", "--config", "configs/tiny.py"]
    ended = subprocess.run(
        [*command, "--workdir", workdir, *arguments.split()],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: {said}\n"
    assert not workdir.exists()
