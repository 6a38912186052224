"""Training problems that are held out: found by their text, and refused.

Two texts are the same problem if they are equal without white space, in NFKC, case
ignored. An id says nothing here: two sets number the same problem in their own ways.
"""

import sys
import unicodedata

from limr_jax.data.datasets import catalogue, tfds
from limr_jax.data.problems import Problems, load_problems
from limr_jax.errors import InputError


def overlapping_ids(
    train: Problems, evaluation: Problems
) -> tuple[tuple[str, str], ...]:
    """(id in train, id in evaluation) of each problem that both sets have.

    The pairs are in the order of `train`. Where the evaluation set has a problem twice,
    its first id is given.
    """
    evaluation_ids = {}
    for problem_id, prompt in zip(evaluation.ids, evaluation.prompts, strict=True):
        evaluation_ids.setdefault(normalised_text(prompt), problem_id)
    return tuple(
        (problem_id, evaluation_ids[text])
        for problem_id, prompt in zip(train.ids, train.prompts, strict=True)
        if (text := normalised_text(prompt)) in evaluation_ids
    )


def refuse_overlap(train: Problems, evaluation: Problems) -> None:
    """Refuse to train on problems of an evaluation set.

    Raises:
      InputError: a training problem is one of the evaluation's.
    """
    pairs = overlapping_ids(train, evaluation)
    if pairs:
        raise InputError(
            f"{len(pairs)} of {len(train)} problems of {train.source} are in "
            f"{evaluation.source} (first {pairs[0][0]!r} = {pairs[0][1]!r}); leave "
            "them out, or allow it with data.allow_overlap=true"
        )


def refuse_held_out(
    train: Problems, held_out: Problems | None = None, *, data_dir, manual_dir=None
) -> None:
    """Refuse to train on problems of the held-out set, or of a public evaluation set.

    data_dir, manual_dir: where the public sets are looked for, as `load_problems` does;
    one that is not on this machine is not compared.

    Raises:
      InputError: a training problem is in one of the sets.
    """
    # Whatever this run evaluates on: its policy may be measured later, on any of them.
    public, _ = evaluation_sets(data_dir=data_dir, manual_dir=manual_dir)
    for problems in [*public, held_out] if held_out else public:
        refuse_overlap(train, problems)


def evaluation_sets(*, data_dir, manual_dir=None) -> tuple[list[Problems], list[str]]:
    """The public evaluation sets that are on this machine, and the names of the rest.

    Nothing is downloaded. A set that cannot be read is named among the rest, and on
    stderr with the reason: a run that did not ask for it does not end for it.
    """
    at_hand, absent = [], []
    for spec in catalogue.EVALUATION_SETS:
        try:
            if tfds.at_hand(spec, data_dir=data_dir, manual_dir=manual_dir):
                at_hand.append(
                    load_problems(spec, data_dir=data_dir, manual_dir=manual_dir)
                )
                continue
        except InputError as error:
            print(f"not compared with {spec}: {error}", file=sys.stderr)
        absent.append(spec)
    return at_hand, absent


def normalised_text(prompt: str) -> str:
    """What writings of one problem share: NFKC, without case and white space."""
    return "".join(unicodedata.normalize("NFKC", prompt).casefold().split())
