"""Problems of one set that are in another, found by their text."""

import json

from limr_jax.data.overlap import overlapping_ids
from limr_jax.data.problems import load_problems

GOOD = {"id": "a", "problem": "b", "answer": "c"}


def load(spec):
    return load_problems(spec, data_dir="nowhere")


def test_the_same_problem_in_two_sets_is_found(tmp_path):
    def load_rows(rows):
        path = tmp_path / "set.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return load(str(path))

    train = load_rows([GOOD | {"problem": "Find  $x^2$."}, GOOD | {"id": "b"}])
    rows = [GOOD | {"id": "e", "problem": "find $x^2$.\n"}, GOOD | {"problem": "y"}]
    assert overlapping_ids(train, load_rows(rows)) == (("a", "e"),)
    assert overlapping_ids(train, load_rows([GOOD | {"problem": "z"}])) == ()


def test_no_evaluation_problem_is_in_the_papers_training_set(shared):
    train = load(str(shared / "data" / "math_lvl3to5.jsonl"))
    for name in ("math500", "aime24", "aime25", "amc23", "minerva_math"):
        evaluation = load(str(shared / "data" / f"{name}.jsonl"))
        assert not overlapping_ids(train, evaluation)
    test = load(str(shared / "data" / "math500.jsonl"))
    assert len(overlapping_ids(test, test)) == 500
