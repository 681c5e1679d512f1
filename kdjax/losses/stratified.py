"""Popularity groups, and pairs drawn within them: the samples of unbiased distillation (UnKD)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kdjax.losses.common import constant, existing, floored
from kdjax.types import Array


class Pairs(NamedTuple):
  """Pairs of candidates in the teacher's order.

  Attributes:
    upper: int32 `[..., P]`, places of the candidates that the teacher ranks higher.
    lower: int32 `[..., P]`, places of their partners.
    support: bool `[..., P]`, False where no pair could be drawn.
  """

  upper: Array
  lower: Array
  support: Array


def popularity_groups(item_counts: Array, *, num_groups: int) -> Array:
  """Groups items of like popularity so that the groups share the interactions evenly.

  Args:
    item_counts: int or float `[V]`, interactions of each item.
    num_groups: G, how many groups.

  Returns:
    int32 `[V]` in `[0, G)`, 0 the most popular; a group may be empty where one item outweighs it.

  Raises:
    ValueError: if `num_groups` < 1.

  Example:
    >>> import jax.numpy as jnp
    >>> popularity_groups(jnp.array([1, 6, 1, 2, 2]), num_groups=2).tolist()
    [1, 0, 1, 1, 1]

  Reference:
    Chen et al., Unbiased Knowledge Distillation for Recommendation, WSDM 2023, arXiv:2211.14729.
  """
  if num_groups < 1:
    raise ValueError(f"num_groups must be positive, got {num_groups}")
  counts = jnp.asarray(item_counts, jnp.float32)
  order = jnp.argsort(-counts)
  share = jnp.cumsum(counts[order]) - counts[order]
  groups = jnp.floor(num_groups * share / jnp.maximum(jnp.sum(counts), 1.0)).astype(jnp.int32)
  # Items without interactions stand at the very end of the last group.
  return jnp.zeros_like(groups).at[order].set(jnp.minimum(groups, num_groups - 1))


def sample_pairs(
  key: Array,
  teacher_scores: Array,
  groups: Array,
  *,
  num_groups: int,
  draws: int = 15,
  scale: float = 20.0,
  support: Array | None = None,
) -> Pairs:
  r"""Draws pairs within groups, each candidate with $p \propto e^{-r / \mu}$ by its rank there.

  Two candidates are drawn independently and the one that the teacher ranks higher is the upper.
  A pair of a candidate with itself is left out of the support.

  Args:
    key: PRNG key.
    teacher_scores: float `[..., C]`, of C candidates.
    groups: int `[C]` or `[..., C]` in `[0, G)`: `popularity_groups` of the candidates.
    num_groups: G.
    draws: pairs a group.
    scale: mu > 0, in ranks within the group.
    support: bool `[C]` or `[..., C]`, the candidates that exist (and that the user has not seen).

  Returns:
    Pairs of `[..., G * draws]`, places among the C candidates, for `stratified_pair_loss`.

  Raises:
    ValueError: if `num_groups` < 1, `draws` < 1 or `scale` is not positive.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> scores, groups = jnp.array([3.0, 9.0, 1.0, 2.0]), jnp.array([0, 0, 1, 1])
    >>> pairs = sample_pairs(jax.random.key(3), scores, groups, num_groups=2, draws=8)
    >>> sorted(set(zip(pairs.upper[pairs.support].tolist(), pairs.lower[pairs.support].tolist())))
    [(1, 0), (3, 2)]

  Reference:
    Chen et al., Unbiased Knowledge Distillation for Recommendation, WSDM 2023, arXiv:2211.14729
    (equally many pairs from each group; their code gives unpopular groups more).
  """
  if num_groups < 1 or draws < 1:
    raise ValueError(f"num_groups and draws must be positive, got {num_groups} and {draws}")
  if isinstance(scale, int | float) and not scale > 0:
    raise ValueError(f"scale must be positive, got {scale}")
  scores = floored(jnp.asarray(constant(teacher_scores), jnp.float32))
  groups = jnp.broadcast_to(jnp.asarray(groups), scores.shape)
  groups = jnp.where(existing(support, scores.shape), groups, num_groups)
  order = jnp.lexsort((-scores, groups), axis=-1)
  ids = jnp.arange(num_groups).reshape((1,) * (scores.ndim - 1) + (1, num_groups))
  sizes = jnp.sum(groups[..., :, None] == ids, axis=-2)[..., None]
  starts = jnp.cumsum(sizes, axis=-2) - sizes
  shape = (2, *sizes.shape[:-1], draws)
  # Ranks fall off as a truncated geometric distribution, whose quantiles have a closed form.
  total = -jnp.expm1(-sizes / scale)
  ranks = jnp.floor(-scale * jnp.log1p(-jax.random.uniform(key, shape) * total[None]))
  ranks = jnp.minimum(ranks.astype(jnp.int32), jnp.maximum(sizes - 1, 0)[None])

  def places(chosen):
    flat = (*scores.shape[:-1], num_groups * draws)
    index = jnp.minimum(starts + chosen, scores.shape[-1] - 1).reshape(flat)
    return jnp.take_along_axis(order, index, axis=-1).astype(jnp.int32)

  differ = (ranks[0] != ranks[1]).reshape((*scores.shape[:-1], num_groups * draws))
  return Pairs(places(jnp.min(ranks, axis=0)), places(jnp.max(ranks, axis=0)), differ)
