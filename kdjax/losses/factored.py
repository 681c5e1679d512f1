"""From `FactoredLogits` and a grammar of losses to sweeps over flat tokens, and back."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.losses.blocks import choose_blocks, worth_keeping
from kdjax.losses.common import FLOOR, check_temperature, constant
from kdjax.losses.every_device import on_every_device
from kdjax.losses.fused import each_loss, weighted_loss
from kdjax.mesh_table import MeshTable
from kdjax.reduce import Mean, ReduceFn, reduce_loss, totals
from kdjax.tree import vary_as
from kdjax.types import Array, FactoredLogits


def sweep_loss(
  sweep: Callable[..., Any],
  student: FactoredLogits,
  given: Any,
  *,
  temperature: float | Array = 1.0,
  block: int | None,
  where: Array | None,
  reduce_fn: ReduceFn,
  axis_name: str | None = None,
  wrong: Array | None = None,
  kept: Sequence[FactoredLogits] = (),
) -> tuple[Any, Any]:
  """Runs the sweep that suits the reduction.

  Args:
    sweep: a `kdjax.losses.fused.Sweep` after its keyword `blocks`.
    student: logits `[..., V]` in factors.
    given: what the sweep needs beside them; arrays by token are flat, `[T, ...]`.
    temperature: by which the logits are divided.
    block: items a block, or None to choose from the shapes.
    where: bool `[...]` or None.
    reduce_fn: see `kdjax.reduce.reduce_loss`.
    axis_name: the mesh axis over which the rows of the tables are split, or None.
    wrong: bool `[...]`, tokens whose loss must be NaN; none by default.
    kept: models whose exponentials the sweep keeps where that is cheaper; others it asks twice.

  Returns:
    The reduced loss, and the tree of its parts reduced alike.

  Raises:
    ValueError: if `where` has not the shape `[...]`, or `block` < 1.
  """
  if block is not None and block < 1:
    raise ValueError(f"block must be positive, got {block}")
  leading = student.query.shape[:-1]
  if where is not None and jnp.shape(where) != leading:
    raise ValueError(f"where has shape {jnp.shape(where)} but the unreduced loss has {leading}")
  flat = scaled(student, where, temperature)
  if isinstance(student.table, MeshTable):
    flat = flat._replace(table=dataclasses.replace(student.table, values=flat.table))

  def run(take, flat, given):
    """`take(sweep, student, given)`, on every device of a mesh where the table lies on one."""

    def on_device(axis, flat, given):
      # Cast outside of the sweep, so that JAX sums the gradients of what several devices share.
      query = vary_as(flat.query, flat, given, but=axis)
      flat = FactoredLogits(query, *vary_as(flat[1:], flat, given))
      dear = any(map(worth_keeping, kept))
      width = max(model.query.shape[-1] for model in (flat, *kept))
      blocks = choose_blocks(len(query), flat.num_items, block, axis, dear, width)
      return take(functools.partial(sweep, blocks), flat, given)

    if isinstance(flat.table, MeshTable):
      return on_every_device(on_device, flat, given, by_token=take is each_loss)
    return on_device(axis_name, flat, given)

  # Adding NaN, and not selecting it, keeps the gradient of the other positions whole.
  bad = jnp.zeros(leading) if wrong is None else jnp.where(wrong, jnp.nan, 0.0)
  if reduce_fn in (jnp.mean, jnp.sum, totals):
    seen = jnp.ones(leading, bool) if where is None else jnp.asarray(where)
    count = jnp.sum(seen, dtype=jnp.float32)
    bad = jnp.sum(jnp.where(seen, bad, 0.0))
    weight = seen.reshape(-1).astype(jnp.float32)
    found = run(_weighted, flat, (given, weight))

    def finish(total):
      mean = Mean(total + bad, count)
      return mean.total if reduce_fn is jnp.sum else mean if reduce_fn is totals else mean.compute()

  else:
    found = run(each_loss, flat, given)

    def finish(values):
      return reduce_loss(values.reshape(leading) + bad, where=where, reduce_fn=reduce_fn)

  return jax.tree.map(finish, found)


def _weighted(sweep, flat, given):
  return weighted_loss(sweep, flat, *given)


def count_items(student: FactoredLogits, axis_name: str | None) -> int:
  """V of all devices."""
  return student.num_items * (1 if axis_name is None else jax.lax.axis_size(axis_name))


def check_labels(
  student: FactoredLogits, labels: Array, where: Array | None, axis_name: str | None
) -> tuple[Array, Array]:
  """Labels `[T]` with the sentinel V for wrong ones, and which are wrong, `[...]`."""
  if jnp.shape(labels) != student.query.shape[:-1]:
    raise ValueError(f"labels have shape {jnp.shape(labels)}, expected {student.query.shape[:-1]}")
  labels = jnp.asarray(labels)
  safe = labels if where is None else jnp.where(where, labels, 0)
  num_items = count_items(student, axis_name)
  wrong = (safe < 0) | (safe >= num_items)
  return jnp.where(wrong, num_items, safe).reshape(-1), wrong


def scaled(
  logits: FactoredLogits, where: Array | None, temperature: float | Array
) -> FactoredLogits:
  """The logits over the temperature as `[T, V]` in arrays, the queries 0 where masked."""
  query, table, bias = jnp.asarray(logits.query), logits.table, logits.bias
  if isinstance(table, MeshTable):
    table = table.values
  if hasattr(table, "rdot") and not hasattr(table, "__jax_array__"):
    table = table.take(jnp.arange(logits.num_items))
  # A `where` of a wrong shape is refused with its own message.
  if where is not None and jnp.shape(where) == query.shape[:-1]:
    query = jnp.where(jnp.asarray(where)[..., None], query, jnp.zeros([], query.dtype))
  query = query.reshape(-1, query.shape[-1]) / jnp.asarray(temperature, query.dtype)
  return FactoredLogits(query, jnp.asarray(table), _bias(bias, temperature))


def scaled_as_it_is(
  logits: FactoredLogits, where: Array | None, temperature: float | Array
) -> FactoredLogits:
  """As `scaled`, with the table as it is: rows of a `Table` are made when they are read."""
  query = scaled(logits._replace(table=jnp.zeros([1, 1]), bias=None), where, temperature).query
  return FactoredLogits(query, logits.table, _bias(logits.bias, temperature))


def scaled_teacher(
  student: FactoredLogits,
  teacher: FactoredLogits,
  where: Array | None,
  temperature: float | Array,
) -> FactoredLogits:
  """The teacher's logits over the temperature, `[T, V]` in factors, without gradient.

  Raises:
    ValueError: if T <= 0, or the logits of both differ in shape.
  """
  check_temperature(temperature)
  student_shape = (*student.query.shape[:-1], student.num_items)
  teacher_shape = (*teacher.query.shape[:-1], teacher.num_items)
  if student_shape != teacher_shape:
    raise ValueError(
      f"student and teacher differ in shape of logits: {student_shape} and {teacher_shape}"
    )
  teacher = constant(teacher)
  if isinstance(teacher.table, MeshTable):
    teacher = teacher._replace(table=teacher.table.values)
  # A table of integers stays one: its rows are dequantized a block at a time.
  return scaled_as_it_is(teacher, where, temperature)


def _bias(bias: Array | None, temperature: float | Array) -> Array | None:
  return None if bias is None else jnp.maximum(bias, FLOOR) / temperature
