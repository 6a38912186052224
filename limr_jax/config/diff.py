"""How two configs differ, and a digest of one."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from limr_jax.config.config_file import (
    defaults,
    is_default,
    leaves,
    todays_fields,
)


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config (or any nested mapping) as JSON gives it back: tuples are lists."""
    nested = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return json.loads(json.dumps(nested))


def config_digest(config: Mapping[str, Any]) -> str:
    """sha256 of the config's values, in hex; the order of fields does not matter."""
    text = json.dumps(plain(config), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`differences` of two configs, of which an older version may have kept the first.

    A field by its old name is that of today, and one that is newer than `old` had its
    default there.
    """
    before, after = todays_fields(plain(old)), todays_fields(plain(new))
    added = after.keys() - before.keys()
    before |= {name: after[name] for name in added if is_default(name, after[name])}
    return differences(before, after)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Every leaf in which two nested mappings differ, as `a.b: old → new`, sorted."""
    old_leaves, new_leaves = dict(leaves(plain(old))), dict(leaves(plain(new)))

    def shown(leaves, name):
        return json.dumps(leaves[name]) if name in leaves else "absent"

    return [
        f"{name}: {shown(old_leaves, name)} → {shown(new_leaves, name)}"
        for name in sorted(old_leaves.keys() | new_leaves.keys())
        # As text, since 1 == True == 1.0 and a missing field is not a null one.
        if shown(old_leaves, name) != shown(new_leaves, name)
    ]


def from_defaults(config: Mapping[str, Any], kind: str) -> str:
    """How a config differs from the file of its kind, for people: a line a field.

    kind: a name in `config_file.KINDS`.
    """
    lines = differences(defaults(kind), config)
    file = f"config: configs/{kind}.py"
    return "\n  ".join([f"{file}, but for", *lines]) if lines else file
