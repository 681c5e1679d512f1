"""Where weights of one leaf may be removed: exact counts, deterministic ties.

Of equal scores those with the lower index stay; a NaN score stays always, so that it is seen.
Everything here runs inside `jit`, with a traced count too.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.types import Array

Count = Any  # int, or int32 [] when traced.
Pattern = Callable[[Array, Count], Array]  # (scores, how many to remove) -> mask.
_LARGEST = float(jnp.finfo(jnp.float32).max)


@jax.jit
def unstructured(scores: Array, count: Count) -> Array:
  """Removes the `count` lowest scores, wherever they are.

  The threshold is found by bisection on the bits of the scores, 32 counting passes: exact, several
  times faster than a sort on CPU, and sums only, so that sharded scores are never gathered.

  Args:
    scores: float `[...]`, fewer than 2^31 of them.
    count: how many to remove, clipped to [0, size]; int or traced int32.

  Returns:
    bool `[...]`, exactly `count` of them False.

  Example:
    >>> import jax.numpy as jnp
    >>> unstructured(jnp.array([5.0, 1.0, 1.0, 1.0]), 2).tolist()
    [True, True, False, False]
  """
  keep = jnp.clip(scores.size - jnp.asarray(count, jnp.int32), 0, scores.size)
  # As unsigned bits, descending: the kept are the `keep` smallest keys.
  keys = ~_ordered_bits(scores)
  last = _kth_smallest(keys, keep)
  below, tied = keys < last, keys == last
  index = jax.lax.iota(jnp.uint32, scores.size).reshape(scores.shape)
  missing = keep - jnp.sum(below, dtype=jnp.int32)
  tie_last = _kth_smallest(jnp.where(tied, index, jnp.uint32(2**32 - 1)), missing)
  return (keep > 0) & (below | (tied & (index <= tie_last)))


def n_m(n: int, m: int, *, axis: int = -2) -> Pattern:
  """At most `n` weights stay in every group of `m` consecutive along the contraction axis.

  Args:
    n: how many stay, `0 < n < m`.
    m: the size of a group; the axis must be a multiple of it.
    axis: -2, the contraction of a kernel `[in, out]` or `[height, width, in, out]`; -1 for a table
      `[V, d]` that is contracted over d.

  Returns:
    Pattern. At sparsity `1 - n / m` the pattern is complete; below it (a schedule on its way) the
    lowest scores of those that it will remove are removed first. A count that the pattern cannot
    reach raises ValueError if it is known, and gives the complete pattern if it is traced.

  Raises:
    ValueError: if not `0 < n < m`; later, if the axis is no multiple of `m`.

  Example:
    >>> import jax.numpy as jnp
    >>> n_m(2, 4)(jnp.array([[4.0], [1.0], [2.0], [3.0]]), 2)[:, 0].tolist()
    [True, False, False, True]

  Reference:
    A. Mishra et al., Accelerating Sparse Deep Neural Networks, 2021, arXiv:2104.08378.
  """
  if not 0 < n < m:
    raise ValueError(f"need 0 < n < m, got n={n}, m={m}")

  def pattern(scores: Array, count: Count) -> Array:
    if scores.shape[axis] % m:
      raise ValueError(f"axis {axis} of {scores.shape} is no multiple of {m}")
    complete = scores.size * (m - n) // m
    if not isinstance(count, jax.core.Tracer) and int(count) > complete:
      raise ValueError(f"{n}:{m} removes {complete} of {scores.size} weights, not {int(count)}")
    moved = jnp.moveaxis(scores, axis, -1)
    groups = moved.reshape(*moved.shape[:-1], -1, m)
    # Rank within a group, highest score first; the sort is stable, so the lower index stays.
    order = jnp.argsort(_ordered_bits(groups), axis=-1, descending=True, stable=True)
    stays = jnp.argsort(order, axis=-1) < n
    stays = jnp.moveaxis(stays.reshape(moved.shape), -1, axis)
    count = jnp.minimum(count, complete)
    return unstructured(jnp.where(stays, jnp.inf, jnp.fmin(scores, _LARGEST)), count)

  return pattern


def each_output(*, axis: int | tuple[int, ...] = -2) -> Pattern:
  """The same number of weights of every output: the lowest scores along the contraction.

  Args:
    axis: the contracted axes: -2 for a kernel `[in, out]`, -1 for a table, several for attention's
      output `[heads, head_dim, out]`.

  Returns:
    Pattern. Counts that the outputs do not divide are rounded down.

  Example:
    >>> import jax.numpy as jnp
    >>> each_output()(jnp.array([[4.0, 1.0], [3.0, 2.0]]), 2).tolist()
    [[True, False], [False, True]]

  Reference:
    M. Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024,
    arXiv:2306.11695, section 3 (weights compare within an output).
  """
  axes = axis if isinstance(axis, tuple) else (axis,)

  def pattern(scores: Array, count: Count) -> Array:
    moved = jnp.moveaxis(scores, axes, range(-len(axes), 0))
    rows = moved.reshape(-1, math.prod(moved.shape[moved.ndim - len(axes) :]))
    stays = jax.vmap(unstructured, in_axes=(0, None))(rows, count // rows.shape[0])
    return jnp.moveaxis(stays.reshape(moved.shape), range(-len(axes), 0), axes)

  return pattern


def block(*shape: int) -> Pattern:
  """Whole blocks go: those with the lowest sums of scores.

  Args:
    shape: of a block along the last axes, such as `(1, 16)`; each axis a multiple. 0 stands for the
      whole axis: `block(1, 0)` removes rows of a kernel, `block(0, 1)` columns.

  Returns:
    Pattern. Counts that are no multiple of a block are rounded down.

  Raises:
    ValueError: later, if an axis is no multiple of its block.

  Example:
    >>> import jax.numpy as jnp
    >>> block(1, 2)(jnp.array([[1.0, 9.0, 2.0, 2.0]]), 2).tolist()
    [[True, True, False, False]]

  Reference:
    S. Narang et al., Block-Sparse Recurrent Neural Networks, 2017, arXiv:1711.02782 (who take the
    largest of a block in place of the sum).
  """

  def pattern(scores: Array, count: Count) -> Array:
    sizes = scores.shape[scores.ndim - len(shape) :]
    edges = [edge or size for edge, size in zip(shape, sizes, strict=True)]
    if any(size % edge for edge, size in zip(edges, sizes, strict=True)):
      raise ValueError(f"the last axes of {scores.shape} are no multiples of blocks {shape}")
    # [*lead, n0, b0, n1, b1, ...]: sums over every b.
    lead = scores.shape[: scores.ndim - len(shape)]
    split = [part for edge, size in zip(edges, sizes, strict=True) for part in (size // edge, edge)]
    inner = tuple(len(lead) + 1 + 2 * i for i in range(len(shape)))
    totals = jnp.sum(scores.reshape(*lead, *split), axis=inner, keepdims=True)
    stays = unstructured(totals, count // math.prod(edges))
    return jnp.broadcast_to(stays, (*lead, *split)).reshape(scores.shape)

  return pattern


def _ordered_bits(x: Array) -> Array:
  """uint32 that sort as the floats do, with -0 equal to 0 and NaN above infinity."""
  x = jnp.asarray(x, jnp.float32)
  x = jnp.where(x == 0, 0.0, x)
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  bits = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(2**31))
  return jnp.where(jnp.isnan(x), jnp.uint32(2**32 - 1), bits)


def _kth_smallest(keys: Array, k: Array) -> Array:
  """The smallest value v with at least k keys <= v; uint32 []."""

  def narrow(i, found):
    # Bit by bit from the top: is the answer below `found` with this bit set?
    middle = found | (jnp.uint32(2**31) >> i.astype(jnp.uint32))
    return jnp.where(jnp.sum(keys < middle, dtype=jnp.int32) < k, middle, found)

  return jax.lax.fori_loop(0, 32, narrow, jnp.uint32(0))
