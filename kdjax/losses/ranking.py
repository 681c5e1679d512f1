"""Losses on the scores of a positive against sampled negatives."""

import jax
import jax.numpy as jnp

from kdjax.losses.common import (
  FLOOR,
  check_same_shape,
  constant,
  existing,
  floored,
  mean_over,
  visible,
)
from kdjax.reduce import ReduceFn, reduce_loss
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
  negative = floored(visible(negative_scores, where, core_ndim=1), support)
  loss = jax.nn.softplus(negative - positive[..., None])
  loss = mean_over(loss, existing(support, loss.shape))
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
  positive, negative = _corrected(
    positive_scores, negative_scores, positive_log_q, negative_log_q, support, where
  )
  logits = jnp.concatenate([positive[..., None], negative], axis=-1)
  loss = -jax.nn.log_softmax(logits, axis=-1)[..., 0]
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def nce_loss(
  positive_scores: Array,
  negative_scores: Array,
  *,
  positive_log_q: Array | None = None,
  negative_log_q: Array | None = None,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Noise-contrastive estimation: tell the positive from N draws of the noise Q.

  $$L = -\log \sigma(x^+ - \log N q^+) - \sum_{j \in S} \log \sigma(\log N q_j - x^-_j),
  \quad N = |S|$$

  Its optimum is normalised by itself: $e^x$ tends to the probability of the item. Without log q the
  terms in $\log N q$ are left out, which is negative sampling.

  Args:
    positive_scores: float `[...]`, the score of the observed item.
    negative_scores: float `[..., N]`, the scores of N items drawn from Q.
    positive_log_q: float `[...]`, log Q of the positive; None for negative sampling.
    negative_log_q: float `[N]` or `[..., N]`, log Q of each negative; None for negative sampling.
    support: bool `[N]` or `[..., N]`, the negatives that count.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the leading axes differ, `where` has not the shape `[...]`, or only one of the
      two log q is given.

  Example:
    >>> import jax.numpy as jnp
    >>> round(float(nce_loss(jnp.array([0.0]), jnp.array([[0.0, 0.0]]))), 4)
    2.0794

  Reference:
    Gutmann, Hyvarinen, Noise-contrastive estimation, AISTATS 2010; Mnih, Teh, A fast and simple
    algorithm for training neural probabilistic language models, 2012, arXiv:1206.6426; Mikolov et
    al., Distributed Representations of Words and Phrases, 2013, arXiv:1310.4546 (without log q).
  """
  positive, negative = _corrected(
    positive_scores, negative_scores, positive_log_q, negative_log_q, support, where
  )
  real = existing(support, negative.shape)
  if positive_log_q is not None:
    log_n = jnp.log(jnp.maximum(jnp.sum(real, axis=-1, dtype=jnp.float32), 1.0))
    positive, negative = positive - log_n, negative - log_n[..., None]
  noise = jnp.sum(jax.nn.softplus(negative), axis=-1)
  return reduce_loss(jax.nn.softplus(-positive) + noise, where=where, reduce_fn=reduce_fn)


def margin_mse_loss(
  student_positive_scores: Array,
  student_negative_scores: Array,
  teacher_positive_scores: Array,
  teacher_negative_scores: Array,
  *,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Mean squared difference of the margins between a positive and its negatives.

  $$L = \frac{1}{|S|} \sum_{j \in S} \left( (x^{s+} - x^{s-}_j) - (x^{t+} - x^{t-}_j) \right)^2$$

  Only differences are compared, so that the teacher may score in another range. S leaves out pairs
  with an item that either side calls impossible (-inf).

  Args:
    student_positive_scores: float `[...]`, of the relevant item.
    student_negative_scores: float `[..., N]`, of N others.
    teacher_positive_scores: float `[...]`, of the same item; receives no gradient.
    teacher_negative_scores: float `[..., N]`, of the same others; receives no gradient.
    support: bool `[N]` or `[..., N]`, the negatives that count.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in squared scores: a scalar, or `[...]` for `reduce_fn=None`. 0 where no pair is left.

  Raises:
    ValueError: if the leading axes or the shapes of the negatives differ, or `where` has not the
      shape `[...]`.

  Example:
    >>> import jax.numpy as jnp
    >>> student = jnp.array([2.0]), jnp.array([[1.0]])
    >>> teacher = jnp.array([9.0]), jnp.array([[0.0]])
    >>> float(margin_mse_loss(*student, *teacher))
    64.0

  Reference:
    Hofstaetter et al., Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
    Distillation, 2020, arXiv:2010.02666 (one negative a query; the mean over N is ours).
  """
  _check_leading(student_positive_scores, student_negative_scores)
  _check_leading(teacher_positive_scores, teacher_negative_scores)
  check_same_shape(student_negative_scores, teacher_negative_scores)
  student, student_real = _margins(student_positive_scores, student_negative_scores, support, where)
  teacher, teacher_real = _margins(
    constant(teacher_positive_scores), constant(teacher_negative_scores), support, where
  )
  loss = mean_over((student - teacher) ** 2, student_real & teacher_real)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def _margins(positive_scores, negative_scores, support, where) -> tuple[Array, Array]:
  """Positive less negative, and of which pairs: both are possible."""
  positive = floored(visible(positive_scores, where))[..., None]
  negative = floored(visible(negative_scores, where, core_ndim=1), support)
  possible = (positive != FLOOR) & (negative != FLOOR)  # NaN stays in, and so stays visible.
  return jnp.where(possible, positive - negative, 0.0), possible


def _corrected(positive_scores, negative_scores, positive_log_q, negative_log_q, support, where):
  """Both scores less their log q, finite, 0 where masked and `FLOOR` outside of the support."""
  _check_leading(positive_scores, negative_scores)
  if (positive_log_q is None) != (negative_log_q is None):
    raise ValueError("positive_log_q and negative_log_q must be given together")
  positive = floored(visible(positive_scores, where))
  negative = floored(visible(negative_scores, where, core_ndim=1))
  if positive_log_q is not None:
    positive = positive - visible(positive_log_q, where)
    log_q = jnp.broadcast_to(jnp.asarray(negative_log_q, jnp.float32), negative.shape)
    negative = negative - visible(log_q, where, core_ndim=1)
  return positive, floored(negative, support)


def _check_leading(positive_scores, negative_scores) -> None:
  positive, negative = jnp.shape(positive_scores), jnp.shape(negative_scores)
  if not negative or negative[:-1] != positive:
    raise ValueError(f"negative_scores must be {positive} plus one axis, got {negative}")
