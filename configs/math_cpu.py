"""Real input on two cores: MATH levels 3-5, Qwen2's vocabulary, graded on the hosts.

    python launch/tpu.py --config configs/math_cpu.py \
        --config.data.train=../shared/data/math_lvl3to5.jsonl \
        --config.tokenizer=../shared/tokenizers/qwen2

What it shows is that the sizes fit, not that a random policy of 9.8 million parameters
(9.7 million of them words) learns: it never writes a box, so every reward is 0. The
sampler is over all 8,523 problems, whose longest prompt has 1,682 tokens. Expected: 3
steps within 10 GiB. Got *by version 0.2.0* on two cores of an AMD EPYC: 63 s (a step
16 s, of which the update is 10), 105 s of processor time, 3.4 GiB at the peak; two
graders add 60 MiB each where there is something to grade. With
rollout.max_prompt_length=128 1,609 problems are left out and 6,914 stay.
"""

from configs import base

REMEDIES = {
    "data.train": "give a JSONL file of your own (id, problem and answer a line), or a "
    "public set: --config.data.train=math_lvl3to5:train",
    "tokenizer": "fetch it: hf download Qwen/Qwen2-0.5B tokenizer.json "
    "--local-dir ../shared/tokenizers/qwen2",
}


def get_config():
    """GRPO and online LIM with a policy that is small but for its vocabulary."""
    c = base.get_config()
    c.num_steps = 3
    c.prompts_per_step = 8
    c.group_size = 4
    c.data.train = "../shared/data/math_lvl3to5.jsonl"
    c.tokenizer = "../shared/tokenizers/qwen2"
    c.model.vocab_size = 151_936
    c.model.width = 64
    c.model.layers = 2
    c.model.heads = 4
    c.model.kv_heads = 2
    c.model.head_dim = 16
    c.model.mlp_width = 128
    c.sampler.name = "lim"
    c.reward = "math"
    c.loss_normaliser = "token"
    c.rollout.max_prompt_length = 2048
    c.rollout.max_response_length = 64
    c.optimizer.learning_rate = 1e-3
    return c
