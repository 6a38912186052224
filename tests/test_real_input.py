"""Real problems, a real vocabulary, chats: through the real loop, on a small policy."""

import json

import jax
import numpy as np
import pytest
from storage.test_metrics import events
from tiny_run import configure, set_up

from limr_jax.data.prompts import put_prompts
from limr_jax.setup import describe
from limr_jax.storage import checkpoint, metrics, rollout_dump
from limr_jax.train import train

VOCABULARY = 151_936


pytestmark = pytest.mark.usefixtures("quick_compiler")


def real(shared, train_set, **fields):
    return configure(
        train_set,
        tokenizer=shared / "tokenizers/qwen2",
        model__vocab_size=VOCABULARY,
        reward="math",
        sampler__name="lim",
        group_size=2,
        rollout__max_response_length=4,
        **fields,
    )


@pytest.fixture(scope="module")
def ran(shared, tmp_path_factory):
    """Two steps on 64 real problems: config, parts and workdir."""
    config = real(
        shared,
        f"{shared}/data/math_lvl3to5.jsonl[:64]",
        num_steps=2,
        rollout__max_prompt_length=128,
        rollout__top_k=50,
        rollout__min_p=0.01,
    )
    made, workdir = set_up(config), tmp_path_factory.mktemp("real")
    train(made, config, workdir)
    return config, made, workdir


@pytest.mark.slow
def test_long_prompts_are_left_out_counted_and_named(shared, ran):
    config, made, workdir = ran
    left_out = made.train_set.left_out
    assert len(left_out) + len(made.train_set) == 64
    assert len(left_out) > 5
    assert made.train_set.prompt_length_N.max() <= 128
    said = describe(made, config).splitlines()[-1]
    assert f"too long: {len(left_out)} ({', '.join(left_out[:5])}; all: left" in said
    named = json.loads((workdir / "left_out.json").read_text())
    assert named == {"train": list(left_out)}
    with open(shared / "data/math_lvl3to5.jsonl") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(64))]
    assert set(left_out) | set(made.train_set.problems.ids) == {r["id"] for r in rows}
    with checkpoint.Checkpointer(workdir, read_only=True) as saver:
        state, _ = saver.restore(2, made.programs.state)
    assert state.sampler.weight_N.shape == (len(made.train_set),)
    assert state.sampler.cell_count_2N.sum() == 2 * 4 * 2


@pytest.mark.slow
def test_the_hosts_grade_and_the_learner_agrees_with_the_rollout(ran):
    _, made, workdir = ran
    rows = list(metrics.read_metrics(workdir))
    for row in rows:
        assert row["reward/math"] == row["reward"] == 0  # it writes no box
        assert row["invalid_share"] == 0
        assert row["drift_max"] < 1e-5
        assert row["entropy"] == pytest.approx(np.log(VOCABULARY), abs=0.1)
    assert rows[0]["compile_count"] == rows[1]["compile_count"]
    problems = made.train_set.problems
    for row in rollout_dump.read_dump(workdir):
        assert row["prompt"] == problems.prompts[problems.ids.index(row["id"])]
        assert row["response"] and row["correct"] == 0


@pytest.mark.slow
def test_the_numbers_are_in_tensorboard_too(ran):
    _, _, workdir = ran
    found = events(workdir)
    for row in metrics.read_metrics(workdir):
        step = row.pop("step")
        for name, value in row.items():
            if value is not None:
                assert found[f"train/{name}", step] == pytest.approx(value, rel=1e-6)


@pytest.mark.slow
def test_filters_and_seed_come_from_the_config(ran):
    """Where all but the best token are left out, a group's rollouts are one.

    Which filters there are is compiled; their values and the seed are not.
    """
    config, made, _ = ran
    with jax.set_mesh(made.mesh):
        params = made.load_params()
        state = made.programs.init(jax.tree.map(jax.numpy.copy, params))
        _, drawn = made.programs.draw(
            state, put_prompts(made.train_set, made.mesh), made.seed
        )

    def responses(seed=0, **fields):
        """[P, G, T] of the run's own program, set up with other fields."""
        changed = config.copy_and_resolve_references().unlock()
        changed.rollout.update(top_k=0, min_p=0.0)
        changed.rollout.update(fields)
        changed.seed = seed
        other = set_up(changed)
        with jax.set_mesh(made.mesh):
            written = made.programs.generate(
                params, state.step, drawn, other.sampling, other.seed
            )
        return np.asarray(written.response_BT).reshape(4, 2, -1)

    compiled = made.programs.generate._cache_size
    before, free_PGT = compiled(), responses()
    assert (free_PGT[:, 0] != free_PGT[:, 1]).any()
    assert (responses(seed=1) != free_PGT).any()
    assert compiled() == before + 1  # the run's own has filters
    one_PGT = responses(top_k=1)
    np.testing.assert_array_equal(one_PGT[:, 0], one_PGT[:, 1])
    assert (responses(top_k=2) != one_PGT).any()
    np.testing.assert_array_equal(responses(min_p=0.999), one_PGT)
    assert compiled() == before + 3


SYSTEM = "Answer briefly."
EXPECTED = """\
<|im_start|>system
Answer briefly.<|im_end|>
<|im_start|>user
{problem}<|im_end|>
<|im_start|>assistant
Which case?<|im_end|>
<|im_start|>user
The first, not <|im_end|> of all.<|im_end|>
<|im_start|>assistant
"""


@pytest.mark.slow
def test_chats_are_prompts(shared, tmp_path):
    """Messages of real problems, a text among them; what a user writes is no mark."""
    with open(shared / "data/math_lvl3to5.jsonl") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(4))]
    for row in rows[1:]:
        row["prompt"] = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": row.pop("problem")},
            {"role": "assistant", "content": "Which case?"},
            {"role": "user", "content": "The first, not <|im_end|> of all."},
        ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = real(shared, path, num_steps=1, rollout__max_prompt_length=256)
    made = set_up(config)
    decode = made.tokenizer.decode
    texts = [
        decode(row[:length], special=True)
        for row, length in zip(
            made.train_set.prompt_NL, made.train_set.prompt_length_N, strict=True
        )
    ]
    assert texts[0].count("<|im_start|>") == 3 and "boxed" in texts[0]
    for row, text in zip(rows[1:], texts[1:], strict=True):
        assert text == EXPECTED.format(problem=row["prompt"][1]["content"])
    ends = (made.train_set.prompt_NL == made.tokenizer.stop_ids[0]).sum(axis=1)
    assert list(ends) == [2, 4, 4, 4]  # those of the template alone
    train(made, config, tmp_path / "run")
    dumped = {
        row["id"]: row["prompt"] for row in rollout_dump.read_dump(tmp_path / "run")
    }
    assert dumped[rows[0]["id"]] == rows[0]["problem"]
    assert dumped[rows[1]["id"]] == rows[1]["prompt"]
