"""TFDS builder of the embedded task."""

import logging

import numpy as np
import tensorflow_datasets as tfds

from limr_jax.data.datasets.arithmetic import expressions, mixture

# Problems a split. Training is small on purpose: prompt selection is about visiting
# the same problems many times.
COUNTS = {"train": 1024, "eval": 1000}
SEED = 0
# Splits that are prepared when they are asked for, as mixture.py has them.
MADE_TO_ORDER = (mixture.SHIFTED, "train-COUNT…")

# TFDS warns of each config that no list holds, and there are too many for a list.
logging.getLogger("absl").addFilter(
    lambda record: "custom data configuration" not in record.getMessage()
)


def config_of(split: str) -> tfds.core.BuilderConfig | None:
    """The builder's config for a split that is made to order; None: it has no need.

    Raises InputError for the name of a mixture that there is not.
    """
    if split == mixture.SHIFTED or mixture.parse(split):
        return tfds.core.BuilderConfig(name=split)
    return None


class Builder(tfds.core.GeneratorBasedBuilder):
    """Integer expressions with worked solutions; train and eval share none.

    With a config of `config_of` the set is that one split.
    """

    VERSION = tfds.core.Version("1.0.2")
    RELEASE_NOTES = {"1.0.2": "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {
            "id": text,
            "problem": text,
            "answer": text,
            "level": tfds.features.Scalar(dtype=np.int32),
            "traps": text,
            "solution": text,
        }
        if self.builder_config:
            features["kind"] = text
            features["wrong"] = tfds.features.Scalar(dtype=np.bool_)
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        if not self.builder_config:
            return {split: self._generate_examples(split) for split in COUNTS}
        split = self.builder_config.name
        if split == mixture.SHIFTED:
            rows = mixture.shifted_problems(seed=SEED)
        else:
            rows = mixture.problems(split, mixture.parse(split), seed=SEED)
        # TFDS allows no hyphen in the name of a split.
        return {"made": ((row["id"], row) for row in rows)}

    def _generate_examples(self, split):
        for problem in expressions.problems(split, COUNTS[split], SEED):
            yield problem["id"], problem
