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
from kdjax.types import Array, FactoredLogits

_BLOCK = 2**20  # Logits in a block, 4 MB: measured best on CPUs with 2 MB of L2 a core.
_WHOLE = 16384  # Up to so many items, a block holds the whole catalogue.
_TOKENS = 1024  # Tokens in a block otherwise.


class Target(NamedTuple):
  """What the student's softmax is compared with.

  Attributes:
    tokens: int `[T]`, the labels; or float `[T, d_t]`, the teacher's queries.
    table: the teacher's `[V, d_t]` (or a `Table`), None with labels.
    bias: float `[V]` or None.
  """

  tokens: Array
  table: Any = None
  bias: Array | None = None


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def weighted_loss(blocks: Blocks, query, table, bias, target: Target, weight) -> Array:
  """Sum of `weight * loss` over tokens; the gradients come from the same sweep."""
  losses, _ = sweep(blocks, query, table, bias, target, weight, with_grads=False)
  return _weigh(losses, weight)


def _weighted_forward(blocks, query, table, bias, target, weight):
  losses, grads = sweep(blocks, query, table, bias, target, weight, with_grads=True)
  return _weigh(losses, weight), _like(grads, query, table, bias)


def _weighted_backward(blocks, grads, cotangent):
  del blocks
  scaled = jax.tree.map(lambda g: (g * cotangent).astype(g.dtype), grads)
  return (*scaled, None, None)


weighted_loss.defvjp(_weighted_forward, _weighted_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def each_loss(blocks: Blocks, query, table, bias, target: Target) -> Array:
  """The loss of each token, for reductions whose weights are known only on the way back."""
  weight = jnp.ones(query.shape[:1], jnp.float32)
  return sweep(blocks, query, table, bias, target, weight, with_grads=False)[0]


def _each_forward(blocks, query, table, bias, target):
  return each_loss(blocks, query, table, bias, target), (query, table, bias, target)


def _each_backward(blocks, saved, cotangent):
  query, table, bias, target = saved
  _, grads = sweep(blocks, query, table, bias, target, cotangent, with_grads=True)
  return (*_like(grads, query, table, bias), None)


each_loss.defvjp(_each_forward, _each_backward)


# Compiled as one program even where the caller runs op by op.
@functools.partial(jax.jit, static_argnames=("blocks", "with_grads"))
def sweep(
  blocks: Blocks, query, table, bias, target: Target, weight, *, with_grads: bool
) -> tuple[Array, Any]:
  """Losses `[T]`, and the `Gradients` of their weighted sum (None if not asked for)."""
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
    query, tokens, weight = x
    student = FactoredLogits(query, table, bias)
    losses, d_query, sums = _tokens(student, target._replace(tokens=tokens), weight, sums, blocks)
    return sums, (losses, d_query)

  sums = None
  if with_grads:
    d_bias = None if bias is None else jnp.zeros(bias.shape, jnp.float32)
    sums = (jnp.zeros(table.shape, jnp.float32), d_bias)
  xs = jax.tree.map(cut, (query, target.tokens, weight))
  if steps == 1:
    sums, outs = step(sums, jax.tree.map(lambda x: x[0], xs))
    outs = jax.tree.map(lambda x: x[None], outs)
  else:
    sums, outs = jax.lax.scan(step, sums, xs)
  losses, d_query = jax.tree.map(join, outs)
  if sums is None:
    return losses, None
  grads = Gradients(d_query, *sums)
  if target.table is None:
    grads = _minus_labels(grads, query, table, target, weight)
  return losses, grads


def _tokens(student: FactoredLogits, target: Target, weight, sums, blocks: Blocks):
  """A block of tokens against all items: losses, d_query, and `sums` with its share added."""
  soft = target.table is not None
  models = (student, FactoredLogits(*target)) if soft else (student,)
  num_items, size = student.num_items, blocks.items

  def add_block(carry, start, logits, powers, stats, fresh):
    losses, d_query, sums = carry
    (top, total), *teacher = stats
    if soft:
      ((teacher_top, teacher_total),) = teacher
      gap = (logits[1] - teacher_top) - (logits[0] - top)
      losses += jnp.sum(powers[1] * gap, axis=-1) / teacher_total[:, 0]
    else:
      losses += _label_gap(logits[0], top, target.tokens - start, fresh)
    if sums is None:
      return losses, d_query, sums
    residual = powers[0] * (weight[:, None] / total)
    if soft:
      residual -= powers[1] * (weight[:, None] / teacher_total)
    residual = residual.astype(student.query.dtype)
    rows = jax.lax.dynamic_slice_in_dim(student.table, start, size)
    d_query += _matmul("tv,vd->td", residual, rows)
    return losses, d_query, _add_items(sums, start, size, residual, student.query)

  zeros = jnp.zeros(weight.shape, jnp.float32)
  carry = (zeros, None if sums is None else jnp.zeros(student.query.shape), sums)
  if size == num_items:
    logits = [_logits(model, 0, size) for model in models]
    tops = [jnp.max(z, axis=-1, keepdims=True) for z in logits]
    # The barrier keeps XLA from taking the exponentials again in every consumer.
    powers = jax.lax.optimization_barrier(
      [jnp.exp(z - top) for z, top in zip(logits, tops, strict=True)]
    )
    stats = [(t, jnp.sum(p, axis=-1, keepdims=True)) for t, p in zip(tops, powers, strict=True)]
    carry = add_block(carry, 0, logits, powers, stats, True)
  else:
    starts = jnp.arange(0, num_items, size)

    def block(start):
      # The last block reaches back into the one before; what was seen there is not fresh.
      begin = jnp.minimum(start, num_items - size)
      fresh = (begin + jnp.arange(size) >= start)[None, :]
      return begin, fresh, [jnp.where(fresh, _logits(m, begin, size), FLOOR) for m in models]

    def measure(stats, start):
      _, _, logits = block(start)
      return [_update(s, z) for s, z in zip(stats, logits, strict=True)], None

    def add(carry, start):
      begin, fresh, logits = block(start)
      powers = [
        jnp.where(fresh, jnp.exp(z - top), 0.0) for z, (top, _) in zip(logits, stats, strict=True)
      ]
      return add_block(carry, begin, logits, powers, stats, fresh), None

    column = zeros[:, None]
    stats, _ = jax.lax.scan(measure, [(column + FLOOR, column)] * len(models), starts)
    carry, _ = jax.lax.scan(add, carry, starts)
  losses, d_query, sums = carry
  losses += jnp.log(stats[0][1][:, 0])
  return (losses - jnp.log(stats[1][1][:, 0]) if soft else losses), d_query, sums


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


def _minus_labels(grads: Gradients, query, table, target: Target, weight) -> Gradients:
  """p - onehot(label): the second half touches one row a token, so it needs no matrix."""
  column, labels = weight[:, None], target.tokens
  d_query = grads.query - column * table.at[labels].get(mode="fill", fill_value=0)
  d_table = grads.table.at[labels].add(-column * query, mode="drop")
  d_bias = None if grads.bias is None else grads.bias.at[labels].add(-weight, mode="drop")
  return Gradients(d_query, d_table, d_bias)


def _matmul(subscripts: str, a, b) -> Array:
  return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def _weigh(losses, weight) -> Array:
  return jnp.sum(jnp.where(weight == 0, 0.0, losses * weight))


def _like(grads: Gradients, *inputs) -> Gradients:
  """In the dtypes of the inputs, as cotangents must be."""
  return jax.tree.map(lambda g, x: g.astype(x.dtype), grads, Gradients(*inputs))
