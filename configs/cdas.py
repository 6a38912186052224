"""CDAS on MATH (arXiv:2505.17652): problems as hard as the policy is able.

    python launch/tpu.py --config configs/cdas.py \\
        --config.model.init=DIR --config.tokenizer=DIR

The paper's set-up: Qwen2.5-7B base, GRPO, 1,024 problems × 8 rollouts a step, T 1.0,
responses to 4,096 tokens, learning rate 5e-7, minibatches of 256, k3 with 1e-3 in the
loss, entropy bonus 1e-3, mean over tokens. Its numbers after 110 steps, mean of avg@k
over AIME24, AIME25, MATH500, Minerva, OlympiadBench and GSM8K in %, and the sampler:

    random       44.09   sampler.name=uniform
    curriculum   44.44   sampler.name=curriculum (later only level 4 and above)
    prioritized  44.66   sampler.name=prioritized
    dynamic      45.52   filter.groups=mixed, at 2.33 times the seconds a step
    CDAS         45.89   this config
    got          –

Minibatches: 4 updates a step of 2,048 rollouts each, 256 problems with all 8 of theirs,
as the released script counts its 256. AdamW's betas .9 and .999 and its decay of .01
are those of the released code. Departures: the problems are the 12,000 of MATH (of
which these are, shared notes do not say); prompts to 1,024 tokens; in the place of k3's
own derivative the KL's (limr_jax/algorithms/kl.py). sampler.cdas.weights=code gives
what the released code computes.
"""

from configs import base


def get_config():
    """GRPO with KL and entropy in the loss, drawn by CDAS."""
    c = base.get_config()
    c.num_steps = 110
    c.prompts_per_step = 1024
    c.group_size = 8
    c.data.train = "math12k:train"
    c.benchmarks.names = (
        "aime24@8, aime25@8, math500, minerva_math, olympiadbench, gsm8k:test"
    )
    c.sampler.name = "cdas"
    c.reward = "math"
    c.loss_normaliser = "token"
    c.rollout.max_prompt_length = 1024
    c.rollout.max_response_length = 4096
    c.rollout.slots = 1024
    c.minibatches_per_step = 4
    c.model.remat = True
    c.micro_batch_rows = 256
    c.kl.coefficient = 1e-3
    c.entropy_coefficient = 1e-3
    c.optimizer.learning_rate = 5e-7
    c.optimizer.b2 = 0.999
    c.optimizer.weight_decay = 0.01
    return c
