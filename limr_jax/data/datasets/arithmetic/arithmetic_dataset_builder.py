"""TFDS builder of the embedded task."""

import numpy as np
import tensorflow_datasets as tfds

from limr_jax.data.datasets.arithmetic import expressions

# Problems a split. Training is small on purpose: prompt selection is about visiting
# the same problems many times.
COUNTS = {"train": 1024, "eval": 1000}
SEED = 0


class Builder(tfds.core.GeneratorBasedBuilder):
    """Integer expressions with worked solutions; train and eval share none."""

    VERSION = tfds.core.Version("1.0.2")
    RELEASE_NOTES = {"1.0.2": "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "id": text,
                    "problem": text,
                    "answer": text,
                    "level": tfds.features.Scalar(dtype=np.int32),
                    "traps": text,
                    "solution": text,
                }
            )
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        for problem in expressions.problems(split, COUNTS[split], SEED):
            yield problem["id"], problem
