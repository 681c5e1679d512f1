"""One sweep over tokens times items: losses and their gradients, never the whole matrix.

Three decisions make it fast and small:

- A block of logits is sized to stay in cache. Small catalogues are cut along the tokens only, so
  that every exponential is taken once; large ones also along the items, at the price of computing
  the logits twice (once for the log-normaliser, once for the rest).
- The reductions that people train with give every token a weight known beforehand. Then the
  gradients are taken in the sweep that computes the loss, and the backward pass only scales them.
- Matrix products run in the dtype of their inputs with float32 accumulation.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax.losses.common import FLOOR
from kdjax.tree import vary_as
from kdjax.types import Array, FactoredLogits

_BLOCK = 2**20  # Logits in a block, 4 MB: measured best on CPUs with 2 MB of L2 a core.
_WHOLE = 16384  # Up to so many items, a block holds the whole catalogue.
_TOKENS = 1024  # Tokens in a block otherwise.


class Target(NamedTuple):
  """What the student's softmax is compared with: labels, a teacher, or both at once.

  Attributes:
    labels: int `[T]`, or None.
    teacher: query `[T, d_t]`, table `[V, d_t]` (or a `Table`) and bias, or None.
  """

  labels: Array | None = None
  teacher: FactoredLogits | None = None


class Mix(NamedTuple):
  """The loss of a token with logits `u`: `label * CE(temperature * u) + teacher * KL(u)`.

  A temperature of None is 1: both parts then share one softmax.
  """

  label: Array | float = 1.0
  teacher: Array | float = 1.0
  temperature: Array | float | None = None

  @property
  def label_slope(self) -> Array | float:
    """The gradient of a token's loss by the cross-entropy's softmax of `u`."""
    return self.label if self.temperature is None else self.label * self.temperature


class Losses(NamedTuple):
  """What a sweep measures of every token, float32 `[T]`; None without such a target."""

  label: Any
  teacher: Any


class Blocks(NamedTuple):
  """How many tokens and items a block of logits covers."""

  tokens: int
  items: int


class Gradients(NamedTuple):
  """Of the weighted sum of the losses, in float32."""

  query: Array
  table: Array
  bias: Array | None


def choose_blocks(num_tokens: int, num_items: int, block: int | None) -> Blocks:
  """Block sizes from the shapes; `block` fixes how many items."""
  if block is None and num_items <= _WHOLE:
    items = num_items
  elif block is None:
    items = min(num_items, max(1, _BLOCK // min(max(num_tokens, 1), _TOKENS)))
  else:
    items = min(block, num_items)
  items = -(-num_items // -(-num_items // items))  # Even blocks, so that the last one is not small.
  tokens = max(64, _BLOCK // items)
  steps = max(1, -(-num_tokens // tokens))
  return Blocks(tokens=-(-num_tokens // (8 * steps)) * 8, items=items)


# Compiled as one program even where the caller runs op by op.
@functools.partial(jax.jit, static_argnames=("blocks", "with_grads"))
def sweep(
  blocks: Blocks, query, table, bias, target: Target, mix: Mix, weight, *, with_grads: bool
) -> tuple[Losses, Any]:
  """The `Losses`, and the `Gradients` of the weighted sum of their mix (None if not asked for)."""
  num_tokens = query.shape[0]
  steps = max(1, -(-num_tokens // max(1, blocks.tokens)))
  padding = steps * blocks.tokens - num_tokens

  def cut(x):
    # Tokens of one block lie far apart, so that a batch sharded over devices stays so in a block.
    x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
    return jnp.swapaxes(x.reshape(blocks.tokens, steps, *x.shape[1:]), 0, 1)

  def join(x):
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])[:num_tokens]

  def step(sums, x):
    query, labels, teacher_query, weight = x
    student = FactoredLogits(query, table, bias)
    teacher = target.teacher and target.teacher._replace(query=teacher_query)
    losses, d_query, sums = _tokens(student, Target(labels, teacher), mix, weight, sums, blocks)
    return sums, (losses, d_query)

  sums = None
  if with_grads:
    d_bias = None if bias is None else jnp.zeros(bias.shape, jnp.float32)
    sums = (jnp.zeros(table.shape, jnp.float32), d_bias)
    sums = vary_as(sums, query, table, bias, target, mix, weight)
  teacher_query = None if target.teacher is None else target.teacher.query
  xs = jax.tree.map(cut, (query, target.labels, teacher_query, weight))
  if steps == 1:
    sums, outs = step(sums, jax.tree.map(lambda x: x[0], xs))
    outs = jax.tree.map(lambda x: x[None], outs)
  else:
    sums, outs = jax.lax.scan(step, sums, xs)
  losses, d_query = jax.tree.map(join, outs)
  if sums is None:
    return losses, None
  grads = Gradients(d_query, *sums)
  if target.labels is not None:
    grads = _minus_labels(grads, query, table, target.labels, weight * mix.label_slope)
  return losses, grads


def _tokens(student: FactoredLogits, target: Target, mix: Mix, weight, sums, blocks: Blocks):
  """A block of tokens against all items: losses, d_query, and `sums` with its share added."""
  num_items, size = student.num_items, blocks.items
  labels, teacher = target
  # A softmax by name, each with its share of the gradient by the logits `u`.
  shares = {}
  own = "student" if mix.temperature is None else "unscaled"
  if teacher is not None:
    shares = {"student": mix.teacher, "teacher": -mix.teacher}
  if labels is not None:
    shares[own] = shares.get(own, 0.0) + mix.label_slope

  def all_logits(start):
    logits = {"student": _logits(student, start, size)}
    if mix.temperature is not None and "unscaled" in shares:
      logits["unscaled"] = logits["student"] * mix.temperature
    if teacher is not None:
      logits["teacher"] = _logits(teacher, start, size)
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
    residual = residual.astype(student.query.dtype)
    rows = jax.lax.dynamic_slice_in_dim(student.table, start, size)
    d_query += _matmul("tv,vd->td", residual, rows)
    return losses, d_query, _add_items(sums, start, size, residual, student.query)

  zeros = jnp.zeros(weight.shape, jnp.float32)
  empty = Losses(None if labels is None else zeros, None if teacher is None else zeros)
  carry = (empty, None if sums is None else jnp.zeros(student.query.shape), sums)
  carry = vary_as(carry, student, target, mix, weight)
  if size == num_items:
    logits = all_logits(0)
    tops = jax.tree.map(lambda z: jnp.max(z, axis=-1, keepdims=True), logits)
    # The barrier keeps XLA from taking the exponentials again in every consumer.
    powers = jax.lax.optimization_barrier(
      jax.tree.map(lambda z, top: jnp.exp(z - top), logits, tops)
    )
    stats = {name: (tops[name], jnp.sum(p, axis=-1, keepdims=True)) for name, p in powers.items()}
    carry = add_block(carry, 0, logits, powers, stats, True)
  else:
    starts = jnp.arange(0, num_items, size)

    def block(start):
      # The last block reaches back into the one before; what was seen there is not fresh.
      begin = jnp.minimum(start, num_items - size)
      fresh = (begin + jnp.arange(size) >= start)[None, :]
      return begin, fresh, jax.tree.map(lambda z: jnp.where(fresh, z, FLOOR), all_logits(begin))

    def measure(stats, start):
      _, _, logits = block(start)
      return {name: _update(stats[name], z) for name, z in logits.items()}, None

    def add(carry, start):
      begin, fresh, logits = block(start)
      powers = {
        name: jnp.where(fresh, jnp.exp(z - stats[name][0]), 0.0) for name, z in logits.items()
      }
      return add_block(carry, begin, logits, powers, stats, fresh), None

    column = vary_as(zeros[:, None], student, target, mix)
    stats, _ = jax.lax.scan(measure, {name: (column + FLOOR, column) for name in shares}, starts)
    carry, _ = jax.lax.scan(add, carry, starts)
  losses, d_query, sums = carry
  logs = {name: jnp.log(total[:, 0]) for name, (_, total) in stats.items()}
  if labels is not None:
    losses = losses._replace(label=losses.label + logs[own])
  if teacher is not None:
    losses = losses._replace(teacher=losses.teacher + logs["student"] - logs["teacher"])
  return losses, d_query, sums


def _logits(model: FactoredLogits, start, size: int) -> Array:
  query, table, bias = model
  if hasattr(table, "rdot") and size == model.num_items:
    logits = table.rdot(query).astype(jnp.float32)
  else:
    if hasattr(table, "rdot"):
      rows = table.take(start + jnp.arange(size))
    else:
      rows = jax.lax.dynamic_slice_in_dim(table, start, size)
    logits = _matmul("td,vd->tv", query, rows)
  if bias is None:
    return logits
  return logits + jax.lax.dynamic_slice_in_dim(bias, start, size).astype(jnp.float32)[None, :]


def _update(stats, logits):
  """Online log-sum-exp: the running maximum, and the sum relative to it."""
  top, total = stats
  new_top = jnp.maximum(top, jnp.max(logits, axis=-1, keepdims=True))
  total = total * jnp.exp(top - new_top)
  return new_top, total + jnp.sum(jnp.exp(logits - new_top), axis=-1, keepdims=True)


def _label_gap(logits, top, columns, fresh) -> Array:
  """max - logit of the label, 0 where the label is in another block."""
  inside = (columns >= 0) & (columns < logits.shape[1])
  columns = jnp.where(inside, columns, 0)[:, None]
  if fresh is not True:
    fresh = jnp.broadcast_to(fresh, logits.shape)
    inside &= jnp.take_along_axis(fresh, columns, axis=1)[:, 0]
  return jnp.where(inside, (top - jnp.take_along_axis(logits, columns, axis=1))[:, 0], 0.0)


def _add_items(sums, start, size: int, residual, query):
  d_table, d_bias = sums

  def add(total, part):
    old = jax.lax.dynamic_slice_in_dim(total, start, size)
    return jax.lax.dynamic_update_slice_in_dim(total, old + part, start, 0)

  d_table = add(d_table, _matmul("tv,td->vd", residual, query))
  if d_bias is not None:
    d_bias = add(d_bias, jnp.sum(residual, axis=0, dtype=jnp.float32))
  return d_table, d_bias


def _minus_labels(grads: Gradients, query, table, labels, weight) -> Gradients:
  """p - onehot(label): the second half touches one row a token, so it needs no matrix."""
  column = weight[:, None]
  d_query = grads.query - column * table.at[labels].get(mode="fill", fill_value=0)
  d_table = grads.table.at[labels].add(-column * query, mode="drop")
  d_bias = None if grads.bias is None else grads.bias.at[labels].add(-weight, mode="drop")
  return Gradients(d_query, d_table, d_bias)


def _matmul(subscripts: str, a, b) -> Array:
  return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)
