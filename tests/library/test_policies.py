"""`limr_jax.load_policy`, `generate`, `save_policy`, without a config."""

import filecmp

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import LEARNED
from tiny_run import ROOT, checkpoints

import limr_jax
from limr_jax.evaluation import trained_policy
from limr_jax.models.config import ComputeConfig

pytestmark = pytest.mark.usefixtures("quick_compiler")
ASSETS = ROOT / "limr_jax/assets/arithmetic"
PROMPTS = ["42+17=", "12+7*8=", "90-35-20="]


@pytest.fixture(scope="module")
def policy():
    return limr_jax.load_policy(ASSETS)


ASKED = {"samples": 2, "max_tokens": 24, "seed": 5}


def test_responses_are_a_runs_own_and_what_they_depend_on(policy):
    """Their log-probabilities are the learner's; other prompts change nothing."""
    answers = limr_jax.generate(policy, PROMPTS, **ASKED)
    assert [len(each) for each in answers] == [2, 2, 2]
    chats = [policy.tokenizer.math_messages(prompt) for prompt in PROMPTS]
    prompts = policy.tokenizer.encode_chats(chats)
    length, count = max(map(len, prompts)), ASKED["max_tokens"]
    responses = [response for pair in answers for response in pair]
    tokens_BS = np.zeros((len(responses), length + count), np.int32)
    position_BS = np.full(tokens_BS.shape, -1, np.int32)
    for b, response in enumerate(responses):
        prompt = prompts[b // 2]
        columns = slice(length - len(prompt), length + len(response.token_ids))
        tokens_BS[b, columns] = [*prompt, *response.token_ids]
        position_BS[b, columns] = np.arange(columns.stop - columns.start)
        ends = response.token_ids[-1] in policy.tokenizer.stop_ids
        assert ends != response.truncated
        assert response.text == policy.tokenizer.decode(response.token_ids)
    logprob_BT, _ = LEARNED(
        policy.params,
        tokens_BS,
        position_BS,
        None,
        1.0,
        response_length=count,
        compute=ComputeConfig(policy.config, jnp.float32),
    )
    for response, logprob_T in zip(responses, np.asarray(logprob_BT)):
        there_T = logprob_T[: len(response.token_ids)]
        np.testing.assert_allclose(response.logprobs, there_T, atol=1e-4)
    # Prompt 0 and its samples beside others: the same words.
    other = limr_jax.generate(policy, [PROMPTS[0], *PROMPTS[:0:-1]], **ASKED)
    assert [x.text for x in other[0]] == [x.text for x in answers[0]]
    assert [x.text for x in other[1]] != [x.text for x in answers[1]]


@pytest.mark.soak
def test_several_calls_are_one(policy, monkeypatch):
    whole = limr_jax.generate(policy, PROMPTS, **ASKED)
    monkeypatch.setattr("limr_jax.library.policies._ROWS", 4)  # two prompts a call
    parts = limr_jax.generate(policy, PROMPTS, **ASKED)
    assert [[x.text for x in y] for y in parts] == [[x.text for x in y] for y in whole]


def test_what_is_written_again_is_the_same_bit_for_bit(policy, tmp_path):
    limr_jax.save_policy(policy, tmp_path / "copy")
    names = ["config.json", "model.safetensors", "tokenizer.model"]
    assert filecmp.cmpfiles(ASSETS, tmp_path / "copy", names, shallow=False)[0] == names
    with pytest.raises(limr_jax.InputError, match="is there already"):
        limr_jax.save_policy(policy, tmp_path / "copy")
    limr_jax.save_policy(policy, tmp_path / "half", dtype="bfloat16")
    half = limr_jax.load_policy(tmp_path / "half")
    for here, there in zip(*map(jax.tree.leaves, (policy.params, half.params))):
        np.testing.assert_array_equal(there, here.astype(jnp.bfloat16).astype(float))


@pytest.mark.soak
def test_the_policy_of_a_run(tmp_path):
    workdir = checkpoints(tmp_path, 2)
    policy = limr_jax.load_policy(workdir)
    there = trained_policy.load_params(
        workdir, 2, model_config=policy.config, mesh=policy.mesh
    )
    for x, y in zip(*map(jax.tree.leaves, (policy.params, there))):
        np.testing.assert_array_equal(x, y)
    limr_jax.save_policy(policy, tmp_path / "out")
    again = limr_jax.load_policy(tmp_path / "out")
    assert again.config == policy.config


CHAT = [{"role": "user", "content": "3+4="}]


@pytest.mark.parametrize(
    "prompts, arguments, said",
    [
        ("42+17=", {}, "prompts is str; give a list of texts or chats"),
        ([" "], {}, "prompts[0] is empty; give a text"),
        (["1=", 5], {}, "prompts[1] is neither text nor a chat"),
        ([[]], {}, "prompts[0] is neither text nor a chat"),
        ([[{"role": "user"}]], {}, "prompts[0] is neither text nor a chat"),
        ([[*CHAT, {"role": "assistant", "content": "7"}]], {}, "no answer follows"),
        (["1=", "1+1=" * 20_000], {}, "that the model was trained for"),
        (["1="], {"max_tokens": 0}, "max_tokens=0 must be from 1 to"),
        (["1="], {"max_tokens": 10**6}, "max_tokens=1000000 are more than the"),
        (["1="], {"samples": 1.5}, "samples=1.5 must be a whole number, not float"),
        (["1="], {"temperature": -1}, "temperature=-1 must be from 0 to 1000"),
        (["1="], {"top_p": 0}, "top_p=0 must be from 1e-06 to 1"),
        (["1="], {"seed": None}, "seed=None must be a whole number"),
    ],
)
def test_mistakes(policy, prompts, arguments, said):
    with pytest.raises(limr_jax.InputError) as raised:
        limr_jax.generate(policy, prompts, **arguments)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_nothing_is_asked(policy):
    assert limr_jax.generate(policy, []) == []


@pytest.mark.parametrize(
    "path, arguments, said",
    [
        ("/absent", {}, "/absent"),
        (ROOT, {}, "is not a checkpoint"),
        (ASSETS, {"dtype": "float8"}, "'float8' is unknown"),
    ],
)
def test_no_policy(path, arguments, said):
    with pytest.raises(limr_jax.InputError, match=said):
        limr_jax.load_policy(path, **arguments)


@pytest.mark.soak
def test_over_two_devices(policy):
    spread = limr_jax.load_policy(ASSETS, devices=jax.devices()[:2])
    assert spread.mesh.size == 2
    here, there = (
        limr_jax.generate(each, PROMPTS[:2], temperature=0.0, max_tokens=24)
        for each in (policy, spread)
    )
    assert [x.text for [x] in here] == [x.text for [x] in there]
