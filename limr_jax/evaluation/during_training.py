"""The evaluations of a run that trains: before it, every so many steps, after it."""

import dataclasses
import time
from collections.abc import Callable

from limr_jax import console
from limr_jax.data.problems import TokenizedProblems
from limr_jax.evaluation.accuracy import summary
from limr_jax.evaluation.evaluator import Evaluator
from limr_jax.rollout.sampling import Sampling
from limr_jax.storage import metrics


@dataclasses.dataclass(frozen=True)
class DuringTraining:
    """Evaluates the policy on the held-out set and logs it, once for each step."""

    eval_set: TokenizedProblems | None  # None: no evaluation
    evaluator: Evaluator | None  # of one response a problem
    make_sampled: Callable[[], Evaluator] | None  # of k responses; None: no pass@k
    greedy: Sampling  # on the devices, as the next
    sampling: Sampling  # of the training rollouts
    every: int  # steps; 0: none but before and after
    log: metrics.Metrics

    def before_training(self, step: int, params) -> None:
        """Of step 0, greedy accuracy and pass@k; of a resumed step, where it is due."""
        if step == 0 and self.eval_set and not self.log.evaluated(0):
            sampled = {}
            if self.make_sampled:
                sampled = self._figures(self.make_sampled(), params, self.sampling)
                sampled = {f"sampled/{name}": x for name, x in sampled.items()}
            greedy = self._figures(self.evaluator, params, self.greedy)
            self._log(0, greedy | sampled)
        # A run may have been stopped after the update of a step and before its
        # evaluation.
        self.evaluate_where_due(step, params)

    def evaluate_where_due(self, step: int, params) -> None:
        """`evaluate` every so many steps."""
        if self.every and step % self.every == 0:
            self.evaluate(step, params)

    def evaluate(self, step: int, params) -> None:
        """Greedy accuracy of the policy after this step, unless it is logged."""
        if self.eval_set and not self.log.evaluated(step):
            self._log(step, self._figures(self.evaluator, params, self.greedy))

    def accuracy(self) -> dict[str, float | None]:
        """{"accuracy": the newest one logged}, None before the first; {}: no set."""
        if not self.eval_set:
            return {}
        return {"accuracy": (self.log.newest_evaluation() or {}).get("accuracy")}

    def _figures(self, evaluator: Evaluator, params, sampling: Sampling) -> dict:
        start, problems = time.perf_counter(), len(self.eval_set)
        with console.progress("evaluate", problems, unit="problem") as advance:
            result = evaluator(params, sampling, advance)
        levels = self.eval_set.problems.columns.get("level")
        return summary(result, levels) | {"seconds": time.perf_counter() - start}

    def _log(self, step: int, figures: dict) -> None:
        self.log.evaluation(step, figures)
        logged = self.log.evaluated(step)
        names = ("accuracy", "well_formed", "ungradable_share")
        accuracy, formed, ungradable = (f"{logged[name]:.1%}" for name in names)
        console.say(
            f"evaluation after step {step}: accuracy {accuracy} of "
            f"{len(self.eval_set)} held-out problems, {formed} well formed, "
            f"{ungradable} ungradable"
        )
