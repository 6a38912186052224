"""GRPO as DeepSeekMath has it (arXiv:2402.03300).

    python launch/tpu.py --config configs/grpo.py \\
        --config.model.init=DIR --config.tokenizer=DIR

The paper's set-up: DeepSeekMath-Instruct 7B, 64 rollouts a problem, 1,024 rollouts and
one update a step, responses to 1,024 tokens, learning rate 1e-6, k3 with 0.04 in the
loss, mean over the tokens of a rollout. Its numbers, accuracy in %:

    before  GSM8K 82.9  MATH 46.8
    after   GSM8K 88.2  MATH 51.7
    got     –

Departures: the paper's reward is a learned model's, here a rule's, 0 or 1; its 144,000
problems are not public, here the 7,473 of GSM8K. Steps are not published: 467 are one
epoch of those. The paper differentiates k3 as it stands; here the KL's own gradient is
followed (limr_jax/algorithms/kl.py).
"""

from configs import base


def get_config():
    """Exactly on-policy, KL in the loss, uniform sampling."""
    c = base.get_config()
    c.num_steps = 467
    c.prompts_per_step = 16
    c.group_size = 64
    c.data.train = "gsm8k:train"
    c.benchmarks.names = "gsm8k:test, math500"
    c.reward = "math"
    c.rollout.max_prompt_length = 512
    c.rollout.max_response_length = 1024
    c.model.remat = True
    c.micro_batch_rows = 64
    c.kl.coefficient = 0.04
    c.optimizer.learning_rate = 1e-6
    return c
