"""Which model a config names: what its first parameters are known by."""

import pytest
from ml_collections import ConfigDict

from limr_jax.errors import InputError
from limr_jax.models import from_config


def test_what_a_checkpoint_holds_is_in_its_digest(tmp_path, monkeypatch):
    """A large file is looked at in places, its first and last byte among them."""
    monkeypatch.setattr(from_config, "_DIGESTED", 64)
    monkeypatch.setattr(from_config, "_PLACES", 4)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    config.write_text("{}")
    assert from_config.init_digest("random") is None
    seen = set()
    for content in (
        b"0" * 64,  # all of a small one
        b"0" * 63 + b"1",
        b"0" * 1000,
        b"1" + b"0" * 999,
        b"0" * 999 + b"1",
        b"0" * 1001,
    ):
        weights.write_bytes(content)
        digest = from_config.init_digest(str(tmp_path))
        assert digest == from_config.init_digest(str(tmp_path))
        seen.add(digest)
    config.write_text("{ }")
    (tmp_path / "notes.txt").write_text("of no account")
    seen.add(from_config.init_digest(str(tmp_path)))
    assert len(seen) == 7


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"base_dtype": "int8"}, "model.base_dtype=int8 with model.lora.rank=0"),
        ({"lora": {"init": "peft"}}, "model.lora.init=peft with model.lora.rank=0"),
    ],
)
def test_a_frozen_base_without_adapters_is_refused_by_all_programs(fields, said):
    """launch/evaluate.py would say fp32's accuracy of an int8 base."""
    section = ConfigDict({"base_dtype": "float32", "lora": {"rank": 0, "init": ""}})
    from_config.refuse_unused(section)
    section.update(fields)
    with pytest.raises(InputError, match=said):
        from_config.read_model_config(section, 1)
    section.lora.rank = 1
    from_config.refuse_unused(section)
    from_config.refuse_unused(ConfigDict({"init": "random"}))  # launch/sft.py's
