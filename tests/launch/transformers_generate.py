"""The peer of launch/gpu_check.py: transformers' `generate`, random weights in bf16.

    python tests/launch/transformers_generate.py JSON

JSON has `sizes` (name → fields of a Qwen2Config), `ends` (name → ids that end a ragged
response), `prompts`, `group`, `prompt_length`, `response_length`, `device` and
`seconds`, after which a generation is cut short. One JSON line on stdout for each size
and variant: tokens up to and with the end token, the seconds, and how many columns
were written by then. What was cut short is so much quicker a token than the whole
would be: later columns read more keys and values.
"""

import json
import sys
import time

import torch
import transformers


def main(line: str) -> None:
    """Measure each size, fixed lengths and ragged ones, one after the other."""
    request = json.loads(line)
    transformers.logging.set_verbosity_error()
    for name, fields in request["sizes"].items():
        model = _model(fields, request["device"])
        shape = request["prompts"], request["prompt_length"]
        ids_PL = torch.randint(3, fields["vocab_size"], shape, device=request["device"])
        # Of these no row ends but with the limit.
        for variant, ends in (("fixed", None), ("ragged", request["ends"][name])):
            # Short at first: what is loaded and chosen once is not timed.
            _generate(model, ids_PL, request | {"response_length": 4}, ends)
            tokens, columns, seconds = _generate(model, ids_PL, request, ends)
            row = {
                "size": name,
                "variant": variant,
                "tokens_per_second": tokens / seconds,
                "tokens": tokens,
                "columns": columns,
                "seconds": seconds,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            }
            print(json.dumps(row), flush=True)
        # Its memory, before the next one takes its own.
        del model
        if request["device"] == "cuda":
            torch.cuda.empty_cache()


def _model(fields: dict, device: str):
    config = transformers.Qwen2Config(**fields)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    return model.eval()


def _generate(model, ids_PL, request: dict, ends) -> tuple[int, int, float]:
    """Tokens up to and with each row's end, columns written, seconds."""
    ids_BL = ids_PL.repeat_interleave(request["group"], 0)
    torch.manual_seed(0)
    _wait(request["device"])
    begun = time.perf_counter()
    out_BS = model.generate(
        input_ids=ids_BL,
        attention_mask=torch.ones_like(ids_BL),
        max_new_tokens=request["response_length"],
        max_time=request["seconds"],
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=ends,
        pad_token_id=0,
    )
    _wait(request["device"])
    seconds = time.perf_counter() - begun
    response_BT = out_BS[:, ids_BL.shape[1] :]
    rows, columns = response_BT.shape
    tokens = rows * columns
    if ends:
        end_BT = torch.isin(response_BT, torch.tensor(ends, device=response_BT.device))
        first_B = torch.where(end_BT.any(1), end_BT.int().argmax(1) + 1, columns)
        tokens = int(first_B.sum())
    return tokens, columns, seconds


def _wait(device: str) -> None:
    """Until the device has done what is queued."""
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
