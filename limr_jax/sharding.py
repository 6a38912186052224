"""The mesh, and the one table of parameters: layout, weight decay and dtype of each."""

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from limr_jax import platform as platform_lib
from limr_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes that rows of a batch lie over
BATCH = PartitionSpec(ROWS)
REPLICATED = PartitionSpec()


@dataclasses.dataclass(frozen=True)
class ParamRow:
    """What is decided of a parameter: its layout, its weight decay, its dtype."""

    axes: tuple[str, ...]  # logical axes, without that of the stacked layers
    decay: bool  # whether AdamW's weight decay takes from it
    fp32: bool  # whether it stays fp32 where compute has another dtype


def _row(*axes: str, decay: bool, fp32: bool) -> ParamRow:
    return ParamRow(axes, decay, fp32)


# Parameter (its path below blocks/<position> or tail/<layer>) → its row. Norms and
# biases are not decayed. What the model reads in fp32 stays fp32: the scales of norms
# and of int8 kernels, and the value head. Of all else it reads no more digits than
# compute's dtype has.
_PARAMS = {
    "embedder/embedding": _row("vocab", "width", decay=True, fp32=False),
    "head/kernel": _row("width", "vocab", decay=True, fp32=False),
    "value_head/kernel": _row("width", decay=True, fp32=True),
    "final_norm/scale": _row("norm", decay=False, fp32=True),
    "attention/q/kernel": _row("width", "heads", "channels", decay=True, fp32=False),
    "attention/k/kernel": _row("width", "kv_heads", "channels", decay=True, fp32=False),
    "attention/v/kernel": _row("width", "kv_heads", "channels", decay=True, fp32=False),
    "attention/o/kernel": _row("heads", "channels", "width", decay=True, fp32=False),
    "attention/q/bias": _row("heads", "channels", decay=False, fp32=False),
    "attention/k/bias": _row("kv_heads", "channels", decay=False, fp32=False),
    "attention/v/bias": _row("kv_heads", "channels", decay=False, fp32=False),
    "attention/o/bias": _row("norm", decay=False, fp32=False),
    "attention/q_norm/scale": _row("norm", decay=False, fp32=True),
    "attention/k_norm/scale": _row("norm", decay=False, fp32=True),
    "attention_norm/scale": _row("norm", decay=False, fp32=True),
    "attention_out_norm/scale": _row("norm", decay=False, fp32=True),
    "mlp_norm/scale": _row("norm", decay=False, fp32=True),
    "mlp_out_norm/scale": _row("norm", decay=False, fp32=True),
    "mlp/gate/kernel": _row("width", "feed_forward", decay=True, fp32=False),
    "mlp/up/kernel": _row("width", "feed_forward", decay=True, fp32=False),
    "mlp/down/kernel": _row("feed_forward", "width", decay=True, fp32=False),
    # Of int8 kernels, the scale of each output channel: the kernel's axes of those.
    "attention/q/kernel_scale": _row("heads", "channels", decay=False, fp32=True),
    "attention/k/kernel_scale": _row("kv_heads", "channels", decay=False, fp32=True),
    "attention/v/kernel_scale": _row("kv_heads", "channels", decay=False, fp32=True),
    "attention/o/kernel_scale": _row("width", decay=False, fp32=True),
    "mlp/gate/kernel_scale": _row("feed_forward", decay=False, fp32=True),
    "mlp/up/kernel_scale": _row("feed_forward", decay=False, fp32=True),
    "mlp/down/kernel_scale": _row("width", decay=False, fp32=True),
    # LoRA's adapters, [in …, rank] and [rank, out …]; decay draws them to the base.
    "attention/q/lora_a": _row("width", "rank", decay=True, fp32=False),
    "attention/q/lora_b": _row("rank", "heads", "channels", decay=True, fp32=False),
    "attention/k/lora_a": _row("width", "rank", decay=True, fp32=False),
    "attention/k/lora_b": _row("rank", "kv_heads", "channels", decay=True, fp32=False),
    "attention/v/lora_a": _row("width", "rank", decay=True, fp32=False),
    "attention/v/lora_b": _row("rank", "kv_heads", "channels", decay=True, fp32=False),
    "attention/o/lora_a": _row("heads", "channels", "rank", decay=True, fp32=False),
    "attention/o/lora_b": _row("rank", "width", decay=True, fp32=False),
    "mlp/gate/lora_a": _row("width", "rank", decay=True, fp32=False),
    "mlp/gate/lora_b": _row("rank", "feed_forward", decay=True, fp32=False),
    "mlp/up/lora_a": _row("width", "rank", decay=True, fp32=False),
    "mlp/up/lora_b": _row("rank", "feed_forward", decay=True, fp32=False),
    "mlp/down/lora_a": _row("feed_forward", "rank", decay=True, fp32=False),
    "mlp/down/lora_b": _row("rank", "width", decay=True, fp32=False),
    "mlp/gate/bias": _row("feed_forward", decay=False, fp32=False),
    "mlp/up/bias": _row("feed_forward", decay=False, fp32=False),
    "mlp/down/bias": _row("norm", decay=False, fp32=False),
}
# Logical axis → the mesh axis that it lies along.
_MESH_AXIS = {
    "width": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "feed_forward": "tensor",
    "channels": None,
    "rank": None,  # of adapters, a few columns
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
        along the slice's own; or JAX is not as the programs need it.
    """
    platform_lib.check_options()
    devices = jax.devices() if devices is None else list(devices)
    sizes = [data, fsdp, tensor]
    written = f"data={data} x fsdp={fsdp} x tensor={tensor}"
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise InputError(
            f"mesh {written}: each axis must be 1 or more, one of them may be -1"
        )
    if -1 in sizes:
        # One factor is −1: the negative product is that of the other two.
        known = -data * fsdp * tensor
        # At least 1; where it does not come out even, the next check refuses it.
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


def param_rows(params):
    """The table's row for each parameter (arrays or shapes), in the tree of `params`.

    Raises:
      KeyError: a parameter that no row of the table names.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _find_row(_path_name(path))[0], params
    )


def param_shardings(mesh: Mesh, params):
    """A NamedSharding for each parameter (arrays or shapes), by the table above.

    Optimiser states that nest the params' tree below other keys work too; their
    scalars are replicated.

    Raises:
      InputError: the mesh does not divide an axis that must be divided.
      KeyError: a parameter that no row of the table names.
    """

    def sharding(path, leaf):
        return NamedSharding(mesh, _spec(mesh, _path_name(path), leaf))

    return jax.tree_util.tree_map_with_path(sharding, params)


def _path_name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _find_row(path: str) -> tuple[ParamRow, bool]:
    """The row of a parameter by its path, and whether it is a stack of layers'.

    Keys before the model's own (an optimiser state's) are left out.
    """
    parts = path.split("/")
    # "0/mu/blocks/0/mlp/up/kernel" → "mlp/up/kernel", which is a stack.
    root = next((i for i, part in enumerate(parts) if part in _ROOTS), 0)
    parts = parts[root:]
    in_layer = parts[0] in ("blocks", "tail")
    name = "/".join(parts[2:] if in_layer else parts)
    if name not in _PARAMS:
        raise KeyError(f"parameter {path!r}: no row of sharding.py's table names it")
    return _PARAMS[name], parts[0] == "blocks"


def _spec(mesh: Mesh, path: str, leaf) -> PartitionSpec:
    # The optimiser's count of updates, say, which has no row.
    if leaf.ndim == 0:
        return REPLICATED
    row, stacked = _find_row(path)
    # The axis of stacked layers is walked layer by layer.
    axes = (None, *row.axes) if stacked else row.axes
    if len(axes) != leaf.ndim:
        raise KeyError(f"parameter {path!r}: shape {leaf.shape}, the table has {axes}")
    return PartitionSpec(
        *(
            _mesh_axis(mesh, path, axis=axis, size=size)
            for axis, size in zip(axes, leaf.shape)
        )
    )


def _mesh_axis(mesh: Mesh, path: str, axis: str | None, size: int) -> str | None:
    mesh_axis = _MESH_AXIS[axis] if axis else None
    if mesh_axis is None or mesh.shape[mesh_axis] == 1:
        return None
    # Divided only where every device gets an equal part.
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
    """The platform that is compiled for ("cpu", "gpu", "tpu").

    That of the mesh, whose devices need not be there; without a mesh JAX's own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return device.platform if device is not None else jax.default_backend()


def shards(axis: str) -> int:
    """The number of devices along one axis of the mesh; 1 without a mesh."""
    mesh = _mesh()
    return mesh.shape[axis] if mesh is not None else 1


def device_count() -> int:
    """The number of devices of the mesh, which share a program; 1 without a mesh."""
    mesh = _mesh()
    return mesh.size if mesh is not None else 1


def divided(shape, *axes) -> PartitionSpec:
    """The PartitionSpec of an array: `axes` without those that do not divide its shape.

    axes: for each axis of the shape a mesh axis, several as a tuple, or None. All are
    dropped where there is no `jax.set_mesh`.
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
    """The array laid out by `divided(array.shape, *axes)`; as it is without a mesh."""
    if _mesh() is None:
        return array
    return jax.lax.with_sharding_constraint(array, divided(array.shape, *axes))


def row_shards(rows: int) -> int:
    """The number of parts in which so many rows lie on the mesh; 1: not divided."""
    mesh = _mesh()
    parts = math.prod(mesh.shape[name] for name in ROWS) if mesh is not None else 1
    return parts if rows % parts == 0 else 1


def on_each(function, in_specs, out_specs):
    """`function`, applied by each device to its parts of the arguments (shard_map).

    in_specs, out_specs: as of jax.shard_map. Without a mesh it is `function` itself.
    Within it this module's functions see no mesh, but for `platform`: call them before.
    """
    if _mesh() is None:
        return function
    # check_vma: a Pallas kernel does not say over which mesh axes its result varies.
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def constrain_params(params, gathered: tuple[str, ...] = ()):
    """Parameters or gradients laid out by the table, under `jax.set_mesh`.

    gathered: mesh axes along which they are whole. Where nothing says how they lie, a
    loop that adds gradients up keeps them whole on every device of `fsdp`.
    """
    mesh = _mesh()
    if mesh is None:
        return params

    def spec(path, leaf):
        axes = _spec(mesh, _path_name(path), leaf)
        return PartitionSpec(*(None if axis in gathered else axis for axis in axes))

    specs = jax.tree_util.tree_map_with_path(spec, params)
    return jax.lax.with_sharding_constraint(params, specs)
