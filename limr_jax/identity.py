"""What makes a run that run: its config, and the content of all that the config names.

A field that is a path counts by a digest of what lies there. So the same data under
another path, or a checkpoint that has moved, is the same run (workdir.claim compares).
"""

import hashlib
import pathlib
from typing import Any

import limr_jax
from limr_jax.data import problems
from limr_jax.models import peft
from limr_jax.models.from_config import init_digest
from limr_jax.platform import resolve

# Of a tokenizer's directory, what `load_tokenizer` reads beside the vocabulary.
_TOKENIZER = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "config.json",
)
_VOCABULARY = ("tokenizer.json", "*.model")


def of_run(config, train_set, eval_set) -> dict[str, Any]:
    """The identity of a run of reinforcement learning, as `workdir.claim` takes it.

    train_set, eval_set: TokenizedProblems; eval_set is None where the config names
    none. Nothing of the identity may change under a workdir but `config.num_steps`,
    which may grow.
    """
    scores, judge = config.sampler.lim.scores, config.judge.init
    return _identity(
        config,
        {
            # With the columns, which samplers and reward functions read.
            "data.train": _problems(train_set),
            "data.eval": _problems(eval_set),
            "sampler.lim.scores": _file(scores) if scores else None,
            "judge.init": init_digest(judge) if judge else None,
        },
    )


def of_fine_tuning(config, texts_digest: str) -> dict[str, Any]:
    """The identity of a run of fine-tuning, as `workdir.claim` takes it.

    texts_digest: of the packed texts (`sft.Texts.digest`).
    """
    return _identity(config, {"data.train": texts_digest})


def _identity(config, content: dict[str, str | None]) -> dict[str, Any]:
    # Not None without adapters: runs that were begun before have no such name.
    if adapters := config.model.lora.init:
        content |= {"model.lora.init": peft.digest(resolve(adapters))}
    content |= {
        "model.init": init_digest(config.model.init),
        "tokenizer": tokenizer_digest(resolve(config.tokenizer)),
        # Where sets are prepared or found says nothing that their digests do not.
        "data.cache_dir": None,
        "data.manual_dir": None,
    }
    return {
        "config": config.to_dict(),
        "content": {name: x and x[:16] for name, x in content.items()},  # for people
        "version": limr_jax.__version__,
    }


def tokenizer_digest(path) -> str:
    """sha256 of a tokenizer: of its vocabulary's file, and of those beside it.

    path: the directory, or the file itself, as the field `tokenizer` has it.
    """
    path, digest = pathlib.Path(path), hashlib.sha256()
    folder = path if path.is_dir() else path.parent
    files = [folder / name for name in _TOKENIZER]
    if path.is_dir():
        files += [x for name in _VOCABULARY for x in sorted(folder.glob(name))]
    else:
        files.append(path)
    for file in files:
        if file.is_file():
            # Name and size first, so that no byte can pass from one file to the next.
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _problems(problem_set: problems.TokenizedProblems | None) -> str | None:
    return problem_set.problems.digest_with_columns if problem_set else None


def _file(path: str) -> str:
    return hashlib.sha256(resolve(path).read_bytes()).hexdigest()
