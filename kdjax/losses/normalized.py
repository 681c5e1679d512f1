"""Losses of some of a token's logits and of the log-normaliser: teachers known in part.

Whatever compares a softmax over a catalogue with a few of its items reads their logits, and log sum
exp of all or of the others. The gradient is a softmax times one number a token, and some numbers at
the few: both are taken in the same sweep.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax.losses.blocks import (
  Blocks,
  Gradients,
  Sums,
  add_gradients,
  add_stats,
  block_logits,
  log_normalizer,
  no_stats,
  no_sums,
  over_items,
  over_tokens,
  whole_stats,
  without,
)
from kdjax.losses.exponentials import exp
from kdjax.losses.fused import Swept
from kdjax.tree import vary_as
from kdjax.types import Array, FactoredLogits


class Outer(NamedTuple):
  """How a token's loss follows from what a sweep finds.

  Attributes:
    loss: `(log-normaliser [T], logits of the items [T, k], values) -> ([T], parts)`, the parts a
      tree of `[T]` for the log, or None.
    others: whether the normaliser is of all other items, and not of all.
  """

  loss: Callable[[Array, Array, Any], tuple[Array, Any]]
  others: bool


class Given(NamedTuple):
  """What a token's loss depends on besides the student.

  Attributes:
    items: int `[T, k]`, whose logits count; V for none, whose logit is 0. With `others` none twice.
    values: a tree of `[T, ...]`, without gradient.
  """

  items: Array
  values: Any


# Compiled as one program even where the caller runs op by op.
@functools.partial(jax.jit, static_argnames=("outer", "blocks", "with_grads"))
def sweep_normalizer(
  outer: Outer, blocks: Blocks, student: FactoredLogits, given: Given, weight, known, *, with_grads
) -> Swept:
  """`outer.loss`: a `kdjax.losses.fused.Sweep` once it has outer and blocks."""
  query, table, bias = student
  given = given._replace(items=blocks.own(given.items, student.num_items))

  def step(sums, x):
    (query, given, known), weight = x
    own = FactoredLogits(query, table, bias)
    found, known, d_query, sums = _tokens(own, outer, given, weight, known, sums, blocks)
    return sums, (found, known, d_query)

  sums = no_sums(table, bias, blocks, query, given, weight) if with_grads else None
  tokens = (query, given, known)
  sums, ((values, parts), known, d_query) = over_tokens(step, blocks, tokens, weight, sums)
  found = Swept(values, parts, known)
  if sums is None:
    return found
  return found._replace(grads=Gradients(blocks.total(d_query), *sums))


def _tokens(student: FactoredLogits, outer: Outer, given: Given, weight, known, sums, blocks):
  num_items, size = student.num_items, blocks.items
  zeros = vary_as(jnp.zeros(weight.shape, jnp.float32), student, given, weight)
  rows = jnp.arange(len(weight))[:, None]

  def places(start, fresh):
    """Where the items stand in a block, and `size` for those that do not."""
    columns = given.items - start
    inside = (columns >= 0) & (columns < size)
    if fresh is not True:
      inside &= fresh[0][jnp.where(inside, columns, 0)]
    return jnp.where(inside, columns, size)

  def read(start, fresh):
    """Logits of a block as the normaliser sees them, and of the items that stand there."""
    logits = block_logits(student, start, size)
    found = logits.at[rows, places(start, fresh)].get(mode="fill", fill_value=0.0)
    return without(logits, given.items if outer.others else None, start), found

  def find(carry, start, fresh):
    stats, found = carry
    logits, new = read(start, fresh)
    return add_stats(stats, logits, fresh), found + new

  powers = None
  if size == num_items:
    logits, found = read(0, True)
    all_powers, all_stats = whole_stats({"student": logits}, blocks)
    powers, stats, found = all_powers["student"], all_stats["student"], blocks.total(found)
  elif known is None:
    start = (no_stats(zeros), jnp.zeros(given.items.shape) + zeros[:, None])
    own, found = over_items(find, num_items, size, start)
    stats, found = blocks.joined({"student": own})["student"], blocks.total(found)
  else:
    stats, found = known
  top, total = stats
  log_z = log_normalizer(stats)[:, 0]
  of_found = lambda z, own: outer.loss(z, own, given.values)  # noqa: E731
  values, pull, parts = jax.vjp(of_found, log_z, found, has_aux=True)
  if sums is None:
    return (values, parts), (stats, found), None, None
  # A token that does not count may hold garbage.
  slope, d_found = (
    jnp.where(weight.reshape(-1, *[1] * (x.ndim - 1)) == 0, 0.0, x)
    for x in pull(vary_as(weight, values))
  )
  share = slope[:, None] / total

  def add(carry: tuple[Array, Sums], start, fresh, powers=None):
    if powers is None:
      powers = jnp.where(fresh, exp(block_logits(student, start, size) - top), 0.0)
    residual = (powers * share).at[rows, places(start, fresh)]
    residual = (residual.set if outer.others else residual.add)(d_found, mode="drop")
    return add_gradients(*carry, student, start, residual)

  carry: tuple[Array, Sums] = (vary_as(jnp.zeros(student.query.shape), zeros), sums)
  if size == num_items:
    carry = add(carry, 0, True, powers)
  else:
    carry = over_items(add, num_items, size, carry)
  return (values, parts), (stats, found), *carry
