"""Sampled negatives: who is drawn, and the losses of a positive against them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.reduce import totals
from kdjax.types import Array


def popularity(items: np.ndarray, num_items: int) -> np.ndarray:
  """log of the sampler's distribution, float32 `[V]`: counts to the power 0.75, none of them 0.

  Reference:
    T. Mikolov et al., Distributed Representations of Words and Phrases, 2013 (the power).
  """
  weights = (np.bincount(items, minlength=num_items) + 1.0) ** 0.75
  return np.log(weights / weights.sum()).astype(np.float32)


def bounds(log_q: np.ndarray) -> np.ndarray:
  """Where one item ends and the next begins among 2**32 equally likely numbers, uint32 `[V - 1]`.

  In integers, for float32 numbers below 1 leave out a third of ten million items.
  """
  mass = np.cumsum(np.exp(log_q.astype(np.float64)))
  return np.minimum(np.rint(mass[:-1] / mass[-1] * 2**32), 2**32 - 1).astype(np.uint32)


def sampler(log_q: np.ndarray):
  """`(key, shape) -> int32 ids` drawn with replacement from `exp(log_q)`, by inversion."""
  ends = bounds(log_q)

  def sample(key, shape):
    drawn = jax.random.bits(key, shape, jnp.uint32)
    return jnp.searchsorted(jnp.asarray(ends), drawn, side="right").astype(jnp.int32)

  return sample


def negatives_loss(
  name: str,
  positive: Array,
  negative: Array,
  *,
  differs: Array,
  positive_log_q: Array,
  negative_log_q: Array,
  where: Array | None = None,
) -> Any:
  """The label loss called `name` of positives against their sampled negatives, as a `Mean`.

  Args:
    name: `bpr`, `sampled_softmax`, `nce` or `bce`.
    positive: float `[...]`, scores of the labels.
    negative: float `[..., N]`, scores of the negatives.
    differs: bool `[..., N]`, False where a negative is the label itself: it does not count, but
      for `nce`, whose noise is to be what was drawn.
    positive_log_q: float `[...]`, log of the sampler's probability of the label.
    negative_log_q: float `[..., N]`, that of each negative.
    where: bool `[...]`, which labels count.
  """
  options: dict[str, Any] = {"where": where, "reduce_fn": totals}
  if name == "bpr":
    return losses.bpr_loss(positive, negative, support=differs, **options)
  log_q: dict[str, Any] = {"positive_log_q": positive_log_q, "negative_log_q": negative_log_q}
  if name == "sampled_softmax":
    return losses.sampled_softmax_loss(positive, negative, support=differs, **log_q, **options)
  if name == "nce":
    return losses.nce_loss(positive, negative, **log_q, **options)
  scores = jnp.concatenate([positive[..., None], negative], axis=-1)
  targets = jnp.zeros_like(scores).at[..., 0].set(1.0)
  exists = jnp.concatenate([jnp.ones_like(differs[..., :1]), differs], axis=-1)
  if where is not None:
    exists = exists & where[..., None]
  return losses.binary_cross_entropy_loss(scores, targets, where=exists, reduce_fn=totals)
