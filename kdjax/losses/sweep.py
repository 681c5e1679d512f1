"""Cross-entropy and forward KL over a catalogue in one sweep, with their gradients.

The reductions that people train with give every token a weight known beforehand. Then the gradients
are taken in the sweep that computes the loss, and the backward pass only scales them.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax.losses.blocks import (
  Blocks,
  Gradients,
  add_gradients,
  block_logits,
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


class Target(NamedTuple):
  """What the student's softmax is compared with: labels, a teacher, or both at once.

  Attributes:
    labels: int `[T]`, or None.
    teacher: query `[T, d_t]`, table `[V, d_t]` (or a `Table`) and bias, or None.
  """

  labels: Array | None = None
  teacher: FactoredLogits | None = None


class Mix(NamedTuple):
  """The loss of a token with logits `u`: `label CE(temperature u) + teacher scale KL(u)`.

  A temperature of None is 1: both parts then share one softmax.
  """

  label: Array | float = 1.0
  teacher: Array | float = 1.0
  scale: Array | float = 1.0
  temperature: Array | float | None = None

  @property
  def label_slope(self) -> Array | float:
    """The gradient of a token's loss by the cross-entropy's softmax of `u`."""
    return self.label if self.temperature is None else self.label * self.temperature


class Losses(NamedTuple):
  """Cross-entropy and scaled KL of every token, float32 `[T]`; None without such a target."""

  label: Any
  teacher: Any

  def mixed(self, mix: Mix) -> Array:
    """The loss of each token."""
    parts = zip((mix.label, mix.teacher), self, strict=True)
    return functools.reduce(jnp.add, [share * x for share, x in parts if x is not None])


# Compiled as one program even where the caller runs op by op.
@functools.partial(jax.jit, static_argnames=("blocks", "with_grads"))
def sweep(
  blocks: Blocks, student: FactoredLogits, given: tuple[Target, Mix], weight, known, *, with_grads
) -> Swept:
  """Cross-entropy, KL or both: a `kdjax.losses.fused.Sweep` once it has its blocks."""
  (query, table, bias), (target, mix) = student, given
  if target.labels is not None:
    target = target._replace(labels=blocks.own(target.labels, student.num_items))

  def step(sums, x):
    (query, labels, teacher_query, known), weight = x
    student = FactoredLogits(query, table, bias)
    teacher = target.teacher and target.teacher._replace(query=teacher_query)
    own = Target(labels, teacher)
    losses, stats, d_query, sums = _tokens(student, own, mix, weight, known, sums, blocks)
    return sums, (losses, stats, d_query)

  sums = no_sums(table, bias, query, target, mix, weight) if with_grads else None
  teacher_query = None if target.teacher is None else target.teacher.query
  tokens = (query, target.labels, teacher_query, known)
  sums, (losses, stats, d_query) = over_tokens(step, blocks, tokens, weight, sums)
  found = Swept(losses.mixed(mix), losses, stats)
  if sums is None:
    return found
  grads = Gradients(d_query, *sums)
  if target.labels is not None:
    grads = _minus_labels(grads, query, table, target.labels, weight * mix.label_slope)
  return found._replace(grads=grads._replace(query=blocks.total(grads.query)))


def _tokens(student: FactoredLogits, target: Target, mix: Mix, weight, stats, sums, blocks: Blocks):
  """A block of tokens against all items: losses, stats, d_query, `sums` with its share added."""
  num_items, size = student.num_items, blocks.items
  labels, teacher = target
  # A softmax by name, each with its share of the gradient by the logits `u`.
  shares = {}
  own = "student" if mix.temperature is None else "unscaled"
  if teacher is not None:
    share = mix.teacher * mix.scale
    shares = {"student": share, "teacher": -share}
  if labels is not None:
    shares[own] = shares.get(own, 0.0) + mix.label_slope

  def all_logits(start):
    logits = {"student": block_logits(student, start, size)}
    if mix.temperature is not None and "unscaled" in shares:
      logits["unscaled"] = logits["student"] * mix.temperature
    if teacher is not None:
      logits["teacher"] = block_logits(teacher, start, size)
    return {name: logits[name] for name in shares}

  def add_block(carry, start, logits, powers, stats, fresh):
    losses, d_query, sums = carry
    if labels is not None:
      gap = _label_gap(logits[own], stats[own][0], labels - start, fresh)
      losses = losses._replace(label=losses.label + gap)
    if teacher is not None:
      (top, _), (teacher_top, teacher_total) = stats["student"], stats["teacher"]
      gap = (logits["teacher"] - teacher_top) - (logits["student"] - top)
      part = jnp.sum(powers["teacher"] * gap, axis=-1) / teacher_total[:, 0]
      losses = losses._replace(teacher=losses.teacher + part)
    if sums is None:
      return losses, d_query, sums
    residual = sum(
      powers[name] * (share * weight[:, None] / stats[name][1]) for name, share in shares.items()
    )
    return losses, *add_gradients(d_query, sums, student, start, residual)

  zeros = jnp.zeros(weight.shape, jnp.float32)
  empty = Losses(None if labels is None else zeros, None if teacher is None else zeros)
  carry = (empty, None if sums is None else jnp.zeros(student.query.shape), sums)
  carry = vary_as(carry, student, target, mix, weight)
  if size == num_items:
    logits = all_logits(0)
    powers, stats = whole_stats(logits, blocks)
    carry = add_block(carry, 0, logits, powers, stats, True)
  else:

    def fresh_logits(start, fresh):
      return jax.tree.map(lambda z: jnp.where(fresh, z, FLOOR), all_logits(start))

    def add(carry, start, fresh):
      logits = fresh_logits(start, fresh)
      powers = {
        name: jnp.where(fresh, jnp.exp(z - stats[name][0]), 0.0) for name, z in logits.items()
      }
      return add_block(carry, start, logits, powers, stats, fresh)

    if stats is None:
      stats = measure(fresh_logits, shares, num_items, blocks, vary_as(zeros, student, target, mix))
    carry = over_items(add, num_items, size, carry)
  losses, d_query, sums = carry
  losses = blocks.total(losses)
  logs = {name: jnp.log(total[:, 0]) for name, (_, total) in stats.items()}
  if labels is not None:
    losses = losses._replace(label=losses.label + logs[own])
  if teacher is not None:
    kl = losses.teacher + logs["student"] - logs["teacher"]
    losses = losses._replace(teacher=mix.scale * kl)
  return losses, stats, d_query, sums


def _label_gap(logits, top, columns, fresh) -> Array:
  """max - logit of the label, 0 where the label is in another block."""
  inside = (columns >= 0) & (columns < logits.shape[1])
  columns = jnp.where(inside, columns, 0)[:, None]
  if fresh is not True:
    fresh = jnp.broadcast_to(fresh, logits.shape)
    inside &= jnp.take_along_axis(fresh, columns, axis=1)[:, 0]
  return jnp.where(inside, (top - jnp.take_along_axis(logits, columns, axis=1))[:, 0], 0.0)


def _minus_labels(grads: Gradients, query, table, labels, weight) -> Gradients:
  """p - onehot(label): the second half touches one row a token, so it needs no matrix."""
  column = weight[:, None]
  d_query = grads.query - column * table.at[labels].get(mode="fill", fill_value=0)
  d_table = grads.table.at[labels].add(-column * query, mode="drop")
  d_bias = None if grads.bias is None else grads.bias.at[labels].add(-weight, mode="drop")
  return Gradients(d_query, d_table, d_bias)
