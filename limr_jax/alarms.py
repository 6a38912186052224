"""What goes wrong in a run, from the numbers of its steps: by name, with what to do.

`Alarms` warns of drift, of rewards and an entropy that have collapsed, of invalid and
truncated rollouts, each once a run, and ends a run whose drift is beyond repair.
`Divergence` ends one whose updates are no finite numbers, several steps in a row.

All that either remembers is in the lines of metrics.jsonl and warnings.jsonl, so that a
resumed run warns as an unbroken one does.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from limr_jax.errors import InputError
from limr_jax.storage.metrics import finite_number, nonfinite

# Steps whose mean is compared, so that no single step of few rollouts raises an alarm.
WINDOW = 5
# The numbers of a step that are read here; a line of metrics.jsonl has many more.
_READ = (
    "step",
    "mismatch/log_weight",
    "mismatch/log_weight_first",
    "dynamic/carried_groups",
    "flat_reward_share",
    "pass_rate",
    "rollout_entropy",
    "invalid_share",
    "truncated_share",
)
# Beside these, what `nonfinite` reads.
_OF_UPDATES = ("nonfinite_share", "critic/nonfinite_share")


@dataclasses.dataclass(frozen=True)
class Alarm:
    """One warning of a step, as warnings.jsonl keeps it."""

    step: int
    name: str  # of the alarm: one a run of each, but `nonfinite_update`, one a step
    text: str  # value, limit, and what to do


def drift(numbers: Mapping[str, Any]) -> float | None:
    """Mean |log w| of a step's tokens, in nats: rollout against learner; None: unknown.

    None where groups of the step before were learned from: what the policy has moved
    since is in it, as it is in all but the first of several updates.
    """
    if finite_number(numbers, "dynamic/carried_groups"):
        return None
    first = finite_number(numbers, "mismatch/log_weight_first")
    return first if first is not None else finite_number(numbers, "mismatch/log_weight")


class Alarms:
    """The alarms of one run, of which each is raised once.

    limits: the config's section `alarms`. by_group: whether the algorithm compares the
    rewards of a problem's rollouts, so that groups without a difference in them teach
    nothing. graded: whether anything grades; else no rollout has a valid grade, and
    that is as it should be. before: the run's metrics of earlier steps, in order, or
    those that `kept` leaves of them. raised: names of the alarms that were raised in
    them.
    """

    def __init__(
        self,
        limits: Mapping[str, Any],
        *,
        by_group: bool = True,
        graded: bool = True,
        before: Iterable[Mapping[str, Any]] = (),
        raised: Iterable[str] = (),
    ):
        self._limits, self._by_group, self._graded = limits, by_group, graded
        self._raised = {name for name in raised if isinstance(name, str)}
        self._first: list[float] = []  # entropies of the run's first steps
        self._recent = collections.deque(maxlen=WINDOW)
        self._flat = 0  # steps in a row in which no group had two rewards
        for row in before:
            self._see(row)

    def judge(self, step: int, numbers: Mapping[str, Any]) -> list[Alarm]:
        """The alarms that this step is the first to raise.

        numbers: the step's metrics by name; None or nan is no number.
        """
        self._see(numbers)
        new = []
        for name, rule in _RULES.items():
            text = None if name in self._raised else rule(self, numbers)
            if text:
                self._raised.add(name)
                new.append(Alarm(step, name, f"{name}: {text}"))
        return new

    def refuse_drift(
        self,
        step: int,
        numbers: Mapping[str, Any],
        latest: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Raise InputError where this step's drift is above alarms.drift_stop.

        latest: () → the step of the newest checkpoint, or None.
        """
        limit, value = self._limits["drift_stop"], drift(numbers)
        if limit and value is not None and value > limit:
            raise InputError(
                f"step {step}: rollout and learner differ by {value:.3g} nats a token, "
                f"above alarms.drift_stop={limit:g}, and the step is not saved; "
                f"{_last_save(latest)}. {_DRIFT_REMEDY}, or "
                "--config.alarms.drift_stop=0 in a new --workdir to go on regardless"
            )

    def _see(self, numbers) -> None:
        self._recent.append({name: finite_number(numbers, name) for name in _READ})
        entropy = finite_number(numbers, "rollout_entropy")
        if entropy is not None and len(self._first) < WINDOW:
            self._first.append(entropy)
        flat = finite_number(numbers, "flat_reward_share") == 1
        self._flat = self._flat + 1 if flat else 0

    def _mean(self, name: str) -> float | None:
        """The mean over those of the last steps that have such a number; None: none."""
        values = [x for row in self._recent if (x := row[name]) is not None]
        return sum(values) / len(values) if values else None

    def _above(self, name: str, limit: float) -> float | None:
        """The mean over the last steps, where it is above the limit; else None.

        Steps before the first count as 0 for this, so that one bad rollout of a few is
        no alarm; nor is a bad first step alone, unless it is above WINDOW limits.
        """
        value = self._mean(name)
        if value is None or not limit or value * len(self._recent) <= limit * WINDOW:
            return None
        return value

    def _drift(self, numbers) -> str | None:
        limit, value = self._limits["drift"], drift(numbers)
        if not limit or value is None or value <= limit:
            return None
        return (
            f"rollout and learner differ by {value:.3g} nats a token, above "
            f"alarms.drift={limit:g}. {_DRIFT_REMEDY}"
        )

    def _reward_collapse(self, _) -> str | None:
        limit = self._limits["flat_steps"]
        if not (limit and self._by_group) or self._flat < limit:
            return None
        rate = self._mean("pass_rate")
        if rate is not None and rate > 0.5:
            remedy = "the problems are solved: give harder ones, or end the run"
        else:
            remedy = (
                "give easier problems or a better model.init, raise group_size, and "
                "look at how the rollouts are graded (launch/report.py)"
            )
        return (
            f"no group of the last {self._flat} steps (alarms.flat_steps={limit}) had "
            f"two different rewards, so that they taught nothing; {remedy}"
        )

    def _entropy_collapse(self, _) -> str | None:
        share, now = self._limits["entropy_share"], self._mean("rollout_entropy")
        whole = len(self._first) == len(self._recent) == WINDOW
        if not (share and whole) or now is None:
            return None
        first, rate = sum(self._first) / WINDOW, self._mean("pass_rate")
        # A policy that is right nearly always has no need of entropy.
        solved = rate is not None and rate > 0.9
        if solved or now >= share * first:
            return None
        return (
            f"the entropy of the rollouts is {now:.3g} nats a token, below "
            f"{share:g} (alarms.entropy_share) of the {first:.3g} of the first steps, "
            "and problems are still wrong; raise clip.high or entropy_coefficient, "
            "lower optimizer.learning_rate, or give kl.coefficient"
        )

    def _invalid(self, numbers) -> str | None:
        limit = self._limits["invalid_share"]
        value = self._above("invalid_share", limit)
        if value is None or not self._graded:
            return None
        reasons = {
            name.removeprefix("invalid/"): share
            for name in numbers
            if name.startswith("invalid/") and (share := finite_number(numbers, name))
        }
        most = max(reasons, key=reasons.get, default=None)
        mostly = f" (mostly {most})" if most else ""
        return (
            f"{value:.1%} of the rollouts have no valid grade{mostly}, above "
            f"alarms.invalid_share={limit:g}, and are not learned from; raise "
            "grader.wall_seconds, grader.cpu_seconds or grader.memory_mib, or mend the "
            "reward: `reason` in rollouts/ says why of each"
        )

    def _truncated(self, _) -> str | None:
        limit = self._limits["truncated_share"]
        value = self._above("truncated_share", limit)
        if value is None:
            return None
        return (
            f"{value:.1%} of the rollouts were cut at rollout.max_response_length, "
            f"above alarms.truncated_share={limit:g}; raise it, or, unless they are on,"
            " give overlong.buffer or mask_truncated=true"
        )


_DRIFT_REMEDY = (
    "Give model.attention=xla if a kernel is at fault, model.dtype=float32, or "
    "mismatch.correction=tis"
)
_RULES: dict[str, Callable] = {
    "drift": Alarms._drift,
    "reward_collapse": Alarms._reward_collapse,
    "entropy_collapse": Alarms._entropy_collapse,
    "invalid_rollouts": Alarms._invalid,
    "truncated_rollouts": Alarms._truncated,
}


def kept(rows: Iterable[Mapping[str, Any]], last: int) -> list[dict[str, Any]]:
    """Of a run's metrics what `Alarms` and `Divergence` need to go on from.

    The first lines with an entropy and the last ones, and of each the numbers that are
    read: little enough to be sent to every process. last: the larger of flat_steps and
    patience.
    """
    read, last = (*_READ, *_OF_UPDATES), max(WINDOW, last)
    # A name that a line lacks stays absent: null is a number that is none.
    rows = [{name: row[name] for name in read if name in row} for row in rows]
    first = [x for x in rows if finite_number(x, "rollout_entropy") is not None]
    first = [x for x in first[:WINDOW] if x not in rows[-last:]]
    return first + rows[-last:]


class Divergence:
    """Counts the steps in a row of which an update was no finite number.

    Such an update is left out by the learner: the parameters stay as they are. A policy
    whose rollouts have no finite entropy counts as well.

    patience: the so-manieth step in a row ends the run. before: as of `Alarms`.
    """

    def __init__(self, patience: int, before: Iterable[Mapping[str, Any]] = ()):
        self._patience = patience
        self.in_a_row = 0  # up to the newest step
        self._newest_bad = 0
        for row in before:
            self._count(int(row["step"]), row)

    def judge(self, step: int, numbers: Mapping[str, Any]) -> Alarm | None:
        """The alarm of a step with such an update; None where all were finite."""
        self._count(step, numbers)
        if not self.in_a_row:
            return None
        return Alarm(
            step,
            "nonfinite_update",
            f"nonfinite_update: step {step} has {_not_finite(numbers)}; its update is "
            f"left out ({self.in_a_row} in a row, divergence.patience="
            f"{self._patience} ends the run)",
        )

    def refuse(
        self,
        step: int,
        numbers: Mapping[str, Any],
        *,
        latest: Callable[[], int | None],
        batch: str,
    ) -> None:
        """Raise InputError where the steps in a row are as many as divergence.patience.

        latest: () → the step of the newest checkpoint, or None. batch: where the step's
        batch is kept.
        """
        if self.in_a_row < self._patience:
            return
        raise InputError(
            f"step {step} has {_not_finite(numbers)}, {self.in_a_row} in a row "
            f"(divergence.patience={self._patience}), and is not saved; "
            f"{_last_save(latest)}, and {batch} holds the batch. The same command "
            "would come here again: give another --workdir a lower "
            "optimizer.learning_rate or an optimizer.clip_norm, and as model.init what "
            "launch/export.py makes of a checkpoint"
        )

    def _count(self, step: int, numbers) -> None:
        if not nonfinite(numbers):
            self.in_a_row = 0
            return
        # Not every step of fine-tuning has a line.
        self.in_a_row = self.in_a_row + 1 if step == self._newest_bad + 1 else 1
        self._newest_bad = step


def _last_save(latest: Callable[[], int | None]) -> str:
    step = latest()
    if step is None:
        return "there is no checkpoint yet"
    return f"the checkpoint of step {step} stands"


def _not_finite(numbers: Mapping[str, Any]) -> str:
    """The losses, norms and entropy of a step that are no finite numbers, as text."""
    checked = ("loss", "gradient_norm", "rollout_entropy")
    return ", ".join(
        f"{name}={'nan' if x is None else float(x)}"
        for name, x in numbers.items()
        # Of "critic/loss" the last part, so that the critic is named as well.
        if name.rpartition("/")[2] in checked and finite_number(numbers, name) is None
    )
