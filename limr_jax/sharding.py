"""The mesh and the one table that says how each parameter lies on it."""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from limr_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes that rows of a batch lie over
BATCH = PartitionSpec(ROWS)
REPLICATED = PartitionSpec()

# Parameter name (below blocks/<position> or tail/<layer>) → its logical axes.
_LOGICAL_AXES = {
    "embedder/embedding": ("vocab", "width"),
    "head/kernel": ("width", "vocab"),
    "value_head/kernel": ("width",),
    "final_norm/scale": ("norm",),
    "attention/q/kernel": ("width", "heads", "channels"),
    "attention/k/kernel": ("width", "kv_heads", "channels"),
    "attention/v/kernel": ("width", "kv_heads", "channels"),
    "attention/o/kernel": ("heads", "channels", "width"),
    "attention/q/bias": ("heads", "channels"),
    "attention/k/bias": ("kv_heads", "channels"),
    "attention/v/bias": ("kv_heads", "channels"),
    "attention/o/bias": ("norm",),
    "attention/q_norm/scale": ("norm",),
    "attention/k_norm/scale": ("norm",),
    "attention_norm/scale": ("norm",),
    "attention_out_norm/scale": ("norm",),
    "mlp_norm/scale": ("norm",),
    "mlp_out_norm/scale": ("norm",),
    "mlp/gate/kernel": ("width", "feed_forward"),
    "mlp/up/kernel": ("width", "feed_forward"),
    "mlp/down/kernel": ("feed_forward", "width"),
    "mlp/gate/bias": ("feed_forward",),
    "mlp/up/bias": ("feed_forward",),
    "mlp/down/bias": ("norm",),
}
_MESH_AXIS = {
    "width": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "feed_forward": "tensor",
    "channels": None,
    "norm": None,  # vectors of a few kilobytes: replicated
}
# Replicated over `tensor` where it does not divide them: kv heads may be fewer than
# the axis, and published vocabularies are odd. Anything else that does not divide is
# the user's mesh to change.
_MAY_REPLICATE = {"kv_heads", "vocab"}
_ROOTS = ("embedder", "blocks", "tail", "final_norm", "head", "value_head")


def make_mesh(data: int, fsdp: int, tensor: int, devices=None) -> Mesh:
    """The mesh ("data", "fsdp", "tensor") over all devices; one axis may be -1.

    Raises:
      InputError: the axes' product is not the number of devices, or they do not lie
        along the slice's own.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [data, fsdp, tensor]
    written = "data={} x fsdp={} x tensor={}".format(*sizes)
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise InputError(
            f"mesh {written}: each axis must be 1 or more, one of them may be -1"
        )
    if -1 in sizes:
        known = -data * fsdp * tensor
        sizes[sizes.index(-1)] = max(len(devices) // known, 1)
    if sizes[0] * sizes[1] * sizes[2] != len(devices):
        raise InputError(
            f"mesh {written} does not make the {len(devices)} devices there are; "
            "change an axis, or set one to -1"
        )
    types = (AxisType.Auto,) * len(AXES)
    try:
        return jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=devices)
    except NotImplementedError as error:  # of a TPU's torus
        chips = " x ".join(map(str, np.max([x.coords for x in devices], axis=0) + 1))
        raise InputError(
            f"mesh {written} does not lie along the slice's {chips} chips: each of its "
            "axes must be a product of some of those, or 1"
        ) from error


def param_shardings(mesh: Mesh, params):
    """A NamedSharding for each parameter (arrays or shapes), by the table above.

    Optimiser states that nest the params' tree below other keys work too; their
    scalars are replicated.

    Raises:
      InputError: the mesh does not divide an axis that must be divided.
      KeyError: a parameter that no row of the table names.
    """

    def sharding(path, leaf):
        spec = _spec(mesh, jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, params)


def _spec(mesh: Mesh, path: str, leaf) -> PartitionSpec:
    if leaf.ndim == 0:
        return REPLICATED
    parts = path.split("/")
    root = next((i for i, part in enumerate(parts) if part in _ROOTS), 0)
    parts = parts[root:]
    in_layer = parts[0] in ("blocks", "tail")
    name = "/".join(parts[2:] if in_layer else parts)
    if name not in _LOGICAL_AXES:
        raise KeyError(f"parameter {path!r}: no row of sharding.py's table names it")
    axes = _LOGICAL_AXES[name]
    if parts[0] == "blocks":
        axes = (None, *axes)  # the stacked layers, walked one by one
    if len(axes) != leaf.ndim:
        raise KeyError(f"parameter {path!r}: shape {leaf.shape}, the table has {axes}")
    return PartitionSpec(
        *(_mesh_axis(mesh, path, axis, size) for axis, size in zip(axes, leaf.shape))
    )


def _mesh_axis(mesh: Mesh, path: str, axis: str | None, size: int) -> str | None:
    mesh_axis = _MESH_AXIS[axis] if axis else None
    if mesh_axis is None or mesh.shape[mesh_axis] == 1:
        return None
    if size % mesh.shape[mesh_axis] == 0:
        return mesh_axis
    if axis in _MAY_REPLICATE:
        return None
    raise InputError(
        f"mesh axis {mesh_axis}={mesh.shape[mesh_axis]} does not divide the {size} "
        f"{axis} of {path}; use a divisor of {size}"
    )


def _mesh():
    """The mesh of `jax.set_mesh`, or None; `on_each` device there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    alone = mesh.empty or mesh.are_all_axes_manual
    return None if alone or not set(AXES) <= set(mesh.axis_names) else mesh


def platform() -> str:
    """What is compiled for: that of the mesh, which may not be there; else JAX's."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return device.platform if device is not None else jax.default_backend()


def shards(axis: str) -> int:
    """Devices along one axis of the mesh; 1 without a mesh."""
    mesh = _mesh()
    return mesh.shape[axis] if mesh is not None else 1


def device_count() -> int:
    """Devices that share what is computed: those of the mesh; 1 without one."""
    mesh = _mesh()
    return mesh.size if mesh is not None else 1


def divided(shape, *axes) -> PartitionSpec:
    """The mesh axes (a name or several) of each axis, dropped where they do not divide.

    Under `jax.set_mesh`; elsewhere all are dropped.
    """
    mesh = _mesh()

    def count(names):
        names = (names,) if isinstance(names, str) else names or ()
        return math.prod(mesh.shape[name] for name in names)

    if mesh is None:
        return REPLICATED
    return PartitionSpec(
        *(names if n % count(names) == 0 else None for names, n in zip(axes, shape))
    )


def constrain(array: jax.Array, *axes) -> jax.Array:
    """`array` laid out by mesh axes as `divided` has it; without a mesh as it is."""
    if _mesh() is None:
        return array
    return jax.lax.with_sharding_constraint(array, divided(array.shape, *axes))


def row_shards(rows: int) -> int:
    """Parts that so many rows of a batch lie in; 1 where the mesh does not divide."""
    mesh = _mesh()
    parts = math.prod(mesh.shape[name] for name in ROWS) if mesh is not None else 1
    return parts if rows % parts == 0 else 1


def on_each(function, in_specs, out_specs):
    """`function` of what each device holds of its arguments; without a mesh of all.

    Within it nothing of this module knows of a mesh, but `platform`: ask before.
    """
    if _mesh() is None:
        return function
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def constrain_params(params, gathered: tuple[str, ...] = ()):
    """Parameters or gradients laid out by the table, under `jax.set_mesh`.

    Where nothing says so, a loop that adds gradients up keeps them whole on every
    device of `fsdp`. They are whole along the mesh axes that are `gathered`.
    """
    mesh = _mesh()
    if mesh is None:
        return params

    def spec(path, leaf):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = _spec(mesh, path, leaf)
        return PartitionSpec(*(None if axis in gathered else axis for axis in axes))

    specs = jax.tree_util.tree_map_with_path(spec, params)
    return jax.lax.with_sharding_constraint(params, specs)
