"""Teachers made of other things: labels, several teachers, a teacher with its errors corrected.

All return teacher logits, without gradient, so that every loss on logits takes them. Where a
mixture is one of probabilities softened by a temperature, the result is scaled such that its
softmax at that same temperature is the mixture: pass the same temperature to the loss.

Self-distillation needs no function of its own. An earlier copy of the student (Tf-KD self,
born-again networks) or its moving average is a teacher like any other, and the refining targets of
progressive self-distillation are `label_mixture` of the last epoch's logits with a growing weight.
"""

import jax
import jax.numpy as jnp

from kdjax.losses.common import (
  FLOOR,
  check_fraction,
  check_labels,
  check_temperature,
  constant,
  floored,
  log_mixture,
  log_probs,
  pick,
)
from kdjax.types import Array


def virtual_teacher(labels: Array, num_classes: int, *, target_probability: float = 0.99) -> Array:
  r"""A teacher that is always right, made by hand: teacher-free distillation.

  $$p_c = a \; (c = y), \quad p_c = \frac{1 - a}{C - 1} \; (c \ne y)$$

  The paper softens it with a high temperature: `kl_loss(..., temperature=20.0)`.

  Args:
    labels: int `[...]` in `[0, num_classes)`.
    num_classes: C > 1.
    target_probability: a in [0, 1]; the paper asks for 0.9 or more.

  Returns:
    float32 `[..., C]`, log-probabilities; NaN for a label out of range, which `where` may hide.

  Raises:
    ValueError: if `num_classes` < 2 or the probability is outside [0, 1].

  Example:
    >>> import jax.numpy as jnp
    >>> probs = jnp.exp(virtual_teacher(jnp.array(1), 3, target_probability=0.9))
    >>> [round(float(p), 4) for p in probs]
    [0.05, 0.9, 0.05]

  Reference:
    Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization, 2020,
    arXiv:1909.11723 (Tf-KD reg, eqs. 8 and 9). Their code takes the softmax of the probabilities
    over T for the softened teacher and leaves the student unsoftened; the paper softens both, and
    so does a loss on these logits.
  """
  if num_classes < 2:
    raise ValueError(f"num_classes must be at least 2, got {num_classes}")
  check_fraction("target_probability", target_probability)
  is_label = jax.nn.one_hot(labels, num_classes, dtype=bool)
  other = (1 - target_probability) / (num_classes - 1)
  log_p = jnp.log(jnp.where(is_label, target_probability, other))
  return jnp.where(_known(labels, log_p), log_p, jnp.nan)


def label_mixture(
  teacher_logits: Array,
  labels: Array,
  *,
  label_weight: float | Array = 0.5,
  temperature: float = 1.0,
  support: Array | None = None,
) -> Array:
  r"""Targets refined by a teacher: its probabilities mixed with the labels.

  $$q = w\, e_y + (1 - w)\, \mathrm{softmax}(z / T)$$

  Args:
    teacher_logits: float `[..., C]`.
    labels: int `[...]` in `[0, C)`.
    label_weight: w in [0, 1].
    temperature: T > 0, of the teacher; the loss must be given the same.
    support: bool `[C]` or `[..., C]`, the classes that exist.

  Returns:
    float32 `[..., C]`, T log q; NaN for a label out of range, which `where` may hide.

  Raises:
    ValueError: if `labels` has not the shape `[...]`, T <= 0, or the weight is outside [0, 1].

  Example:
    >>> import jax.numpy as jnp
    >>> targets = label_mixture(jnp.log(jnp.array([0.2, 0.8])), jnp.array(0), label_weight=0.5)
    >>> [round(float(p), 4) for p in jnp.exp(targets)]
    [0.6, 0.4]

  Reference:
    Kim et al., Self-Knowledge Distillation with Progressive Refinement of Targets, 2021,
    arXiv:2006.12000 (where 1 - w grows linearly over the epochs).
  """
  check_labels(labels, jnp.shape(teacher_logits)[:-1])
  check_temperature(temperature)
  check_fraction("label_weight", label_weight)
  log_p = log_probs(_teacher(teacher_logits), temperature, support)
  is_label = jax.nn.one_hot(labels, log_p.shape[-1], dtype=bool)
  mixed = log_mixture(log_p, jnp.where(is_label, 0.0, -jnp.inf), label_weight)
  return jnp.where(_known(labels, log_p), temperature * mixed, jnp.nan)


def probability_shift(
  teacher_logits: Array, labels: Array, *, support: Array | None = None
) -> Array:
  r"""A teacher whose wrong answers are corrected: the best class and the label swap logits.

  $$z'_y = \max_c z_c, \quad z'_{\hat c} = z_y, \quad \hat c = \arg\max_c z_c$$

  Where the teacher is right nothing changes, and the set of its logits never does.

  Args:
    teacher_logits: float `[..., C]`.
    labels: int `[...]` in `[0, C)`.
    support: bool `[C]` or `[..., C]`, the classes that exist.

  Returns:
    float32 `[..., C]`; NaN for a label out of range, which `where` may hide. Of equal best classes
    the first is swapped, unless the label is one of them.

  Raises:
    ValueError: if `labels` has not the shape `[...]`.

  Example:
    >>> import jax.numpy as jnp
    >>> probability_shift(jnp.array([3.0, 1.0, 2.0]), jnp.array(1)).tolist()
    [1.0, 3.0, 2.0]

  Reference:
    Wen, Lai, Qian, Preparing Lessons: Improve Knowledge Distillation with Better Supervision, 2019,
    arXiv:1911.07471.
  """
  check_labels(labels, jnp.shape(teacher_logits)[:-1])
  logits = _teacher(teacher_logits)
  known = floored(logits, support)
  own = pick(logits, labels)[..., None]
  best = jnp.max(known, axis=-1, keepdims=True)
  is_best = jax.nn.one_hot(jnp.argmax(known, axis=-1), logits.shape[-1], dtype=bool)
  is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  swapped = jnp.where(is_label, best, jnp.where(is_best, own, logits))
  shifted = jnp.where(own >= best, logits, swapped)
  return jnp.where(_known(labels, logits), shifted, jnp.nan)


def average_probs(
  teacher_logits: Array,
  *,
  weights: Array | None = None,
  temperature: float = 1.0,
  support: Array | None = None,
) -> Array:
  r"""An ensemble of teachers as the mean of their probabilities.

  $$q = \sum_m w_m\, \mathrm{softmax}(z_m / T), \quad \sum_m w_m = 1$$

  Args:
    teacher_logits: float `[M, ..., C]`, one teacher a row.
    weights: float `[M]` or `[M, ...]`, >= 0, divided by their sum; None for equal ones.
    temperature: T > 0; the loss must be given the same.
    support: bool `[C]` or `[..., C]`, the classes that exist.

  Returns:
    float32 `[..., C]`, T log q.

  Raises:
    ValueError: if `weights` has neither shape, or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> teachers = jnp.log(jnp.array([[0.9, 0.1], [0.5, 0.5]]))
    >>> [round(float(p), 4) for p in jnp.exp(average_probs(teachers))]
    [0.7, 0.3]

  Reference:
    Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531
    (the arithmetic mean).
  """
  check_temperature(temperature)
  logits = _teacher(teacher_logits)
  if support is not None:
    support = jnp.broadcast_to(support, logits.shape[1:])[None]
  log_p = log_probs(logits, temperature, support)
  log_w = jnp.log(_shares(weights, log_p.shape))
  return temperature * jax.nn.logsumexp(log_p + log_w, axis=0)


def average_logits(teacher_logits: Array, *, weights: Array | None = None) -> Array:
  r"""An ensemble of teachers as the mean of their logits: the geometric mean of probabilities.

  $$z = \sum_m w_m z_m, \quad \sum_m w_m = 1$$

  What one teacher calls impossible (-inf) is impossible, unless its weight is 0.

  Args:
    teacher_logits: float `[M, ..., C]`, one teacher a row.
    weights: float `[M]` or `[M, ...]`, >= 0, divided by their sum; None for equal ones.

  Returns:
    float32 `[..., C]`, to be softened at any temperature.

  Raises:
    ValueError: if `weights` has neither shape.

  Example:
    >>> import jax.numpy as jnp
    >>> average_logits(jnp.array([[1.0, -jnp.inf], [3.0, 0.0]])).tolist()
    [2.0, -inf]

  Reference:
    Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531
    (the geometric mean).
  """
  logits = _teacher(teacher_logits)
  shares = jnp.broadcast_to(_shares(weights, logits.shape), logits.shape)
  impossible = logits <= FLOOR
  mean = jnp.sum(shares * jnp.where(impossible, 0.0, logits), axis=0)
  return jnp.where(jnp.any(impossible & (shares > 0), axis=0), -jnp.inf, mean)


def confidence_weights(
  teacher_logits: Array, labels: Array, *, support: Array | None = None
) -> Array:
  r"""Weights of teachers, example by example: the better one knows the label, the more it counts.

  $$w_m = \frac{1}{M - 1} \left( 1 - \frac{e^{L_m}}{\sum_j e^{L_j}} \right), \quad
  L_m = -\log \mathrm{softmax}(z_m)_y$$

  Args:
    teacher_logits: float `[M, ..., C]`, one teacher a row.
    labels: int `[...]` in `[0, C)`.
    support: bool `[C]` or `[..., C]`, the classes that exist.

  Returns:
    float32 `[M, ...]`, for `average_probs` or `average_logits`; they sum to 1 over the teachers.
    NaN for a label out of range, which `where` may hide.

  Raises:
    ValueError: if `labels` has not the shape `[...]`.

  Example:
    >>> import jax.numpy as jnp
    >>> teachers = jnp.log(jnp.array([[0.8, 0.2], [0.2, 0.8]]))
    >>> [round(float(w), 4) for w in confidence_weights(teachers, jnp.array(0))]
    [0.8, 0.2]

  Reference:
    Zhang, Chen, Wang, Confidence-Aware Multi-Teacher Knowledge Distillation, 2022,
    arXiv:2201.00007, eq. 2.
  """
  logits = _teacher(teacher_logits)
  check_labels(labels, logits.shape[1:-1])
  if support is not None:
    support = jnp.broadcast_to(support, logits.shape[1:])[None]
  labels = jnp.broadcast_to(jnp.asarray(labels)[None], logits.shape[:-1])
  losses = -pick(log_probs(logits, 1.0, support), labels)
  if logits.shape[0] == 1:
    return jnp.where(jnp.isnan(losses), jnp.nan, 1.0)
  return (1.0 - jax.nn.softmax(losses, axis=0)) / (logits.shape[0] - 1)


def _known(labels: Array, logits: Array) -> Array:
  """Whether a label is a class: `[..., 1]`."""
  return ((labels >= 0) & (labels < logits.shape[-1]))[..., None]


def _teacher(logits) -> Array:
  return constant(jnp.asarray(logits, jnp.float32))


def _shares(weights, shape) -> Array:
  """Weights of sum 1 over the first axis, with as many axes as `shape`."""
  if weights is None:
    return jnp.full((shape[0],) + (1,) * (len(shape) - 1), 1.0 / shape[0])
  weights = constant(jnp.asarray(weights, jnp.float32))
  if weights.shape not in (shape[:1], shape[:-1]):
    raise ValueError(f"weights have shape {weights.shape}, expected {shape[:1]} or {shape[:-1]}")
  weights = weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim))
  return weights / jnp.sum(weights, axis=0, keepdims=True)
