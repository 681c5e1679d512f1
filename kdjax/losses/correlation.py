"""Losses that ask for the teacher's relations between probabilities, not for their values."""

import jax
import jax.numpy as jnp

from kdjax.losses.common import FLOOR, existing, log_prob_pair
from kdjax.reduce import ReduceFn, reduce_loss, safe_divide
from kdjax.types import Array


def dist_loss(
  student_logits: Array,
  teacher_logits: Array,
  *,
  inter_weight: float | Array = 1.0,
  intra_weight: float | Array = 1.0,
  temperature: float = 1.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""DIST: Pearson distance of probabilities between classes, and between examples.

  $$L_i = \beta\, d(P^s_{i \cdot}, P^t_{i \cdot}) +
  \frac{\gamma}{C} \sum_c d(P^s_{\cdot c}, P^t_{\cdot c}), \quad
  d(u, v) = 1 - \frac{(u - \bar u) \cdot (v - \bar v)}
  {\lVert u - \bar u \rVert \lVert v - \bar v \rVert}, \quad
  P = \mathrm{softmax}(z / T)$$

  with $\beta$ the `inter_weight` (the classes of one example) and $\gamma$ the `intra_weight` (one
  class over the examples). The second part belongs to the batch and is the same for every example
  of it. The distance to a vector without variance is 1.

  Args:
    student_logits: float `[..., C]`; all leading axes together are the batch.
    teacher_logits: float `[..., C]`; receives no gradient.
    inter_weight: beta, of the distance over classes.
    intra_weight: gamma, of the distance over examples; 0 makes the examples independent.
    temperature: T > 0, shared by both.
    support: bool `[C]` or `[..., C]`, the classes that exist.
    where: bool `[...]`, the examples that count; the others take no part in the second term.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32 in [0, 2 (beta + gamma)]: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ, `where` has not the shape `[...]`, or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> student = jnp.array([[0.0, 1.0, 3.0], [2.0, 0.0, 1.0]])
    >>> float(dist_loss(student, student)) < 1e-6
    True

  Reference:
    Huang et al., Knowledge Distillation from A Stronger Teacher, 2022, arXiv:2205.10536. Their code
    multiplies by T**2, which the paper does not print: a correlation has no scale to restore. It
    also adds 1e-8 to the norms, which switches off classes that are rare in the batch.
  """
  log_s, log_t = log_prob_pair(
    student_logits, teacher_logits, temperature=temperature, support=support, where=where
  )
  num_classes, leading = log_s.shape[-1], log_s.shape[:-1]
  exists = existing(support, log_s.shape)
  inter = _pearson_distance(log_s, log_t, exists, axis=-1)
  seen = exists if where is None else exists & jnp.asarray(where)[..., None]
  flat_s, flat_t, flat_seen = (x.reshape(-1, num_classes) for x in (log_s, log_t, seen))
  distances = _pearson_distance(flat_s, flat_t, flat_seen, axis=0)
  real = jnp.any(flat_seen, axis=0)
  intra = safe_divide(jnp.sum(jnp.where(real, distances, 0.0)), jnp.sum(real))
  loss = inter_weight * inter + intra_weight * jnp.broadcast_to(intra, leading)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def _pearson_distance(log_p: Array, log_q: Array, seen: Array, axis: int) -> Array:
  """1 - correlation of exp(log_p) with exp(log_q) along `axis`, where seen; 1 without variance."""
  (p, p_equal), (q, q_equal) = (_deviations(log_x, seen, axis) for log_x in (log_p, log_q))
  # Of unit vectors, half the squared distance: without the cancellation of 1 - cos near 0. One that
  # is 0 for want of variance lacks its half.
  return 0.5 * (jnp.sum((p - q) ** 2, axis=axis) + p_equal + q_equal)


def _deviations(log_p: Array, seen: Array, axis: int) -> tuple[Array, Array]:
  """exp(log_p) minus its mean, as a unit vector along `axis` or 0, and whether all are equal."""
  # A correlation has no scale: relative to the largest, rare classes do not underflow.
  top = jax.lax.stop_gradient(jnp.max(jnp.where(seen, log_p, FLOOR), axis=axis, keepdims=True))
  probs = jnp.where(seen, jnp.exp(jnp.where(seen, log_p - top, FLOOR)), 0.0)
  count = jnp.sum(seen, axis=axis, keepdims=True)
  mean = safe_divide(jnp.sum(probs, axis=axis, keepdims=True), count)
  centred = jnp.where(seen, probs - mean, 0.0)
  square = jnp.sum(centred**2, axis=axis, keepdims=True)
  # Below, only the rounding of equal probabilities is left.
  equal = square <= 1e-12 * count
  unit = jnp.where(equal, 0.0, centred) / jnp.sqrt(jnp.where(equal, 1.0, square))
  return unit, jnp.squeeze(equal, axis)
