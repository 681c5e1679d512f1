"""What to keep of a teacher over a catalogue, found without building its matrix."""

import functools

import jax
import jax.numpy as jnp

from kdjax.losses.blocks import (
  Blocks,
  Stats,
  add_stats,
  block_logits,
  choose_blocks,
  no_stats,
  over_items,
  over_tokens,
  without,
)
from kdjax.losses.common import FLOOR, check_temperature, constant, floored
from kdjax.losses.factored import scaled
from kdjax.losses.sampled_targets import SampledTargets
from kdjax.losses.top_k import TopK
from kdjax.order import top_k
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
  blocks = choose_blocks(model.query.shape[0], model.num_items, block or _ITEMS)
  found, _ = _top_k(model, k, blocks)
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
  noise = jax.random.uniform(key, (model.query.shape[0], num_samples))
  blocks = choose_blocks(model.query.shape[0], model.num_items, block or _ITEMS)
  found = _sample(model, noise, keep, blocks)
  return jax.tree.map(lambda x: x.reshape(*leading, *x.shape[1:]), found)


def _flat(teacher, temperature) -> tuple[FactoredLogits, tuple[int, ...]]:
  """Logits over the temperature as `[T, V]` in factors, and the leading axes.

  Logits that are there already come as queries with a table of no columns.
  """
  check_temperature(temperature)
  teacher = constant(teacher)
  if isinstance(teacher, FactoredLogits):
    return scaled(teacher, None, temperature), teacher.query.shape[:-1]
  logits = floored(jnp.asarray(teacher, jnp.float32)) / temperature
  table = jnp.zeros([logits.shape[-1], 0])
  return FactoredLogits(logits.reshape(-1, logits.shape[-1]), table), logits.shape[:-1]


def _block(model: FactoredLogits, start, size: int) -> Array:
  if model.table.shape[1]:
    return block_logits(model, start, size)
  return jax.lax.dynamic_slice_in_dim(model.query, start, size, axis=1)


@functools.partial(jax.jit, static_argnames=("k", "blocks"))
def _top_k(model: FactoredLogits, k: int, blocks: Blocks) -> tuple[TopK, Array]:
  """The `TopK` `[T, k]`, and the largest logit `[T]`, from which its values count."""
  num_items, size = model.num_items, blocks.items

  def of_tokens(_, x):
    query, weight = x
    own = model._replace(query=query)

    def add(carry, start, fresh):
      stats, values, ids = carry
      logits = jnp.where(fresh, _block(own, start, size), FLOOR)
      best, places = top_k(logits, min(k, size))
      # What was found before stands first, so that of equal ones the lower id wins.
      values = jnp.concatenate([values, best], axis=1)
      ids = jnp.concatenate([ids, start + places], axis=1)
      values, places = jax.lax.top_k(values, k)
      return add_stats(stats, logits), values, jnp.take_along_axis(ids, places, axis=1)

    # Worse than any logit, so that no place stays empty.
    empty = (jnp.full((len(weight), k), -jnp.inf), jnp.zeros((len(weight), k), jnp.int32))
    carry: tuple[Stats, Array, Array] = (no_stats(jnp.zeros(weight.shape)), *empty)
    if size == num_items:
      (top, total), values, ids = add(carry, 0, True)
    else:
      (top, total), values, ids = over_items(add, num_items, size, carry)
    shifted = jnp.where(values <= FLOOR / 2, FLOOR, values - top)
    return None, (TopK(shifted, ids, jnp.log(total[:, 0])), top[:, 0])

  weight = jnp.ones(model.query.shape[0])
  return over_tokens(of_tokens, blocks, model.query, weight, None)[1]


@functools.partial(jax.jit, static_argnames=("keep", "blocks"))
def _sample(model: FactoredLogits, noise: Array, keep: int, blocks: Blocks) -> SampledTargets:
  num_items, size, count = model.num_items, blocks.items, noise.shape[1]
  kept, tops = _top_k(model, max(keep, 1), blocks)
  best = TopK(kept.values[:, :keep], kept.indices[:, :keep], kept.log_normalizer)

  def of_tokens(_, x):
    (query, best, top, noise), weight = x
    own = model._replace(query=query)
    log_z = (top + best.log_normalizer)[:, None]
    probs = jnp.exp(best.values - best.log_normalizer[:, None])

    def rest(start, fresh):
      logits = jnp.where(fresh, _block(own, start, size), FLOOR)
      return jnp.exp(without(logits, best.indices, start) - log_z)

    def add_up(total, start, fresh):
      return total + jnp.sum(rest(start, fresh), axis=-1)

    def find(carry, start, fresh):
      below, ids, last = carry
      masses = rest(start, fresh)
      sums = below[:, None] + jnp.cumsum(masses, axis=-1)
      # The first item at which the sum exceeds a draw is as far as items whose sum does not.
      count_right = functools.partial(jnp.searchsorted, side="right")
      passed = jax.vmap(count_right)(sums, draws)
      stale = 0 if fresh is True else size - jnp.sum(fresh)  # Seen before: they add nothing.
      ids = ids + jnp.maximum(passed - stale, 0).astype(jnp.int32)
      columns = jnp.where(masses > 0, start + jnp.arange(size)[None, :], -1)
      return sums[:, -1], ids, jnp.maximum(last, jnp.max(columns, axis=-1))

    def sweep(step, carry):
      if size == num_items:
        return step(carry, 0, True)
      return over_items(step, num_items, size, carry)

    zeros = jnp.zeros(weight.shape)
    total = sweep(add_up, zeros)
    strata = (jnp.arange(count)[None] + noise) / count
    draws = strata * total[:, None]
    nothing = jnp.zeros((len(weight), count), jnp.int32)
    _, ids, last = sweep(find, (zeros, nothing, jnp.zeros(weight.shape, jnp.int32)))
    ids = jnp.minimum(ids, last[:, None])  # Sums are rounded: a draw may lie beyond the last one.
    weights = jnp.broadcast_to(total[:, None] / count, ids.shape)
    return None, SampledTargets(
      jnp.concatenate([best.indices, ids], axis=1), jnp.concatenate([probs, weights], axis=1)
    )

  tokens = (model.query, best, tops, noise)
  return over_tokens(of_tokens, blocks, tokens, jnp.ones(len(noise)), None)[1]
