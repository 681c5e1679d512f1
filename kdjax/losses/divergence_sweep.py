"""Any divergence of two softmaxes over a catalogue, class by class, with its gradient.

The gradient of $\\sum_v f(\\log p_v, \\log q_v)$ by the logits is $f'_v - p_v \\sum_j f'_j$: beyond
the normalisers it needs one more sum over all items, and so one more pass where a block holds but
some of them.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kdjax.losses.blocks import (
  Blocks,
  Gradients,
  Sums,
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

# (log p of the student, of the teacher) -> what each class adds, and its slope by the first.
Part = Callable[[Array, Array], tuple[Array, Array]]


# Compiled as one program even where the caller runs op by op.
@functools.partial(jax.jit, static_argnames=("part", "blocks", "with_grads"))
def sweep_divergence(
  part: Part,
  blocks: Blocks,
  student: FactoredLogits,
  given: tuple[FactoredLogits, Array],
  weight,
  known,
  *,
  with_grads,
) -> Swept:
  """`scale * sum(part)` of student and teacher, where `given` holds the teacher and the scale.

  A `kdjax.losses.fused.Sweep` once it has part and blocks.
  """
  (query, table, bias), (teacher, scale) = student, given

  def step(sums, x):
    (query, teacher_query, known), weight = x
    pair = {
      "student": FactoredLogits(query, table, bias),
      "teacher": teacher._replace(query=teacher_query),
    }
    values, known, d_query, sums = _tokens(part, pair, scale * weight, known, sums, blocks)
    return sums, (values, known, d_query)

  sums = no_sums(table, bias, blocks, query, teacher, scale, weight) if with_grads else None
  tokens = (query, teacher.query, known)
  sums, (values, known, d_query) = over_tokens(step, blocks, tokens, weight, sums)
  found = Swept(scale * values, None, known)
  if sums is None:
    return found
  return found._replace(grads=Gradients(blocks.total(d_query), *sums))


def _tokens(part: Part, pair: dict[str, FactoredLogits], weight, known, sums, blocks: Blocks):
  num_items, size = pair["student"].num_items, blocks.items
  zeros = vary_as(jnp.zeros(weight.shape, jnp.float32), pair, weight)

  def fresh_logits(start, fresh):
    return {
      name: jnp.where(fresh, block_logits(model, start, size), FLOOR)
      for name, model in pair.items()
    }

  def slopes(logits, stats):
    """The parts of a block, their slopes by log p of the student, and p of the student."""
    log_p = {name: z - log_normalizer(stats[name]) for name, z in logits.items()}
    return *part(log_p["student"], log_p["teacher"]), jnp.exp(log_p["student"])

  start = vary_as(jnp.zeros(pair["student"].query.shape), zeros)
  if size == num_items:
    logits = fresh_logits(0, True)
    _, stats = whole_stats(logits, blocks)
    parts, slope, p = slopes(logits, stats)
    values, pull = blocks.total((jnp.sum(parts, axis=-1), jnp.sum(slope, axis=-1)))
    if sums is None:
      return values, None, None, None
    residual = (slope - p * pull[:, None]) * weight[:, None]
    return values, None, *add_gradients(start, sums, pair["student"], 0, residual)

  def add_up(carry, start, fresh):
    parts, slope, _ = slopes(fresh_logits(start, fresh), stats)
    return carry[0] + jnp.sum(parts, axis=-1), carry[1] + jnp.sum(slope, axis=-1)

  def add(carry: tuple[Array, Sums], start, fresh):
    _, slope, p = slopes(fresh_logits(start, fresh), stats)
    residual = (slope - p * pull[:, None]) * weight[:, None]
    return add_gradients(*carry, pair["student"], start, residual)

  if known is None:
    stats = measure(fresh_logits, pair, num_items, blocks, zeros)
    values, pull = blocks.total(over_items(add_up, num_items, size, (zeros, zeros)))
    known = (stats, values, pull)
  stats, values, pull = known
  if sums is None:
    return values, known, None, None
  return values, known, *over_items(add, num_items, size, (start, sums))
