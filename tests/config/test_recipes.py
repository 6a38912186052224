"""The papers' recipes: each is whole, once it is given a model and its data."""

import pytest
from tiny_run import FIELDS, MODEL, ROOT, set_up, write_problems

from limr_jax import setup
from limr_jax.config import config_file
from limr_jax.config import load as config_lib
from limr_jax.config.diff import plain
from limr_jax.data.prompts import put_prompts
from limr_jax.errors import InputError
from limr_jax.learner.optimizer import schedule

RECIPES = (
    *("cdas", "cispo", "dapo", "dash", "dr_grpo", "grpo", "gspo", "jepo"),
    *("limr_ppo", "rloo"),
)


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """As many as the largest batch; for DAPO as many as its rounds may draw."""
    folder = tmp_path_factory.mktemp("problems")
    many = write_problems(folder / "many.jsonl", 12_000)
    return {"dapo": many}, write_problems(folder / "train.jsonl", 1024)


# github.com/GAIR-NLP/LIMR at 98ebf1b: flags of scripts/train_limr.sh, those of
# scripts/train_math.8k.sh, and the defaults of openrlhf/cli/train_ppo_ray.py.
RELEASED = {
    "rollout_batch_size": ("prompts_per_step", 1024),
    "n_samples_per_prompt": ("group_size", 8),
    "max_epochs": ("updates_per_minibatch", 1),
    "prompt_max_len": ("rollout.max_prompt_length", 1024),
    "generate_max_len": ("rollout.max_response_length", 3072),
    "temperature": ("rollout.temperature", 1.2),
    "top_p (default)": ("rollout.top_p", 1.0),
    "top_k (of vLLM: -1, off)": ("rollout.top_k", 0),
    "advantage_estimator gae": ("algorithm", "ppo"),
    "actor_learning_rate": ("optimizer.learning_rate", 5e-7),
    "critic_learning_rate": ("critic.learning_rate", 9e-6),
    "lr_warmup_steps": ("optimizer.warmup_steps", 10),
    "min_lr, of the rate": ("optimizer.decay_to", 0.1),
    "adam_betas[0] (default)": ("optimizer.b1", 0.9),
    "adam_betas[1] (default)": ("optimizer.b2", 0.95),
    "eps (of DeepSpeed)": ("optimizer.epsilon", 1e-8),
    "l2 (default)": ("optimizer.weight_decay", 0.0),
    "max_norm (default)": ("optimizer.clip_norm", 1.0),
    "init_kl_coef": ("kl.coefficient", 0.01),
    "use_kl_estimator_k3 (off)": ("kl.estimator", "k1"),
    "compute_reward": ("kl.placement", "reward"),
    "kl_target (none)": ("kl.target", 0.0),
    "eps_clip, below": ("clip.low", 0.2),
    "eps_clip, above": ("clip.high", 0.2),
    "value_clip": ("critic.value_clip", 0.2),
    "gamma (default)": ("critic.gamma", 1.0),
    "lambd": ("critic.lam", 0.95),
    "reward_clip_range (default)": ("critic.reward_clip", 10.0),
    "replay_buffer.normalize": ("critic.whiten", True),
    "serve_rm --mode rule": ("reward", "limr"),
}
SLICES = ("v4_8", "v4_32", "v5e_16", "v5p_16", "v6e_16")


@pytest.mark.parametrize("name", ["limr_ppo", *SLICES])
def test_limrs_configs_are_as_released(name):
    config, _ = config_lib.load(["--config", str(ROOT / f"configs/{name}.py")])
    fields = dict(config_lib.leaves(plain(config)))
    for flag, (field, value) in RELEASED.items():
        assert fields[field] == value, flag
    # train_batch_size 256; num_episodes 10,000, of all rollouts // 256 updates each.
    rollouts = config.prompts_per_step * config.group_size
    assert rollouts // config.minibatches_per_step == 256
    problems = 1389 if name == "limr_ppo" else 8523
    assert config.optimizer.decay_steps == 10_000 * (problems * 8 // 256)


def test_limrs_rate_is_constant_after_its_warm_up():
    """At the end of 168 steps of 32 updates, 4.998e-7; it had been 5e-8."""
    config, _ = config_lib.load(["--config", str(ROOT / "configs/limr_ppo.py")])
    names = ("learning_rate", "warmup_steps", "decay_steps", "decay_to")
    rate = schedule(**{name: config.optimizer[name] for name in names})
    updates = config.num_steps * config.minibatches_per_step
    assert updates == 5376
    rates = [float(rate(k)) for k in (0, 9, 10, updates - 1)]
    assert rates == pytest.approx([5e-8, 5e-7, 5e-7, 4.9983e-7], rel=1e-5)


# What each paper's set-up has, and what no field says by itself: rollouts an update.
PUBLISHED = {
    "dapo": {
        "clip.low": 0.2,
        "clip.high": 0.28,
        "filter.groups": "mixed",
        "loss_normaliser": "token",
        "overlong.buffer": 4096,
        "rollout.max_response_length": 16384 + 4096,
        "kl.coefficient": 0.0,
        "optimizer.learning_rate": 1e-6,
        "an update": 512,
    },
    "dr_grpo": {
        "algorithm": "dr_grpo",
        "loss_normaliser": "",  # its paper's constant
        "kl.coefficient": 0.0,
        "clip.low": 0.2,
        "clip.high": 0.2,
        "clip.dual": 0.0,
        "rollout.max_response_length": 3000,
        "optimizer.learning_rate": 1e-6,
        "an update": 128,
    },
    "limr_ppo": {
        "clip.low": 0.2,
        "clip.high": 0.2,
        "clip.dual": 0.0,
        "critic.lam": 0.95,
        "an update": 256,
    },
    "gspo": {
        "loss": "gspo",
        "clip.low": 3e-4,
        "clip.high": 4e-4,
        "loss_normaliser": "",  # each response the same
        "minibatches_per_step": 4,
        "kl.coefficient": 0.0,
        "an update": 512,
    },
    "cispo": {
        "loss": "cispo",
        "clip.low": 1.0,
        "clip.high": 4.0,
        "loss_normaliser": "",  # over tokens
        "kl.coefficient": 0.0,
        "optimizer.learning_rate": 5e-7,
        "optimizer.epsilon": 1e-15,
        "an update": 48 * 16,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_is_as_published(name):
    config, _ = config_lib.load(["--config", str(ROOT / f"configs/{name}.py")])
    fields = dict(config_lib.leaves(plain(config)))
    rollouts = config.prompts_per_step * config.group_size
    fields["an update"] = rollouts // config.minibatches_per_step
    for field, value in PUBLISHED[name].items():
        assert fields[field] == value, field


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_set_up(problems, name):
    """On a small model; every number of the recipe's own stays, and fits the others."""
    given = {f"model.{field}": size for field, size in MODEL.items()}
    by_name, usual = problems
    train = by_name.get(name, usual)
    given |= {"data.train": train, "tokenizer": FIELDS["tokenizer"]}
    argv = ["--config", str(ROOT / f"configs/{name}.py")]
    argv += [f"--config.{field}={value}" for field, value in given.items()]
    config, _ = config_lib.load(argv)
    made = set_up(config)
    told = setup.describe(made, config, whole=True)
    assert f"prompts_per_step: {config.prompts_per_step}" in told
    assert ("loaded" in told) == (config.kl.coefficient > 0)
    rows = config.prompts_per_step * config.group_size
    length = config.rollout.max_response_length
    state, prompts = made.programs.state, put_prompts(made.train_set, made.mesh)
    _, drawn = made.programs.draw.eval_shape(state, prompts, 0)
    asked = state.train.params, 0, drawn, made.sampling, 0
    written = made.programs.generate.eval_shape(*asked)
    assert written.response_BT.shape == (rows, length)
    assert drawn.ids_P.shape == (config.prompts_per_step,)


@pytest.mark.parametrize(
    ("name", "checkpoint", "chips"),
    [
        ("v5e_8.py", "Qwen2.5-Math-7B", 8),
        ("v5e_1.py", "Qwen2.5-1.5B", 1),
        ("v4_8.py:lora=yes", "Qwen2.5-Math-7B", 4),
    ],
)
def test_small_slices_learn_adapters(name, checkpoint, chips, monkeypatch):
    config, _ = config_lib.load(["--config", str(ROOT / f"configs/{name}")])
    assert config.model.base_dtype == "int8" and config.model.lora.rank == 32
    assert config.mesh.data * config.mesh.fsdp * config.mesh.tensor == chips
    assert config.model.init == config.tokenizer == f"../models/{checkpoint}"
    assert config.model.preset == checkpoint.lower()
    monkeypatch.setattr(config_file, "_is_there", lambda field, value: False)
    with pytest.raises(InputError, match=f"hf download Qwen/{checkpoint} "):
        config_file.refuse_absent(config, str(ROOT / f"configs/{name}"))
    assert config.kl.coefficient == 0.0  # no pass for a reference
    start = "," if ":" in name else ":"
    path = str(ROOT / f"configs/{name}{start}kl=0.01")
    with_kl, _ = config_lib.load(["--config", path])
    assert with_kl.kl.coefficient == 0.01
    with_kl.kl.coefficient = 0.0
    assert with_kl.to_dict() == config.to_dict()


def test_a_small_slice_refuses_what_is_not_its_own():
    for argument in ("critic=no", "lora=yes,lora=no", "lora=perhaps", "rank=8"):
        path = str(ROOT / f"configs/v4_8.py:lora=yes,{argument}")
        with pytest.raises(InputError, match=argument.partition("=")[0]):
            config_lib.load(["--config", path])
