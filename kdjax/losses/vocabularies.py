"""Distillation between models whose classes or tokens have no common names."""

import jax.numpy as jnp

from kdjax.losses.common import check_temperature, constant, log_probs, visible
from kdjax.reduce import ReduceFn, reduce_loss
from kdjax.types import Array


def universal_logit_loss(
  student_logits: Array,
  teacher_logits: Array,
  *,
  temperature: float = 1.0,
  student_support: Array | None = None,
  teacher_support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Universal logit distillation: the distance of sorted probabilities.

  $$L = \sum_{i=1}^{\max(C_s, C_t)} |p^s_{(i)} - p^t_{(i)}|, \quad
  p = \mathrm{softmax}(z / T), \quad p_{(1)} \ge p_{(2)} \ge \dots$$

  The smaller vocabulary is filled up with zeros. It says how sure the teacher is, and not of what:
  the labels must say that. Positions are compared in pairs; where the two tokenizers give unequal
  lengths, the paper cuts both to the shorter.

  Args:
    student_logits: float `[..., C_s]`.
    teacher_logits: float `[..., C_t]`; receives no gradient.
    temperature: T > 0, shared by both.
    student_support: bool `[C_s]` or `[..., C_s]`, the student's classes that exist.
    teacher_support: bool `[C_t]` or `[..., C_t]`, the teacher's.
    where: bool `[...]`, the examples (tokens) that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32 in [0, 2]: a scalar, or `[...]` for `reduce_fn=None`. No factor T**2.

  Raises:
    ValueError: if the leading axes differ in shape, `where` has not the shape `[...]`, or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> student = jnp.log(jnp.array([[0.2, 0.8]]))
    >>> teacher = jnp.log(jnp.array([[0.7, 0.1, 0.2]]))
    >>> round(float(universal_logit_loss(student, teacher)), 4)
    0.2

  Reference:
    Boizard et al., Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for
    LLMs, 2024, arXiv:2402.12030 (their closed form of the Wasserstein distance; they add it to the
    cross-entropy with a weight of 1.5).
  """
  check_temperature(temperature)
  if jnp.shape(student_logits)[:-1] != jnp.shape(teacher_logits)[:-1]:
    raise ValueError(
      f"student and teacher differ in leading shape: {jnp.shape(student_logits)} and "
      f"{jnp.shape(teacher_logits)}"
    )
  student = visible(student_logits, where, core_ndim=1)
  teacher = visible(constant(teacher_logits), where, core_ndim=1)
  size = max(student.shape[-1], teacher.shape[-1])
  probs_s = _sorted_probs(log_probs(student, temperature, student_support), size)
  probs_t = _sorted_probs(log_probs(teacher, temperature, teacher_support), size)
  distance = jnp.sum(jnp.abs(probs_s - probs_t), axis=-1)
  return reduce_loss(distance, where=where, reduce_fn=reduce_fn)


def _sorted_probs(log_p: Array, size: int) -> Array:
  """Probabilities in descending order, filled up with zeros to `size` classes."""
  probs = jnp.sort(jnp.exp(log_p), axis=-1, descending=True)
  return jnp.pad(probs, [(0, 0)] * (probs.ndim - 1) + [(0, size - probs.shape[-1])])
