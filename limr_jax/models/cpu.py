"""What only XLA:CPU needs, in one place.

Every function here gives what its plain form would give; it is written so that XLA:CPU
runs it quickly. Other compilers take either form, so all platforms call these and no
caller asks which it is on; `cast_late` asks itself.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero

from limr_jax.sharding import platform

PART = 160  # columns of a part of the queries, at least


def argmax(score_BV):
    """int32: the first index of each row's largest.

    XLA:CPU's own argmax runs an element at a time, and takes what it is fused with
    along: 4.7 ms of a step of 64 rows and 4,096 words where this takes 0.5.
    """
    # Read twice below: fused, it would be computed twice.
    score_BV = unfused(score_BV)
    index_BV = jax.lax.broadcasted_iota(jnp.int32, score_BV.shape, 1)
    best_B1 = jnp.max(score_BV, axis=-1, keepdims=True)
    last = score_BV.shape[-1] - 1  # where a score is no number
    return jnp.min(jnp.where(score_BV == best_B1, index_BV, last), axis=-1)


def unfused(arrays):
    """The arrays, computed once: XLA:CPU would fuse them into all that reads them."""
    return jax.lax.optimization_barrier(arrays)


def cast_late(kernel, x):
    """The two as they are: whoever casts the kernel to x's dtype does so beside x.

    XLA:CPU would cast before the loop that x changes in, and keep all layers of an int8
    base in the dtype of compute.
    """
    # libtpu's compiler casts within the product, and copies a layer for a barrier.
    if platform() == "tpu":
        return kernel, x
    return jax.lax.optimization_barrier((kernel, x))


def cached(x):
    """x in the dtype that a cache of it has: on a CPU fp32, else its own.

    XLA:CPU writes a part of a bf16 array by way of a copy of all of it in fp32: a
    column of a cache of 64 rows and 192 columns takes 3.5 ms, in fp32 0.04.
    """
    return x.astype(jnp.float32) if platform() == "cpu" else x


def named(x, name: str):
    """x, which a policy of `jax.checkpoint` may keep by this name.

    What is kept of all layers is written a part at a time (`cached`): bf16 as its bits,
    in half of the memory.
    """
    if x.dtype == jnp.bfloat16 and platform() == "cpu":
        return _named_bits(x, name)
    return checkpoint_name(x, name)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _named_bits(x, name):
    bits = jax.lax.bitcast_convert_type(x, jnp.uint16)
    return jax.lax.bitcast_convert_type(checkpoint_name(bits, name), x.dtype)


@_named_bits.defjvp
def _named_bits_jvp(name, primals, tangents):
    # Not called as itself: a policy looks for the name in what is differentiated.
    (x,), (x_tangent,) = primals, tangents
    return _named_bits.fun(x, name), x_tangent


def query_parts(columns: int) -> list[tuple[int, int]]:
    """(start, end) of the parts that so many queries are attended from, one by one.

    Of a part, the columns behind its end need not be read where nobody sees a later
    column. In as many parts as pay, forward and backward in ms: 4 rows of 320 columns
    in one part 13.7, two 11.7, four 11.7; 2 rows of 576 31.5, 18.7, three 15.8, four
    14.5. Each is compiled.
    """
    parts = max(1, min(columns // PART, 4))
    ends = [columns * i // parts for i in range(parts + 1)]
    return list(itertools.pairwise(ends))


def contract(x, kernel, count: int, dtype=None, *, last=False):
    """`jnp.tensordot(x, kernel, count)`, operands of x's dtype, the result in `dtype`.

    None is x's dtype. last: the kernel's last axes are summed, not its first. The
    derivative is tensordot's, its products read the gradient in x's dtype; it is
    written out because JAX's own makes the kernel's gradient transposed, and XLA:CPU
    then writes the activations out transposed first. For it the kernel is kept as it
    came: cast, it would be a copy of all layers of a scan.
    """
    return _contract(x, kernel, count, dtype, last, (x.dtype, kernel.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _contract(x, kernel, count, dtype, last, _):
    kernel = kernel.astype(x.dtype)
    return _product(x, kernel, (_ends(x, count), _summed(kernel, count, last)), dtype)


def _ends(x, count: int) -> range:
    return range(x.ndim - count, x.ndim)


def _summed(kernel, count: int, last: bool) -> range:
    return _ends(kernel, count) if last else range(count)


def product_dtype(dtype):
    """The dtype to have a product made in that is then rounded to `dtype`.

    XLA:CPU has bf16 multiplied by the processor's own instructions where the product is
    fp32, and by a plain loop where it is bf16: 830 against 170 GFLOP/s.
    """
    return jnp.float32 if platform() == "cpu" else dtype


def _product(x, y, axes, dtype=None):
    """`jnp.tensordot`, rounded once to `dtype` (None: x's). axes: a range of each."""
    dtype = dtype or x.dtype
    axes = tuple(map(tuple, axes))
    wide = product_dtype(dtype)
    # Not einsum: it may swap the operands, and XLA:CPU then copies the result.
    return jnp.tensordot(x, y, axes, preferred_element_type=wide).astype(dtype)


def _contract_forward(x, kernel, count, dtype, last, dtypes):
    y = _contract(x.value, kernel.value, count, dtype, last, dtypes)
    # Each is read by the other's gradient alone, and a frozen kernel asks for none: not
    # left to the compiler, so that a count of the program's products is right.
    return y, (
        x.value if kernel.perturbed else None,
        kernel.value if x.perturbed else None,
    )


def _contract_backward(count, _, last, dtypes, operands, gradient):
    x, kernel = operands
    if isinstance(gradient, SymbolicZero):
        return None, None
    # x [rows…, summed…] · kernel [summed…, columns…] → y [rows…, columns…]: what is
    # left out of one product's sum is summed in the other's gradient.
    x_dtype, kernel_dtype = dtypes
    gradient = gradient.astype(x_dtype)
    of_x = of_kernel = None
    if kernel is not None:
        kernel = kernel.astype(x_dtype)
        columns = kernel.ndim - count
        kernel_axes = range(columns) if last else range(count, kernel.ndim)
        of_x = _product(gradient, kernel, (_ends(gradient, columns), kernel_axes))
    if x is not None:
        rows = range(x.ndim - count)
        first, second = (gradient, x) if last else (x, gradient)
        of_kernel = _product(first, second, (rows, rows)).astype(kernel_dtype)
    return of_x, of_kernel


_contract.defvjp(_contract_forward, _contract_backward, symbolic_zeros=True)
