"""Proxy-NLL: by the formula, by kind of thought, and as a program."""

import dataclasses
import functools
import json
import runpy

import jax
import numpy as np
import pytest
from tiny_policy import LEARNED
from tiny_run import ROOT, arguments, configure, set_up, write_problems

from limr_jax.data.special_tokens import encode_answer_phrase
from limr_jax.errors import InputError
from limr_jax.evaluation import likelihood

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """Seven problems, so that the last chunk of two is not full."""
    return write_problems(tmp_path_factory.mktemp("problems") / "held_out.jsonl", 7)


@pytest.fixture(scope="module")
def found(problems, quick_compiler):
    """The run's parts, the first parameters, n → Likelihood, which is found once."""
    config = configure(
        problems, data__eval=problems, data__allow_overlap=True, rollout__slots=8
    )
    made = set_up(config)
    # Large enough for a thought to matter to the answer after it.
    params = jax.tree.map(lambda x: 10 * x if x.ndim > 1 else x, made.load_params())

    @functools.cache
    def find(n, slots=8):
        return likelihood.make_likelihood(
            made.mesh,
            made.eval_set,
            thoughts=n,
            seed=0,
            generation=dataclasses.replace(made.generation, slots=slots),
            compute=made.compute,
            phrase=encode_answer_phrase(config, made.tokenizer),
            eos_id=made.tokenizer.eos_id,
        )(params, made.sampling)

    return made, params, find


@pytest.mark.slow
def test_without_a_thought_it_is_the_answers_own_likelihood(found, problems):
    """Row by row and unpadded: the prompt, the phrase, then the answer and the end."""
    made, params, find = found
    seen, tokenizer = find(4), made.tokenizer
    for i in (0, 3, 6):
        length, answered = (
            int(x[i])
            for x in (made.eval_set.prompt_length_N, made.eval_set.answer_length_N)
        )
        answer = [*made.eval_set.answer_NA[i][:answered], tokenizer.eos_id]
        phrase = tokenizer.encode("#### ", continued=True)
        text = [*made.eval_set.prompt_NL[i][:length], *phrase, *answer]
        row = np.array([text], np.int32)
        where = np.arange(len(text))[None]
        expected, _ = LEARNED(
            params,
            row,
            where,
            None,
            1.0,
            response_length=len(answer),
            compute=made.compute,
        )
        np.testing.assert_allclose(seen.nll_N["none"][i], -np.sum(expected), rtol=1e-5)
        assert seen.tokens_N[i] == len(answer)


@pytest.mark.slow
def test_with_one_thought_it_is_minus_its_log_likelihood(found):
    """n = 1: no mean; and the shuffled thought is the next problem's, round the end."""
    made, params, find = found
    seen = find(1)
    assert seen.nll_N.keys() == set(likelihood.KINDS)
    assert all(x.shape == (7,) for x in seen.nll_N.values())
    assert np.all(seen.nll_N["thoughts"] > 0)
    assert np.all(seen.nll_N["thoughts"] != seen.nll_N["shuffled"])


@pytest.mark.slow
@pytest.mark.parametrize("slots", [8, pytest.param(4, marks=pytest.mark.soak)])
def test_chunks_change_nothing(found, slots):
    """Of two problems, the last of one, or of one each: none meets its own thoughts."""
    _, _, find = found
    whole, parts = find(4, slots=28).nll_N, find(4, slots=slots).nll_N
    for kind in likelihood.KINDS:
        np.testing.assert_allclose(parts[kind], whole[kind], rtol=1e-5)


@pytest.mark.slow
def test_more_thoughts_bound_more_tightly(found):
    """In expectation: over problems the mean falls from 1 thought to 4."""
    _, _, find = found
    few, many = (find(n).nll_N["thoughts"].mean() for n in (1, 4))
    assert many < few


def test_the_summary_by_hand():
    told = likelihood.summary(
        likelihood.Likelihood(
            {
                "thoughts": np.array([1.0, 3.0]),
                "shuffled": np.array([2.0, 6.0]),
                "none": np.array([4.0, 4.0]),
            },
            np.array([2, 6]),
        )
    )
    assert told["proxy_nll/thoughts"] == 2 and told["proxy_nll/none"] == 4
    assert told["proxy_nll/gain"] == 2 and told["proxy_nll/per_token"] == 0.5
    # 1 and 3: t(1) · 1; and half a nat a token, 1 / 2 and 3 / 6, in both.
    ends = [2 - 12.706205, 2 + 12.706205]
    assert told["proxy_nll/thoughts_interval"] == pytest.approx(ends)
    assert told["proxy_nll/per_token_interval"] == [0.5, 0.5]
    assert told["proxy_nll/none_interval"] == [4, 4]


@pytest.mark.slow
def test_as_a_program(problems, capsys):
    main = runpy.run_path(str(ROOT / "launch/likelihood.py"))["main"]
    fields = {"data.train": problems, "rollout.slots": 8}
    main([*arguments(fields), f"--sets={problems}", "--n=2"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["n"] == 2
    (seen,) = result["sets"].values()
    assert seen["problems"] == 7
    low, high = seen["proxy_nll/thoughts_interval"]
    assert low <= seen["proxy_nll/thoughts"] <= high
    for flags, line in (
        (
            [f"--sets={problems}[:1]", "--n=2"],
            f"{problems}[:1]: holds one problem, and thoughts are compared with those "
            "of another; give two or more",
        ),
        (
            [f"--sets={problems}@2", "--n=4"],
            f"--sets={problems}@2: each has --n=4 thoughts a problem, at temperature "
            f"1; leave out what stands behind the @ of {problems}@2",
        ),
        (
            ["--sets=,"],
            "no set is named; give --sets=proofs:test, or a config with data.eval",
        ),
    ):
        with pytest.raises(InputError) as caught:
            main([*arguments(fields), *flags])
        assert str(caught.value) == line
