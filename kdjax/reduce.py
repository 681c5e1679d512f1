"""Masked reductions, and the mergeable mean that makes them exact across batches and devices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from kdjax.types import Array

ReduceFn = Callable[..., Any] | None


class Mean(NamedTuple):
  """A mean that has not been divided yet: means merge by adding totals and counts.

  The mean of per-batch means is wrong when batches have unequal counts; the quotient of the sums
  is right. As a pytree it crosses `jit`, `scan` and `psum` unchanged.

  Attributes:
    total: float32 `[...]`, the sum of the values that count.
    count: float32 `[...]`, how many (or how much weight) they were.

  Example:
    >>> merged = Mean(6.0, 3.0) + Mean(4.0, 1.0)
    >>> float(merged.compute())
    2.5
  """

  total: Any
  count: Any

  def __add__(self, other: "Mean") -> "Mean":  # type: ignore[override]
    return Mean(self.total + other.total, self.count + other.count)

  def compute(self) -> Array:
    """total / count, and 0 where nothing counted."""
    return safe_divide(self.total, self.count)


def safe_divide(total, count) -> Array:
  """`total / count`, 0 with zero gradient where `count` is 0; NaN in `total` stays visible."""
  total, count = jnp.asarray(total, jnp.float32), jnp.asarray(count, jnp.float32)
  return jnp.where(count == 0, 0.0, total) / jnp.where(count == 0, 1.0, count)


def masked(values: Array, where: Array | None) -> Array:
  """`values` in float32 with exactly 0, and zero gradient, where `where` is False."""
  values = values.astype(jnp.float32)
  return values if where is None else jnp.where(where, values, 0.0)


def totals(values: Array, *, where: Array | None = None) -> Mean:
  """The undivided mean of `values` over `where`: pass it as `reduce_fn` to get a `Mean`.

  Args:
    values: float `[...]`.
    where: bool of the shape of `values`, or None for all.

  Returns:
    Mean of float32 scalars.

  Example:
    >>> import jax.numpy as jnp
    >>> totals(jnp.array([1.0, 2.0, 9.0]), where=jnp.array([True, True, False])).compute().item()
    1.5
  """
  count = jnp.float32(values.size) if where is None else jnp.sum(where, dtype=jnp.float32)
  return Mean(jnp.sum(masked(values, where)), count)


def reduce_loss(values: Array, *, where: Array | None, reduce_fn: ReduceFn = jnp.mean) -> Any:
  """Reduces per-example losses as every loss of kdjax does.

  Args:
    values: float `[...]`, one loss an example or position.
    where: bool of the very shape of `values`, or None: which of them count.
    reduce_fn: `jnp.mean` divides by how many count, `jnp.sum` adds, `totals` gives a `Mean`, and
      any other function is called as `reduce_fn(values, where=where)`. None keeps the values, 0
      where masked.

  Returns:
    float32. All masked gives 0 with zero gradient; a NaN that counts stays visible.

  Raises:
    ValueError: if `where` has another shape than `values`.
  """
  if where is not None and where.shape != values.shape:
    raise ValueError(f"where has shape {where.shape} but the unreduced loss has {values.shape}")
  if reduce_fn is None:
    return masked(values, where)
  if reduce_fn is jnp.mean:
    return totals(values, where=where).compute()
  if reduce_fn is jnp.sum:
    return jnp.sum(masked(values, where))
  return reduce_fn(values, where=where)
