"""Drafts counted by hand, and on a dump as a run writes it."""

import gzip
import json
import runpy

import pytest
from tiny_run import ROOT

from limr_jax.data.tokenizer import load_tokenizer
from limr_jax.errors import InputError
from limr_jax.studies.drafts import Group, gain, groups_of, simulate, steps_of


def group(*responses, prompt=(1, 2), step=1):
    return Group("p", step, prompt, tuple(map(tuple, responses)))


def test_a_response_that_comes_again_takes_one_step_in_k_plus_one():
    """12 tokens behind the first, all as at the last visit: 4 a step with K = 3."""
    response = range(10, 23)
    count = steps_of(group(response), group(response), source="visit", n=3, k=3)
    assert (count.tokens, count.row_steps) == (12, 3)


def test_a_draft_that_is_wrong_gives_the_drawn_token():
    """After 10 the last visit had 11: 10, [12 for 11], [13], [14] one by one."""
    now, last = group([10, 12, 13, 14]), group([10, 11, 9, 9])
    count = steps_of(now, last, source="visit", n=3, k=2)
    # 10 comes from the prompt, without a step.
    assert (count.tokens, count.row_steps) == (3, 3)


def test_the_last_token_is_drawn_and_not_drafted():
    """A draft may run past the end: three more tokens in one pass of K = 2, or of 8."""
    same = group([6, 7, 8, 9])
    for k, steps in ((1, 2), (2, 1), (8, 1)):
        count = steps_of(same, same, source="visit", n=2, k=k)
        assert count.row_steps == steps


def test_only_what_is_kept_of_the_last_visit_is_known():
    now, last = group([6, 7, 8, 9]), group([1, 2, 3], [6, 7, 8, 9])
    for kept, steps in ((None, 1), (2, 1), (1, 3)):
        count = steps_of(now, last, source="visit", n=2, k=4, kept=kept)
        assert count.row_steps == steps


def test_siblings_know_what_stood_before_this_step():
    """The second row is written in step with the first, so nothing of it is known."""
    same = group([5, 6, 7, 8], [5, 6, 7, 8])
    count = steps_of(same, None, source="siblings", n=2, k=3)
    assert count.row_steps == 6
    # A row that repeats itself drafts from its own: 5 6 5 | 6 5 6 5 ...
    itself = group([5, 6, 5, 6, 5, 6, 5, 6])
    count = steps_of(itself, None, source="siblings", n=2, k=3)
    assert count.row_steps < 7


def test_no_source_is_one_token_a_step():
    count = steps_of(group([5, 6], [7]), None, source="visit", n=3, k=4)
    assert (count.tokens, count.row_steps) == (1, 1)
    assert (count.longest_tokens, count.longest_steps) == (1, 1)


def test_the_longest_end_that_is_known_counts():
    """After (3, 4) comes 9, after 4 alone first 8."""
    last, now = group([4, 8, 3, 4, 9]), group([8, 3, 4, 9, 7])
    assert steps_of(now, last, source="visit", n=2, k=1).row_steps == 2
    assert steps_of(now, last, source="visit", n=1, k=1).row_steps == 3


def test_visits_are_of_a_problem():
    first, second = group([5, 6, 7]), group([5, 6, 7], step=2)
    other = Group("q", 2, (1, 2), ((5, 6, 7),))
    counts = simulate([first, second, other], source="visit", n=2, k=4)
    assert {visit: x.row_steps for visit, x in counts.items()} == {1: 4, 2: 1}
    assert simulate([first, second], source="visit", n=2, k=4, visits=1)[1].tokens == 4


def test_a_dump_as_groups():
    tokenizer = load_tokenizer(str(ROOT / "limr_jax/assets/arithmetic"))
    row = {"step": 2, "id": "a", "prompt": "1+2=", "truncated": False}
    rows = [row | {"response": "#### 3"}, row | {"response": "#### 4", "step": 1}]
    rows.append(row | {"response": "33", "truncated": True})
    first, second = groups_of(rows, tokenizer)
    assert (first.step, second.step, len(second.responses)) == (1, 2, 2)
    assert [x[-1] == tokenizer.eos_id for x in second.responses] == [True, False]
    assert tokenizer.decode(second.responses[1]) == "33"


@pytest.mark.parametrize(
    ("k", "tokens", "expected"),
    # v4-32's bound: 93 s of FLOPs, 267 s of memory. Two more positions cost 12 s.
    [(0, 1.0, 1.0), (1, 1.6, 1.6), (2, 2.0, 2 * 267 / 279), (8, 2.0, 2 * 267 / 837)],
)
def test_gain_of_a_bound(k, tokens, expected):
    assert gain(tokens, compute=93, memory=267, interconnect=14, k=k) == pytest.approx(
        expected
    )


@pytest.fixture
def simulated(tmp_path, capsys):
    """(rows of a dump, lines of metrics.jsonl, the run's rollout section) → result."""
    main = runpy.run_path(str(ROOT / "launch/drafts.py"))["main"]

    def run(rows, metrics=(), rollout=None):
        config = {"tokenizer": str(ROOT / "limr_jax/assets/arithmetic")}
        config["rollout"] = rollout or {}
        (tmp_path / "run.json").write_text(json.dumps({"config": config}))
        (tmp_path / "rollouts").mkdir(exist_ok=True)
        (tmp_path / "rollouts/00000001.jsonl.gz").write_bytes(
            b"".join(gzip.compress(f"{json.dumps(row)}\n".encode()) for row in rows)
        )
        lines = "".join(f"{json.dumps(line)}\n" for line in metrics)
        (tmp_path / "metrics.jsonl").write_text(lines)
        main([str(tmp_path), "--k", "8", "--sources", "visit"])
        return json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]

    return run


def row(step, response="#### 3", *, truncated=False):
    return {
        "step": step,
        "id": "a",
        "prompt": "1+2=",
        "response": response,
        "truncated": truncated,
    }


def test_the_launcher(simulated):
    first, second = simulated([row(1), row(2)])
    assert (first["visit"], first["tokens_a_step"]) == (1, 1)
    assert second["tokens_a_step"] == second["rollout_tokens"]  # all of it in one step


def test_the_launcher_knows_what_the_run_kept(simulated):
    """At the first visit a second rollout said what comes again; one is kept."""
    rows = [row(1, "9"), row(1), row(2), row(2)]
    assert simulated(rows)[1]["tokens_a_step"] == 2
    assert simulated(rows, rollout={"drafts_kept": 1})[1]["tokens_a_step"] == 1


def test_a_dump_of_some_rollouts_is_refused(simulated):
    with pytest.raises(InputError, match="holds 1 of 2 rollouts of step 2"):
        simulated([row(1), row(2)], [{"step": x, "rollouts": x} for x in (1, 2)])


def test_rollouts_of_one_token_take_no_step(simulated):
    [only] = simulated([row(1, "3", truncated=True)])
    assert (only["rollout_tokens"], only["tokens_a_step"], only["longest"]) == (
        0,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([1], "run.json holds no config"),
        ({"tokenizer": 5}, "tokenizer"),
        ({"tokenizer": "x", "rollout": 5}, "rollout"),
        ({"tokenizer": "x", "rollout": {"drafts_kept": "y"}}, "drafts_kept"),
    ],
)
def test_a_run_json_that_was_changed_is_one_line(tmp_path, config, said):
    (tmp_path / "run.json").write_text(json.dumps({"config": config}))
    main = runpy.run_path(str(ROOT / "launch/drafts.py"))["main"]
    with pytest.raises(InputError, match=said):
        main([str(tmp_path)])
