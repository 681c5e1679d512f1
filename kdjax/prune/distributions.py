"""How a sparsity spreads over the selected leaves: counts to remove, leaf by leaf."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.prune.patterns import Count, unstructured
from kdjax.types import Array

Distribution = Callable[[list[Array], Any], list[Count]]  # (scores, sparsity) -> counts removed.


def uniform(scores: list[Array], sparsity: float | Array) -> list[Count]:
  """The same fraction of every leaf: `round(sparsity * size)` of each.

  Args:
    scores: one array a selected leaf.
    sparsity: in [0, 1], a float or a traced float32 scalar (then counts are exact up to leaves of
      2^24 weights).

  Returns:
    How many to remove of each leaf.

  Example:
    >>> import numpy as np
    >>> uniform([np.ones([4, 5]), np.ones([10, 3])], 0.5)
    [10, 15]
  """
  return [round_count(sparsity, leaf.size) for leaf in scores]


def global_sparsity(scores: list[Array], sparsity: float | Array) -> list[Count]:
  """The lowest scores of all leaves together: exactly `round(sparsity * total)` of them.

  Of equal scores those of earlier leaves stay. Scores must be comparable between leaves.

  Args:
    scores: one array a selected leaf.
    sparsity: in [0, 1].

  Returns:
    How many to remove of each leaf, int32 scalars.

  Example:
    >>> import jax.numpy as jnp
    >>> counts = global_sparsity([jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]])], 0.5)
    >>> [int(count) for count in counts]
    [2, 0]
  """
  flat = jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in scores])
  mask = unstructured(flat, round_count(sparsity, flat.size))
  ends = np.cumsum([leaf.size for leaf in scores])
  return [
    leaf.size - jnp.sum(mask[end - leaf.size : end], dtype=jnp.int32)
    for leaf, end in zip(scores, ends, strict=True)
  ]


def erdos_renyi_kernel(scores: list[Array], sparsity: float | Array) -> list[Count]:
  r"""Wide leaves lose more: density of a leaf in proportion to (sum of its sizes) / (product).

  $d_l = \min(1, \epsilon \sum_i n_i^l / \prod_i n_i^l)$ with $\epsilon$ such that
  $\sum_l d_l N_l = (1 - s) \sum_l N_l$. Counts are rounded by largest remainder, so that together
  they are exactly `round(sparsity * total)`.

  Args:
    scores: one array a selected leaf.
    sparsity: in [0, 1].

  Returns:
    How many to remove of each leaf.

  Example:
    >>> import numpy as np
    >>> [int(n) for n in erdos_renyi_kernel([np.ones([10, 10]), np.ones([100, 100])], 0.9)]
    [8, 9082]

  Reference:
    U. Evci et al., Rigging the Lottery: Making All Tickets Winners, ICML 2020, arXiv:1911.11134,
    section 3 (the reference implementation caps at dense in the same way).
  """
  # float64 on the host where it can be; a traced sparsity is float32 on the device.
  xp: Any = jnp if isinstance(sparsity, jax.core.Tracer) else np
  sizes = np.array([leaf.size for leaf in scores])
  raw = np.array([sum(leaf.shape) / math.prod(leaf.shape) for leaf in scores])
  total = round_count(sparsity, int(sizes.sum()))
  kept = sizes.sum() - total
  dense = xp.zeros(len(scores), bool)
  for _ in scores:
    weight = xp.sum(xp.where(dense, 0.0, raw * sizes))
    epsilon = (kept - xp.sum(xp.where(dense, sizes, 0))) / xp.where(weight == 0, 1.0, weight)
    dense = dense | (epsilon * raw >= 1)
  removed = xp.where(dense, 0.0, sizes * (1 - epsilon * raw))
  counts = xp.floor(removed).astype(np.int32)
  remainder = xp.where(dense, -1.0, removed - counts)
  rank = xp.argsort(xp.argsort(-remainder))
  counts = counts + (rank < total - xp.sum(counts))
  return list(counts)


def round_count(sparsity: float | Array, size: int) -> Count:
  """`round(sparsity * size)`, halves to even: exact for a float, float32 for a traced scalar."""
  if isinstance(sparsity, jax.core.Tracer):
    return jnp.round(sparsity * size).astype(jnp.int32)
  return round(float(sparsity) * size)
