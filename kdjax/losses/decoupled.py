"""Losses that treat the labelled class and the others apart."""

import jax
import jax.numpy as jnp

from kdjax.losses.common import (
  check_labels,
  check_same_shape,
  check_temperature,
  constant,
  floored,
  kl_divergence,
  log_prob_pair,
  log_probs,
  pick,
  visible,
)
from kdjax.reduce import ReduceFn, reduce_loss
from kdjax.types import Array


def decoupled_loss(
  student_logits: Array,
  teacher_logits: Array,
  labels: Array,
  *,
  target_weight: float | Array = 1.0,
  other_weight: float | Array = 8.0,
  temperature: float = 4.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Decoupled KD: the label against the rest, and the rest among themselves.

  $$L = T^2 \left( \alpha\, \mathrm{KL}(b^t \Vert b^s) +
  \beta\, \mathrm{KL}(\hat p^t \Vert \hat p^s) \right), \quad
  b = (p_y, 1 - p_y), \quad \hat p_c = \frac{p_c}{1 - p_y} \; (c \ne y), \quad
  p = \mathrm{softmax}(z / T)$$

  with $\alpha$ the `target_weight` and $\beta$ the `other_weight`. Forward KL is the same sum with
  the weights 1 and $1 - p^t_y$: a confident teacher silences what it knows of the other classes.
  Here that weight is constant.

  Args:
    student_logits: float `[..., C]`.
    teacher_logits: float `[..., C]`; receives no gradient.
    labels: int `[...]` in `[0, C)`; masked ones may be anything (PAD).
    target_weight: alpha, of the part that knows how hard the example is.
    other_weight: beta, of the part that knows the other classes.
    temperature: T > 0, shared by both.
    support: bool `[C]` or `[..., C]`, the classes that exist.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats times T**2: a scalar, or `[...]` for `reduce_fn=None`. A label out of range
    that counts gives NaN.

  Raises:
    ValueError: if the shapes of the logits differ, `labels` or `where` have not the shape `[...]`,
      or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.zeros([1, 3]), jnp.log(jnp.array([[0.8, 0.15, 0.05]]))
    >>> labels = jnp.array([0])
    >>> round(float(decoupled_loss(student, teacher, labels, temperature=1.0)), 4)
    1.5061

  Reference:
    Zhao et al., Decoupled Knowledge Distillation, 2022, arXiv:2203.08679 (their code, too, has the
    factor T**2; its warm-up of the weight belongs to the objective).
  """
  check_labels(labels, jnp.shape(student_logits)[:-1])
  labels = labels if where is None else jnp.where(where, labels, 0)
  log_s, log_t = log_prob_pair(
    student_logits, teacher_logits, temperature=temperature, support=support, where=where
  )
  target_s, rest_s, other_s = _decouple(log_s, labels)
  target_t, rest_t, other_t = _decouple(log_t, labels)
  target = jnp.exp(target_t) * (target_t - target_s) + jnp.exp(rest_t) * (rest_t - rest_s)
  other = kl_divergence(other_t, other_s)
  loss = temperature**2 * (target_weight * target + other_weight * other)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def normalized_decoupled_loss(
  student_logits: Array,
  teacher_logits: Array,
  labels: Array,
  *,
  target_weight: float | Array = 1.0,
  other_weight: float | Array = 1.5,
  temperature: float = 1.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Normalised KD: a soft label for the target, and a cross-entropy among the other classes.

  $$L = -\alpha\, p^t_y \log p^s_y
  - \gamma\, T^2 \sum_{c \ne y} \hat p^t_c \log \hat p^s_c, \quad
  p = \mathrm{softmax}(z), \quad \hat p = \mathrm{softmax}_{c \ne y}(z_c / T)$$

  with $\alpha$ the `target_weight` and $\gamma$ the `other_weight`. The other classes are
  normalised to sum to 1 on both sides, else their cross-entropy would also pull on the target.

  Args:
    student_logits: float `[..., C]`.
    teacher_logits: float `[..., C]`; receives no gradient.
    labels: int `[...]` in `[0, C)`; masked ones may be anything (PAD).
    target_weight: alpha, of the soft cross-entropy of the target (1 in the paper).
    other_weight: gamma, of the part among the other classes.
    temperature: T > 0 of the other classes; the target's probability is taken at 1.
    support: bool `[C]` or `[..., C]`, the classes that exist.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats: a scalar, or `[...]` for `reduce_fn=None`. A cross-entropy: not 0 where the
    student equals the teacher. A label out of range that counts gives NaN.

  Raises:
    ValueError: if the shapes of the logits differ, `labels` or `where` have not the shape `[...]`,
      or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.zeros([1, 3]), jnp.log(jnp.array([[0.8, 0.15, 0.05]]))
    >>> round(float(normalized_decoupled_loss(student, teacher, jnp.array([0]))), 4)
    1.9186

  Reference:
    Yang et al., From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
    Normalized Loss and Customized Soft Labels, 2023, arXiv:2303.13005. Their training adds the
    cross-entropy with the labels, here `cross_entropy_loss`.
  """
  check_same_shape(student_logits, teacher_logits)
  check_labels(labels, jnp.shape(student_logits)[:-1])
  check_temperature(temperature)
  labels = labels if where is None else jnp.where(where, labels, 0)
  student = floored(visible(student_logits, where, core_ndim=1), support)
  teacher = floored(visible(constant(teacher_logits), where, core_ndim=1), support)
  target = -jnp.exp(pick(log_probs(teacher), labels)) * pick(log_probs(student), labels)
  other_s, other_t = _others(student / temperature, labels), _others(teacher / temperature, labels)
  other = -jnp.sum(jnp.exp(other_t) * other_s, axis=-1)
  loss = target_weight * target + other_weight * temperature**2 * other
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def _decouple(log_p: Array, labels: Array) -> tuple[Array, Array, Array]:
  """log p_y `[...]`, log(1 - p_y) `[...]`, and log p_c / (1 - p_y) `[..., C]` over the others."""
  is_label = jax.nn.one_hot(labels, log_p.shape[-1], dtype=bool)
  rest = jax.nn.logsumexp(floored(log_p, ~is_label), axis=-1)
  return pick(log_p, labels), rest, _others(log_p, labels)


def _others(logits: Array, labels: Array) -> Array:
  """log softmax over all classes but the label."""
  is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  return log_probs(logits, 1.0, ~is_label)
