"""What to keep of a teacher over a catalogue, found without building its matrix."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.losses.blocks import (
  Blocks,
  add_stats,
  block_logits,
  choose_blocks,
  no_stats,
  over_items,
  over_tokens,
  without,
)
from kdjax.losses.common import FLOOR, check_temperature, constant, floored
from kdjax.losses.every_device import on_every_device
from kdjax.losses.factored import scaled, scaled_as_it_is
from kdjax.losses.sampled_targets import SampledTargets
from kdjax.losses.top_k import TopK
from kdjax.mesh_table import MeshTable, of_all
from kdjax.order import top_k
from kdjax.tree import vary_as
from kdjax.types import Array, FactoredLogits

_ITEMS = 16384  # In a block: the more, the fewer of its best are merged with those of others.


def catalog_top_k_targets(
  teacher: FactoredLogits | Array,
  k: int,
  *,
  temperature: float = 1.0,
  block: int | None = None,
) -> TopK:
  r"""What to cache of a teacher over a catalogue: its best items, and the normaliser of all.

  $$z_{(1)} / T \ge \dots \ge z_{(k)} / T, \quad \log Z = \log \sum_v e^{z_v / T}$$

  Equal to `top_k_targets(teacher.dense(), k)`, in blocks.

  Args:
    teacher: logits `[..., V]` in factors, or as they are.
    k: how many to keep, in [1, V].
    temperature: T > 0; the loss must be given the same.
    block: items a block, or None to choose from the shapes.

  Returns:
    TopK, float32 and int32, without gradient, shifted such that the best logit is 0; of equal ones
    the lower id is first.

  Raises:
    ValueError: if k is not in [1, V] or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> targets = catalog_top_k_targets(jnp.log(jnp.array([[0.1, 0.5, 0.2, 0.2]])), 2)
    >>> targets.indices.tolist(), [round(float(v), 4) for v in jnp.exp(targets.values[0])]
    ([[1, 2]], [1.0, 0.4])
  """
  model, leading = _flat(teacher, temperature)
  if not 1 <= k <= model.num_items:
    raise ValueError(f"k must lie in [1, {model.num_items}], got {k}")
  found = _find(lambda model, _, blocks: _top_k(model, k, blocks)[0], model, None, block)
  return jax.tree.map(lambda x: x.reshape(*leading, *x.shape[1:]), found)


def catalog_sample_targets(
  key: Array,
  teacher: FactoredLogits | Array,
  num_samples: int,
  *,
  keep: int = 0,
  temperature: float = 1.0,
  block: int | None = None,
) -> SampledTargets:
  r"""A teacher's best items with their probabilities, and draws from the rest: without bias.

  $$w_v = p_v \; (v \in K), \quad v_n \sim p_v / \bar p \; (v \notin K), \; w_n = \bar p / N, \quad
  E \left[ \sum w_n e_{v_n} \right] = p = \mathrm{softmax}(z / T)$$

  with $\bar p = 1 - \sum_{v \in K} p_v$. The draws are stratified, one from each N-th of the rest's
  mass, which lowers their variance.

  Args:
    key: PRNG key.
    teacher: logits `[..., V]` in factors, or as they are.
    num_samples: N > 0, drawn from the rest.
    keep: how many of the best are kept as they are, in [0, V).
    temperature: T > 0; the loss must be given the same.
    block: items a block, or None to choose from the shapes.

  Returns:
    SampledTargets of int32 and float32 `[..., keep + N]`, without gradient; the best come first.
    Where nothing is left of the mass, the draws weigh 0.

  Raises:
    ValueError: if `num_samples` < 1, `keep` is not in [0, V), or T <= 0.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25, 0.0]]))
    >>> targets = catalog_sample_targets(jax.random.key(0), logits, 2, keep=1)
    >>> targets.indices.tolist(), targets.weights.tolist()
    ([[0, 1, 2]], [[0.5, 0.25, 0.25]])

  Reference:
    Anshumann et al., Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs, 2025,
    arXiv:2503.16870; here the best are kept exactly and the draws are stratified.
  """
  if num_samples < 1:
    raise ValueError(f"num_samples must be positive, got {num_samples}")
  model, leading = _flat(teacher, temperature)
  if not 0 <= keep < model.num_items:
    raise ValueError(f"keep must lie in [0, {model.num_items}), got {keep}")
  bits = jax.random.bits(key, (model.query.shape[0], num_samples), jnp.uint32)
  found = _find(lambda model, bits, blocks: _sample(model, bits, keep, blocks), model, bits, block)
  return jax.tree.map(lambda x: x.reshape(*leading, *x.shape[1:]), found)


def _flat(teacher, temperature) -> tuple[FactoredLogits, tuple[int, ...]]:
  """Logits over the temperature as `[T, V]` in factors, and the leading axes.

  Logits that are there already come as queries with a table of no columns.
  """
  check_temperature(temperature)
  teacher = constant(teacher)
  if isinstance(teacher, FactoredLogits):
    scale = scaled_as_it_is if isinstance(teacher.table, MeshTable) else scaled
    return scale(teacher, None, temperature), teacher.query.shape[:-1]
  logits = floored(jnp.asarray(teacher, jnp.float32)) / temperature
  table = jnp.zeros([logits.shape[-1], 0])
  return FactoredLogits(logits.reshape(-1, logits.shape[-1]), table), logits.shape[:-1]


def _block(model: FactoredLogits, start, size: int) -> Array:
  if model.table.shape[1]:
    return block_logits(model, start, size)
  return jax.lax.dynamic_slice_in_dim(model.query, start, size, axis=1)


def _find(find: Callable[..., Any], model: FactoredLogits, given: Any, block: int | None) -> Any:
  """`find(model, given, blocks)`, on every device of a mesh where the table lies on one."""

  def on_device(axis, model, given):
    query = vary_as(model.query, model, given, but=axis)
    blocks = choose_blocks(len(query), model.num_items, block or _ITEMS, axis)
    return find(model._replace(query=query), given, blocks)

  if isinstance(model.table, MeshTable):
    return on_every_device(on_device, model, given, by_token=True)
  return on_device(None, model, given)


@functools.partial(jax.jit, static_argnames=("k", "blocks"))
def _top_k(model: FactoredLogits, k: int, blocks: Blocks) -> tuple[TopK, Array]:
  """The `TopK` `[T, k]`, and the largest logit `[T]`, from which its values count."""
  num_items, size = model.num_items, blocks.items
  own_k = min(k, num_items)  # Of many devices one may have fewer items.

  def of_tokens(_, x):
    query, weight = x
    own = model._replace(query=query)

    def add(carry, start, fresh):
      stats, values, ids = carry
      logits = jnp.where(fresh, _block(own, start, size), FLOOR)
      best, places = top_k(logits, min(own_k, size))
      # What was found before stands first, so that of equal ones the lower id wins.
      values = jnp.concatenate([values, best], axis=1)
      ids = jnp.concatenate([ids, start + places], axis=1)
      values, places = jax.lax.top_k(values, own_k)
      return add_stats(stats, logits), values, jnp.take_along_axis(ids, places, axis=1)

    # Worse than any logit, so that no place stays empty.
    shape = (len(weight), own_k)
    empty = (jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32))
    carry = vary_as((no_stats(jnp.zeros(weight.shape)), *empty), own)
    if size == num_items:
      return None, add(carry, 0, True)
    return None, over_items(add, num_items, size, carry)

  weight = jnp.ones(model.query.shape[0])
  stats, values, ids = over_tokens(of_tokens, blocks, model.query, weight, None)[1]
  top, total = blocks.joined({"": stats})[""]
  if blocks.axis is not None:
    ids += jax.lax.axis_index(blocks.axis) * num_items
    # Those of lower items stand first here too.
    values, places = jax.lax.top_k(of_all(values, blocks.axis), k)
    ids = jnp.take_along_axis(of_all(ids, blocks.axis), places, axis=1)
  shifted = jnp.where(values <= FLOOR / 2, FLOOR, values - top)
  return TopK(shifted, ids, jnp.log(total[:, 0])), top[:, 0]


@functools.partial(jax.jit, static_argnames=("keep", "blocks"))
def _sample(model: FactoredLogits, bits: Array, keep: int, blocks: Blocks) -> SampledTargets:
  num_items, size, count = model.num_items, blocks.items, bits.shape[1]
  kept, tops = _top_k(model, max(keep, 1), blocks)
  best = TopK(kept.values[:, :keep], kept.indices[:, :keep], kept.log_normalizer)
  skip = blocks.own(best.indices, num_items)
  axis = blocks.axis

  def of_tokens(_, x):
    (query, skip, log_z, bits), weight = x
    own = model._replace(query=query)

    def rest(start, fresh):
      logits = jnp.where(fresh, _block(own, start, size), FLOOR)
      return jnp.exp(without(logits, skip, start) - log_z)

    def add_up(total, start, fresh):
      return total + jnp.sum(rest(start, fresh), axis=-1)

    def find(carry, start, fresh):
      below, ids, last = carry
      masses = rest(start, fresh)
      # From the beginning of the block, where small differences are not rounded off.
      draws = begin - below[:, None] + coarse + fine
      # The first item at which the sum exceeds a draw is as far as items whose sum does not.
      count_right = functools.partial(jnp.searchsorted, side="right")
      sums = jnp.cumsum(masses, axis=-1)
      passed = jax.vmap(count_right)(sums, draws)
      stale = 0 if fresh is True else size - jnp.sum(fresh)  # Seen before: they add nothing.
      ids = ids + jnp.maximum(passed - stale, 0).astype(jnp.int32)
      columns = jnp.where(masses > 0, start + jnp.arange(size)[None, :], -1)
      return below + sums[:, -1], ids, jnp.maximum(last, jnp.max(columns, axis=-1))

    def sweep(step, carry):
      carry = vary_as(carry, own, skip, log_z, bits)
      if size == num_items:
        return step(carry, 0, True)
      return over_items(step, num_items, size, carry)

    zeros = jnp.zeros(weight.shape)
    total = sweep(add_up, zeros)
    below = zeros
    if axis is not None:
      totals = of_all(total[:, None], axis)
      before = jnp.arange(totals.shape[1]) < jax.lax.axis_index(axis)
      total, below = jnp.sum(totals, axis=1), jnp.sum(totals * before[None], axis=1)
    # One draw from each stratum, to 32 bits of its width.
    width = total[:, None] / count
    begin = jnp.arange(count)[None] * width
    coarse, fine = (bits >> 9) * (width * 2**-23), (bits & 511) * (width * 2**-32)
    ids = jnp.zeros((len(weight), count), jnp.int32)
    _, ids, last = sweep(find, (below, ids, jnp.full(weight.shape, -1, jnp.int32)))
    if axis is not None:
      # Items of other devices were passed, or were not, as they lie before a draw or after it.
      last = jnp.where(last < 0, last, last + jax.lax.axis_index(axis) * num_items)
      ids, last = jax.lax.psum(ids, axis), jax.lax.pmax(last, axis)
    # Sums are rounded: a draw may lie beyond the last one.
    ids = jnp.minimum(ids, jnp.maximum(last, 0)[:, None])
    return None, (ids, jnp.broadcast_to(width, ids.shape))

  log_z = (tops + kept.log_normalizer)[:, None]
  tokens = (model.query, skip, log_z, bits)
  ids, weights = over_tokens(of_tokens, blocks, tokens, jnp.ones(len(bits)), None)[1]
  probs = jnp.exp(best.values - best.log_normalizer[:, None])
  return SampledTargets(
    jnp.concatenate([best.indices, ids], axis=1), jnp.concatenate([probs, weights], axis=1)
  )
