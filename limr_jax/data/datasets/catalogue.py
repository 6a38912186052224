"""What is known of the public sets, and their files on this machine.

The checksums are of the copies that this project was developed with, parsed; the row
counts are the published ones.
"""

import dataclasses
import hashlib
import json
import pathlib

from limr_jax.data.datasets import normalise
from limr_jax.errors import InputError

_QWEN = "https://raw.githubusercontent.com/QwenLM/Qwen2.5-Math/main/evaluation/data"
_GSM8K = (
    "https://raw.githubusercontent.com/openai/grade-school-math/master/"
    "grade_school_math/data"
)
_LIMR = "https://raw.githubusercontent.com/GAIR-NLP/LIMR/main/data/prompts"
_HUB = "https://huggingface.co/datasets"
_MINIF2F = "https://github.com/facebookresearch/miniF2F/archive/refs/heads/main.zip"
_PROOFNET = (
    "https://raw.githubusercontent.com/zhangir-azerbayev/ProofNet/main/benchmark"
)
_IMO = "https://raw.githubusercontent.com/google-deepmind/superhuman/main/imobench"


@dataclasses.dataclass(frozen=True)
class Split:
    """Where a split's rows come from, and what they are known to be."""

    # (URL, what ids begin with), in order; 'archive.zip#folder' is a folder in a zip.
    sources: tuple[tuple[str, str], ...]
    rows: int | None = None  # None: not known
    sha256: str | None = None  # of the parsed rows, see `digest`


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a set."""

    about: str
    licence: str
    splits: dict[str, Split]
    evaluation: bool = False  # nothing may be trained on it


FACTS = {
    "math_lvl3to5": Facts(
        about="MATH, levels 3 to 5, as LIMR selected it (arXiv:2502.11886).",
        licence="MIT",
        splits={
            "train": Split(
                ((f"{_LIMR}/math.8k.json", ""),),
                rows=8523,
                sha256="255c931505f1d8949c0000611ed576ab6a9516e9ce530acdb36d62bea549830b",
            ),
        },
    ),
    "math12k": Facts(
        about="MATH without MATH500 (arXiv:2305.20050's split).",
        licence="MIT",
        splits={
            "train": Split(
                (
                    (
                        "https://github.com/openai/prm800k/raw/main/prm800k/"
                        "math_splits/train.jsonl",
                        "",
                    ),
                ),
                rows=12000,
            )
        },
    ),
    "math500": Facts(
        about="500 problems of MATH's test set (arXiv:2305.20050).",
        licence="MIT",
        splits={
            "test": Split(
                ((f"{_HUB}/HuggingFaceH4/MATH-500/resolve/main/test.jsonl", ""),),
                rows=500,
                sha256="735db0f505b4a619c15df59325d0132862b149a6eab7ee9adc4dc847ad7d3b99",
            )
        },
        evaluation=True,
    ),
    "gsm8k": Facts(
        about="Grade-school word problems (arXiv:2110.14168).",
        licence="MIT",
        splits={
            "train": Split(
                ((f"{_GSM8K}/train.jsonl", "gsm8k-train-"),),
                rows=7473,
                sha256="c1bb879799926b24a1bf1e6e4ced4c82b42feae85dac1ba00b76c8db42ac976e",
            ),
            "test": Split(
                ((f"{_GSM8K}/test.jsonl", "gsm8k-test-"),),
                rows=1319,
                sha256="7bb16e973c225a7137e7ffc3eb06126893c76709f1aa742868714471ce46937d",
            ),
        },
    ),
    "aime24": Facts(
        about="AIME 2024, I and II.",
        licence="MAA; test use only",
        splits={
            "test": Split(
                ((f"{_QWEN}/aime24/test.jsonl", "aime24-"),),
                rows=30,
                sha256="b87ba064b1982bec96dbfe5399c6a209ccda1148af973d95d974236768953933",
            )
        },
        evaluation=True,
    ),
    "aime25": Facts(
        about="AIME 2025, I and II.",
        licence="MAA; test use only",
        splits={
            "test": Split(
                ((f"{_HUB}/math-ai/aime25/resolve/main/test.jsonl", "aime25-"),),
                rows=30,
                sha256="49c14d2d47309dbdb2ea401d14973a23274c0953cb5fd3d61d7ce51da4918925",
            )
        },
        evaluation=True,
    ),
    "amc23": Facts(
        about="AMC 12 of 2023, the problems with a number for an answer.",
        licence="MAA; test use only",
        splits={
            "test": Split(
                ((f"{_QWEN}/amc23/test.jsonl", "amc23-"),),
                rows=40,
                sha256="2ca65ff7a56599618730cc3bce078b3a686113390d867fd5e74df1222fe6b11d",
            )
        },
        evaluation=True,
    ),
    "minerva_math": Facts(
        about="Undergraduate science and mathematics (arXiv:2206.14858).",
        licence="MIT OpenCourseWare; test use only",
        splits={
            "test": Split(
                ((f"{_QWEN}/minerva_math/test.jsonl", "minerva-"),),
                rows=272,
                sha256="c66aa358ba50c963e906325548345e75932591baffdfd047ea28a1a2df01bec6",
            )
        },
        evaluation=True,
    ),
    "olympiadbench": Facts(
        about="OlympiadBench, mathematics in English with answers (arXiv:2402.14008).",
        licence="Apache-2.0",
        splits={
            "test": Split(
                ((f"{_QWEN}/olympiadbench/test.jsonl", "olympiadbench-"),),
                rows=675,
                sha256="0786b11c9bd3ee8a0926fc84939e34cd8709fa51bb26acfc1cd7ca7ae6e36f5a",
            )
        },
        evaluation=True,
    ),
    "numinamath": Facts(
        about="NuminaMath 1.5; `verifiable` says whether a rule can check the answer.",
        licence="Apache-2.0",
        splits={
            "train": Split(
                tuple(
                    (
                        f"{_HUB}/AI-MO/NuminaMath-1.5/resolve/main/data/"
                        f"train-{shard:05d}-of-00003.parquet",
                        "numinamath-",
                    )
                    for shard in range(3)
                )
            )
        },
    ),
    "proofs": Facts(
        about="ProofNet, miniF2F and IMO-ProofBench: statements with a proof each.",
        licence="MIT (ProofNet, miniF2F), CC-BY-4.0 (IMO-ProofBench)",
        splits={
            "valid": Split(
                (
                    (f"{_PROOFNET}/valid.jsonl", "proofnet-valid-"),
                    (f"{_MINIF2F}#informal/valid", "minif2f-valid-"),
                )
            ),
            "test": Split(
                (
                    (f"{_PROOFNET}/test.jsonl", "proofnet-test-"),
                    (f"{_MINIF2F}#informal/test", "minif2f-test-"),
                    (f"{_IMO}/proofbench.csv", ""),
                )
            ),
        },
    ),
}

# Training on these problems makes an evaluation on them a false claim.
EVALUATION_SETS = tuple(
    f"{name}:{split}"
    for name, facts in FACTS.items()
    for split in facts.splits
    # Only one of its two splits is held out.
    if facts.evaluation or (name, split) == ("gsm8k", "test")
)


def local_file(manual_dir: pathlib.Path, name: str, split: str) -> pathlib.Path | None:
    """The split's file or folder: name_split.*, name/split.*, name/split, name.*, name.

    The last two hold all splits; their rows say by `split` which is theirs.
    """
    stems = (f"{name}_{split}", f"{name}/{split}", name)
    paths = [
        manual_dir / f"{s}{end}" for s in stems for end in (*normalise.SUFFIXES, "")
    ]
    # A prepared set's folder has its name too, if both lie in one place.
    return next(
        (p for p in paths if _is_there(p) and not any(p.glob("*/dataset_info.json"))),
        None,
    )


def _is_there(path: pathlib.Path) -> bool:
    return path.exists() or path.is_symlink()  # a link to nothing is a mistake


def read_local(file: pathlib.Path, name: str, split: str) -> list[dict]:
    """The rows of a split that lies on this machine, as `normalise.normalise` has them.

    Raises:
      InputError: there is none, two have one id, or one cannot be read.
    """
    rows = list(normalise.read(file))
    # A file with the name of the whole set: each row says which split is its own.
    if file.name.removesuffix(file.suffix) == name and len(FACTS[name].splits) > 1:
        for where, row in rows:
            if row.get("split") not in FACTS[name].splits:
                raise InputError(
                    f"{where}: `split` is {row.get('split')!r}, none of "
                    f"{', '.join(FACTS[name].splits)}; add it or call the file "
                    f"{name}_{split}{file.suffix}"
                )
        rows = [(where, row) for where, row in rows if row["split"] == split]
    if not rows:
        raise InputError(f"{file}: holds no problem of {name}:{split}; fetch it again")
    (_, prefix), *others = FACTS[name].splits[split].sources
    # Of several sources a copy does not say which a row is from, so its ids stay.
    prefix = "" if others else prefix
    parsed, place = [], {}
    for i, (where, row) in enumerate(rows):
        parsed.append(normalise.normalise(row, where, prefix=prefix, index=i))
        first = place.setdefault(parsed[-1]["id"], where)
        if first != where:
            raise InputError(
                f"{where}: the id {parsed[-1]['id']!r} is also that of {first}; give "
                "every problem its own"
            )
    return parsed


def digest(parsed: list[dict]) -> str:
    """sha256 over id, problem and answer of every row, in order."""
    sha = hashlib.sha256()
    for row in parsed:
        fields = [row["id"], row["problem"], row["answer"]]
        sha.update(json.dumps(fields).encode() + b"\n")
    return sha.hexdigest()


def file_digest(path: pathlib.Path) -> str:
    """sha256 over the bytes of a file, or of all files below a folder, by name."""
    sha = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as stream:
                sha.update(hashlib.file_digest(stream, "sha256").digest())
    return sha.hexdigest()
