"""LIMR as it was released: PPO with a critic (arXiv:2502.11886).

    python launch/tpu.py --config configs/limr_ppo.py --config.data.train=kept.jsonl \\
        --config.model.init=DIR --config.tokenizer=DIR

DIR is Qwen2.5-Math-7B; kept.jsonl the problems that launch/lim.py kept of MATH levels 3
to 5 (1,389 of 8,523 at 0.6). The set-up, of the paper and of the released script
(github.com/GAIR-NLP/LIMR, scripts/train_limr.sh and OpenRLHF's defaults there): 1,024
problems × 8 rollouts, T 1.2, 32 updates of 256, clip 0.2 of ratio and value, γ 1,
λ 0.95, learning rates 5e-7 and 9e-6 (critic, a copy of the policy at first), Adam's
betas .9 and .95, k1 with 0.01 in each token's reward, prompts to 1,024 and responses to
3,072 tokens, reward +1, −0.5 or −1. After 10 updates of warm-up the rate follows a
cosine to 10 %, which spans the script's num_episodes, 10,000 of 43 updates: over a run
it is constant, 5.000e-7 falling to 4.998e-7. Numbers: AIME24 / MATH500 / AMC23
16.7 / 52.4 / 52.5 before, 32.5 / 78.0 / 63.8 after with the 1,389, 32.5 / 76.6 / 61.9
with all 8,523, evaluated as configs/limr_eval.py does. Got here: not run; it needs an
accelerator of some 256 GB.

What the paper leaves open: how long the training on 1,389 lasts. Here it is as many
steps as the probe of 21 epochs has, 168.

Departures from the released code. It draws tokens at T 1.2, but its ratios and KL are
of the policy at T 1; here all are at 1.2. Its warm-up begins with an update of rate 0,
ours with a tenth. Its loss is a mean over the tokens of 4 responses, and then of the 64
such means of an update; ours is the mean over all tokens of an update. It shuffles
responses, here whole groups. Its value head starts with N(0, 1 / (width + 1)²), ours
with 0. Where 1,024 do not divide the problems it drops the rest of an episode; here a
step goes on in the next epoch. It also ends a response at "\\nuser\\n".
"""

from configs import base

STEPS, MINIBATCHES = 168, 32
EPISODES = 10_000  # of the released script, which no run comes to the end of


def get_config():
    """1,024 prompts x 8, walked in 32 updates of 256; per-token k1 in the reward."""
    c = base.get_config()
    c.num_steps = STEPS
    c.prompts_per_step = 1024
    c.group_size = 8
    c.rollout.temperature = 1.2
    c.rollout.max_prompt_length = 1024
    c.rollout.max_response_length = 3072
    c.reward = "limr"
    c.algorithm = "ppo"
    c.loss_normaliser = "token"
    c.clip.dual = 0.0  # the released loss has none
    c.minibatches_per_step = MINIBATCHES
    c.micro_batch_rows = 32
    c.critic.learning_rate = 9e-6
    c.kl.coefficient = 0.01
    c.kl.estimator = "k1"
    c.kl.placement = "reward"
    c.optimizer.learning_rate = 5e-7
    c.optimizer.warmup_steps = 10
    c.optimizer.decay_steps = released_updates(1389)
    c.optimizer.b2 = 0.95
    c.model.remat = True
    return c


def released_updates(problems: int) -> int:
    """Updates of 256 rollouts, 8 a problem, in all of the script's episodes."""
    return EPISODES * (problems * 8 // 256)
