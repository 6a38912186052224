"""Which model a config names: what its first parameters are known by."""

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
