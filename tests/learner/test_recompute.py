"""A run whose old log-probabilities are the learner's own, with and without KL."""

import pytest
from tiny_run import (
    configure,
    run_records,
    set_up,
    stopping,
    with_parity,
    write_problems,
)

from limr_jax.storage import metrics
from limr_jax.train import train

FIELDS = {
    "mismatch__recompute": True,
    "mismatch__correction": "icepop",
    "minibatches_per_step": 2,
    "num_steps": 3,
}


@pytest.mark.slow
@pytest.mark.parametrize("coefficient", [0.0, 0.1])
def test_old_log_probabilities_are_computed_again(
    coefficient, quick_compiler, tmp_path
):
    """The reference's pass has them too, where there is a reference."""
    problems = write_problems(tmp_path / "train.jsonl", 10)
    config = configure(problems, kl__coefficient=coefficient, **FIELDS)
    made = with_parity(set_up(config))
    assert bool(made.programs.reference) == bool(coefficient)
    assert bool(made.programs.old) == (not coefficient)
    train(made, config, tmp_path / "whole")
    rows = list(metrics.read_metrics(tmp_path / "whole"))
    for row in rows:
        # The second update's ratio has moved; w is of the policy before the step.
        assert row["drift_max"] > 1e-3
        assert row["mismatch/log_weight"] <= row["mismatch/log_weight_max"] < 1e-5
        assert row["mismatch/kl"] < 1e-9
        assert row["mismatch/touched_share"] == 0
        assert row["mismatch/ess"] == pytest.approx(1, abs=1e-5)
        assert ("seconds_old" in row) == (not coefficient)
    assert len({row["compile_count"] for row in rows}) == 1
    with pytest.raises(KeyboardInterrupt):
        train(stopping(made, 3), config, tmp_path / "again")
    train(made, config, tmp_path / "again")
    assert run_records(tmp_path / "again") == run_records(tmp_path / "whole")


@pytest.mark.slow
def test_without_a_recomputation_the_weight_is_the_ratio(quick_compiler, tmp_path):
    """Of one update a step it is 1 to 1e-5, and no bound acts."""
    problems = write_problems(tmp_path / "train.jsonl", 10)
    fields = {"mismatch__correction": "icepop", "mismatch__high": 1.001}
    config = configure(problems, num_steps=2, mismatch__low=0.999, **fields)
    made = with_parity(set_up(config))
    assert made.programs.old is None
    train(made, config, tmp_path / "run")
    for row in metrics.read_metrics(tmp_path / "run"):
        assert row["mismatch/touched_share"] == 0
        assert row["mismatch/log_weight_max"] == row["drift_max"] < 1e-5
        assert row["gradient_norm"] > 0
