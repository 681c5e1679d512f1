"""Losses on the scores of a positive against sampled negatives."""

import jax
import jax.numpy as jnp

from kdjax.losses.common import floored, visible
from kdjax.reduce import ReduceFn, reduce_loss, safe_divide
from kdjax.types import Array


def bpr_loss(
  positive_scores: Array,
  negative_scores: Array,
  *,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Bayesian personalised ranking: the positive should outscore each negative.

  $$L = -\frac{1}{|S|} \sum_{j \in S} \log \sigma(x^+ - x^-_j)$$

  Args:
    positive_scores: float `[...]`, the score of the observed item.
    negative_scores: float `[..., N]`, the scores of N items that were not.
    support: bool `[N]` or `[..., N]`, the negatives that count; False for accidental hits.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats: a scalar, or `[...]` for `reduce_fn=None`. 0 where no negative is left.

  Raises:
    ValueError: if the leading axes differ, or `where` has not the shape `[...]`.

  Example:
    >>> import jax.numpy as jnp
    >>> round(float(bpr_loss(jnp.array([1.0]), jnp.array([[1.0, -1.0]]))), 4)
    0.41

  Reference:
    Rendle et al., BPR: Bayesian Personalized Ranking from Implicit Feedback, 2009,
    arXiv:1205.2618 (the L2 term belongs to the optimiser; the mean over N negatives is ours).
  """
  _check_leading(positive_scores, negative_scores)
  positive = floored(visible(positive_scores, where))
  negative = floored(visible(negative_scores, where, core_ndim=1))
  loss = jax.nn.softplus(negative - positive[..., None])
  real = jnp.ones(loss.shape, bool) if support is None else jnp.broadcast_to(support, loss.shape)
  loss = safe_divide(jnp.sum(jnp.where(real, loss, 0.0), axis=-1), jnp.sum(real, axis=-1))
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def sampled_softmax_loss(
  positive_scores: Array,
  negative_scores: Array,
  *,
  positive_log_q: Array | None = None,
  negative_log_q: Array | None = None,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Softmax cross-entropy over the positive and N sampled negatives, corrected by log Q.

  $$L = -\log \frac{e^{x^+ - \log q^+}}{e^{x^+ - \log q^+} + \sum_{j \in S} e^{x^-_j - \log q_j}}$$

  Without the correction, items that the sampler likes (the popular ones, with in-batch negatives)
  are pushed down for being sampled often. A constant added to every log q cancels.

  Args:
    positive_scores: float `[...]`, the score of the observed item.
    negative_scores: float `[..., N]`, the scores of N items drawn from Q.
    positive_log_q: float `[...]`, log of the sampler's probability of the positive; None: uniform.
    negative_log_q: float `[N]` or `[..., N]`, that of each negative; None: uniform.
    support: bool `[N]` or `[..., N]`, False for accidental hits (a negative that is the positive).
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats: a scalar, or `[...]` for `reduce_fn=None`. 0 where no negative is left.

  Raises:
    ValueError: if the leading axes differ, `where` has not the shape `[...]`, or only one of the
      two log q is given.

  Example:
    >>> import jax.numpy as jnp
    >>> round(float(sampled_softmax_loss(jnp.array([1.0]), jnp.array([[1.0, 1.0]]))), 4)
    1.0986

  Reference:
    Bengio, Senecal, Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic
    Language Model, 2008; Yi et al., Sampling-Bias-Corrected Neural Modeling, RecSys 2019 (log Q).
  """
  _check_leading(positive_scores, negative_scores)
  if (positive_log_q is None) != (negative_log_q is None):
    raise ValueError("positive_log_q and negative_log_q must be given together")
  positive = floored(visible(positive_scores, where))
  negative = floored(visible(negative_scores, where, core_ndim=1))
  if positive_log_q is not None:
    positive = positive - visible(positive_log_q, where)
    log_q = jnp.broadcast_to(jnp.asarray(negative_log_q, jnp.float32), negative.shape)
    negative = negative - visible(log_q, where, core_ndim=1)
  negative = floored(negative, support)
  logits = jnp.concatenate([positive[..., None], negative], axis=-1)
  loss = -jax.nn.log_softmax(logits, axis=-1)[..., 0]
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def _check_leading(positive_scores, negative_scores) -> None:
  positive, negative = jnp.shape(positive_scores), jnp.shape(negative_scores)
  if not negative or negative[:-1] != positive:
    raise ValueError(f"negative_scores must be {positive} plus one axis, got {negative}")
