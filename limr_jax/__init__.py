r"""Data-efficient reinforcement learning of language-model reasoning, in JAX.

What this module has is the library: it works without the launchers, and each name is
loaded when it is first asked for, so that `import limr_jax` loads no JAX.
limr_jax/library/README.md shows each piece at work.

    >>> import limr_jax
    >>> limr_jax.grade(r"\frac12", "0.5")
    True
    >>> limr_jax.advantage("dr_grpo", [[1.0, 0.0, 0.0, 0.0]]).tolist()
    [[0.75, -0.25, -0.25, -0.25]]
"""

import difflib
import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limr_jax import algorithms as algorithms
    from limr_jax.errors import InputError as InputError
    from limr_jax.library.curves import Curve as Curve
    from limr_jax.library.curves import read_curves as read_curves
    from limr_jax.library.curves import read_rollouts as read_rollouts
    from limr_jax.library.curves import reward_curves as reward_curves
    from limr_jax.library.grading import grade as grade
    from limr_jax.library.grading import verdicts as verdicts
    from limr_jax.library.policies import Completion as Completion
    from limr_jax.library.policies import Policy as Policy
    from limr_jax.library.policies import generate as generate
    from limr_jax.library.policies import load_policy as load_policy
    from limr_jax.library.policies import save_policy as save_policy
    from limr_jax.library.selection import advantage as advantage
    from limr_jax.library.selection import prompt_sampler as prompt_sampler
    from limr_jax.rewards.math.grade import Verdict as Verdict
    from limr_jax.samplers.interface import PromptSampler as PromptSampler
    from limr_jax.studies.reward_curves import Curves as Curves

__version__ = "0.3.0"

# Name → the module that has it; what a type checker reads stands above.
_HOMES = {
    "Completion": "limr_jax.library.policies",
    "Curve": "limr_jax.library.curves",
    "Curves": "limr_jax.studies.reward_curves",
    "InputError": "limr_jax.errors",
    "Policy": "limr_jax.library.policies",
    "PromptSampler": "limr_jax.samplers.interface",
    "Verdict": "limr_jax.rewards.math.grade",
    "advantage": "limr_jax.library.selection",
    "algorithms": "limr_jax",
    "generate": "limr_jax.library.policies",
    "grade": "limr_jax.library.grading",
    "load_policy": "limr_jax.library.policies",
    "prompt_sampler": "limr_jax.library.selection",
    "read_curves": "limr_jax.library.curves",
    "read_rollouts": "limr_jax.library.curves",
    "reward_curves": "limr_jax.library.curves",
    "save_policy": "limr_jax.library.policies",
    "verdicts": "limr_jax.library.grading",
}

# Written out, for a type checker does not compute it.
__all__ = [
    "Completion",
    "Curve",
    "Curves",
    "InputError",
    "Policy",
    "PromptSampler",
    "Verdict",
    "__version__",
    "advantage",
    "algorithms",
    "generate",
    "grade",
    "load_policy",
    "prompt_sampler",
    "read_curves",
    "read_rollouts",
    "reward_curves",
    "save_policy",
    "verdicts",
]


def _load(name: str) -> Any:
    """What this module gives under the name; else AttributeError with a hint."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(_unknown(name), name=name)
    if home == __name__:
        return importlib.import_module(f"{home}.{name}")
    value = getattr(importlib.import_module(home), name)
    # The next time it is found without this function.
    globals()[name] = value
    return value


# A type checker that saw it would let every name pass.
if not TYPE_CHECKING:
    __getattr__ = _load


def __dir__() -> list[str]:
    return sorted(__all__)


def _unknown(name: str) -> str:
    """What is wrong with an attribute of this module, and what to write instead."""
    complaint = f"module {__name__!r} has no attribute {name!r}"
    is_name = name.isidentifier() and not name.startswith("_")
    if is_name and importlib.util.find_spec(f"{__name__}.{name}"):
        return f"{complaint}; it is a module: import {__name__}.{name}"
    lower = {each.lower(): each for each in __all__}
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    hint = f"; did you mean {lower[near[0]]!r}?" if near else ""
    return f"{complaint}{hint} (dir({__name__}) has all names)"
