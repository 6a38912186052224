"""TFDS builder of the base model's training texts."""

from limr_jax.data.datasets.arithmetic import arithmetic_dataset_builder, expressions


class Builder(arithmetic_dataset_builder.Builder):
    """Solutions written with their writers' habits; no held-out expression occurs."""

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples("sft")}

    def _generate_examples(self, split):
        for problem in expressions.problems(split, 150_000, seed=0):
            yield problem["id"], problem
