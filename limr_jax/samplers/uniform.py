"""Every problem once an epoch, whatever its rewards."""

from limr_jax.samplers import importance
from limr_jax.samplers.interface import PromptSampler
from limr_jax.samplers.order import draw_in_order, first_order


def uniform(*, problems: int, prompts: int, key) -> PromptSampler:
    """The sampler that draws every problem once an epoch, whatever its rewards.

    An epoch is ceil(N / P) steps: its last batch is filled from the next one's order.
    key: of the first epoch's order.
    """
    return PromptSampler(
        init=lambda: first_order(key, problems),
        sample=lambda state, key, earlier=None: draw_in_order(
            state, key, prompts, earlier
        ),
        update=lambda state, ids_P, correct_PG, valid_PG: state,
        report=lambda state, ids_P: {"epoch": state.epoch + state.position / problems},
        in_order=True,
        importance=lambda state, key: importance.uniformly(prompts),
    )
