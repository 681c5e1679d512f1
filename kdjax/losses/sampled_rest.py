"""What a student gives to all items but a few, estimated from negatives that a batch shares."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kdjax.losses.common import FLOOR
from kdjax.types import Array, FactoredLogits


class Negatives(NamedTuple):
  """Items drawn with replacement for all tokens of a batch alike.

  Attributes:
    items: int32 `[n]`, in `[0, V)`.
    log_q: float32 `[n]`, log of the probability that a draw is this item.
  """

  items: Array
  log_q: Array


def sampled_log_rest(logits: FactoredLogits, kept: Array, negatives: Negatives) -> Array:
  r"""Log of an estimate of what all items but the kept ones sum to.

  $$\log \sum_{j:\, n_j \notin K} \frac{e^{z_{n_j}}}{n\, q_{n_j}}$$

  The sum is unbiased for $\sum_{v \notin K} e^{z_v}$, by its value and its gradient; its logarithm
  is low by about half the sum's squared relative deviation, which falls as 1 / n.

  Args:
    logits: `[T, V]` in factors.
    kept: int32 `[T, k]`, items that do not count; V or more for none.
    negatives: of `[n]`; an item drawn twice counts twice.

  Returns:
    float32 `[T]`; about -1e30 where every negative is kept.
  """
  items, log_q = negatives
  z = jnp.einsum("td,nd->tn", logits.query, logits.rows(items), preferred_element_type=jnp.float32)
  if logits.bias is not None:
    z = z + logits.bias[items][None]
  z = z - (log_q + jnp.log(jnp.float32(len(items))))[None]
  # Found among the sorted negatives, k searches a token and not n k comparisons.
  ordered = jnp.sort(items)
  place = jnp.searchsorted(ordered, kept)
  known = ordered[jnp.minimum(place, len(items) - 1)] == kept
  tokens = jnp.arange(len(kept))[:, None]
  hit = (
    jnp.zeros(z.shape, bool).at[tokens, jnp.where(known, place, len(items))].set(True, mode="drop")
  )
  z = jnp.where(hit[:, jnp.searchsorted(ordered, items)], FLOOR, z)
  return jax.nn.logsumexp(z, axis=-1)
