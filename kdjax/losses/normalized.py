"""Losses of a token's log-normaliser and of some of its logits: teachers known in part.

Whatever compares a softmax over a catalogue with a few of its items reads their logits, and log sum
exp of all or of the others. Only the second touches the whole catalogue, and its gradient is a
softmax times one number a token, taken in the same sweep.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax.losses.blocks import (
  Blocks,
  Gradients,
  add_gradients,
  block_logits,
  log_normalizer,
  measure,
  no_sums,
  over_items,
  over_tokens,
  whole_stats,
)
from kdjax.losses.common import FLOOR
from kdjax.losses.fused import Swept
from kdjax.tree import vary_as
from kdjax.types import Array, FactoredLogits

Outer = Callable[[Array, Any], Array]  # (log-normaliser [T], a tree of [T, ...]) -> loss [T].


class Given(NamedTuple):
  """What a token's loss depends on besides the log-normaliser.

  Attributes:
    skip: int `[T, k]`, items that the log-normaliser leaves out, or None.
    values: a tree of float `[T, ...]`, which gradients reach.
  """

  skip: Array | None
  values: Any


# Compiled as one program even where the caller runs op by op.
@functools.partial(jax.jit, static_argnames=("outer", "blocks", "with_grads"))
def sweep_normalizer(
  outer: Outer, blocks: Blocks, student: FactoredLogits, given: Given, weight, known, *, with_grads
) -> Swept:
  """`outer(log-normaliser, values)`: a `kdjax.losses.fused.Sweep` once it has outer and blocks."""
  query, table, bias = student

  def step(sums, x):
    (query, given, known), weight = x
    own = FactoredLogits(query, table, bias)
    values, stats, d_query, d_values, sums = _tokens(own, outer, given, weight, known, sums, blocks)
    return sums, (values, stats, d_query, d_values)

  sums = no_sums(table, bias, query, given, weight) if with_grads else None
  tokens = (query, given, known)
  sums, (values, stats, d_query, d_values) = over_tokens(step, blocks, tokens, weight, sums)
  found = Swept(values, None, stats)
  if sums is None:
    return found
  return found._replace(grads=Gradients(d_query, *sums), d_given=Given(None, d_values))


def _tokens(student: FactoredLogits, outer: Outer, given: Given, weight, stats, sums, blocks):
  num_items, size = student.num_items, blocks.items
  zeros = vary_as(jnp.zeros(weight.shape, jnp.float32), student, given, weight)

  def fresh_logits(start, fresh):
    logits = jnp.where(fresh, block_logits(student, start, size), FLOOR)
    if given.skip is not None:
      columns = given.skip - start
      columns = jnp.where(columns < 0, size, columns)  # Negative ones would wrap around.
      rows = jnp.arange(len(columns))[:, None]
      logits = logits.at[rows, columns].set(FLOOR, mode="drop")
    return {"student": logits}

  powers = {}
  if size == num_items:
    powers, stats = whole_stats(fresh_logits(0, True))
  elif stats is None:
    stats = measure(fresh_logits, ["student"], num_items, size, zeros)
  top, total = stats["student"]
  values, pull = jax.vjp(outer, log_normalizer((top, total))[:, 0], given.values)
  if sums is None:
    return values, stats, None, None, None
  slope, d_values = jax.tree.map(
    # A token that does not count may hold garbage.
    lambda x: jnp.where(weight.reshape(-1, *[1] * (x.ndim - 1)) == 0, 0.0, x),
    pull(vary_as(weight, values)),
  )
  share = slope[:, None] / total

  def add(carry, start, fresh):
    part = jnp.where(fresh, jnp.exp(fresh_logits(start, fresh)["student"] - top), 0.0)
    return add_gradients(*carry, student, start, part * share)

  carry = (vary_as(jnp.zeros(student.query.shape), zeros), sums)
  if size == num_items:
    d_query, sums = add_gradients(*carry, student, 0, powers["student"] * share)
  else:
    d_query, sums = over_items(add, num_items, size, carry)
  return values, stats, d_query, d_values, sums
