"""Ranges observed over real batches, as statistics that merge."""

from typing import NamedTuple

import jax.numpy as jnp

from kdjax.quant.integer import LEVELS, TINY
from kdjax.types import Array


class AbsMax(NamedTuple):
  """The largest magnitude seen so far.

  Attributes:
    value: float32, of the rank of what was observed, size 1 along the shared axes.

  Example:
    >>> import jax.numpy as jnp
    >>> seen = absmax(jnp.array([[1.0, -3.0]]), axis=None).merge(
    ...   absmax(jnp.array([[2.54, 0.0]]), axis=None)
    ... )
    >>> round(float(seen.scale()[0, 0]), 5)
    0.02362
  """

  value: Array

  def merge(self, other: "AbsMax") -> "AbsMax":
    """The statistic of both sets of batches: associative, commutative; NaN stays visible."""
    return AbsMax(jnp.maximum(self.value, other.value))

  def scale(self) -> Array:
    """The symmetric int8 scale of that range, for `quantize(..., scale=)`."""
    return jnp.maximum(self.value / LEVELS, TINY)


def absmax(x: Array, *, axis: int | tuple[int, ...] | None) -> AbsMax:
  """The largest `|x|` over the axes that share a scale.

  Args:
    x: float `[...]`.
    axis: as in `quantize`: the axes over which one scale is shared, None for all.

  Returns:
    AbsMax of one batch; merge those of several.

  Example:
    >>> import jax.numpy as jnp
    >>> absmax(jnp.array([[1.0, -3.0], [2.0, 0.0]]), axis=0).value.tolist()
    [[2.0, 3.0]]
  """
  return AbsMax(jnp.max(jnp.abs(x.astype(jnp.float32)), axis=axis, keepdims=True, initial=0.0))
