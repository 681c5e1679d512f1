"""How often speculative decoding accepts what a student drafts for its teacher.

The loss for it is `kdjax.losses.divergences.total_variation_loss`, 1 minus the acceptance rate.
"""

import jax.numpy as jnp

from kdjax.losses.common import check_same_shape, check_temperature, log_probs
from kdjax.types import Array


def acceptance_rate(
  student_logits: Array,
  teacher_logits: Array,
  *,
  temperature: float = 1.0,
  support: Array | None = None,
) -> Array:
  r"""Probability that the teacher accepts a token drafted by the student.

  $$a = \sum_c \min(p^s_c, p^t_c) = 1 - \mathrm{TV}(p^s, p^t), \quad
  p = \mathrm{softmax}(z / T)$$

  Args:
    student_logits: float `[..., C]`, of the model that drafts.
    teacher_logits: float `[..., C]`, of the model that verifies.
    temperature: T > 0 of the sampling.
    support: bool `[C]` or `[..., C]`, the tokens that exist.

  Returns:
    float32 `[...]` in [0, 1].

  Raises:
    ValueError: if the shapes differ or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.log(jnp.array([[0.9, 0.1]]))
    >>> [round(float(a), 4) for a in acceptance_rate(student, teacher)]
    [0.6]

  Reference:
    Leviathan, Kalman, Matias, Fast Inference from Transformers via Speculative Decoding, 2023,
    arXiv:2211.17192, theorem 3.5.
  """
  check_same_shape(student_logits, teacher_logits)
  check_temperature(temperature)
  student, teacher = (
    log_probs(jnp.asarray(logits, jnp.float32), temperature, support)
    for logits in (student_logits, teacher_logits)
  )
  return jnp.sum(jnp.exp(jnp.minimum(student, teacher)), axis=-1)


def expected_tokens(rate: Array, num_drafts: int) -> Array:
  r"""Tokens that one run of the teacher yields when the student drafts `num_drafts` before it.

  $$\frac{1 - a^{\gamma + 1}}{1 - a} = \sum_{i=0}^{\gamma} a^i$$

  Args:
    rate: float `[...]`, a in [0, 1], taken as independent between tokens.
    num_drafts: gamma >= 0.

  Returns:
    float32 `[...]` in [1, gamma + 1].

  Raises:
    ValueError: if `num_drafts` is negative.

  Example:
    >>> import jax.numpy as jnp
    >>> [round(float(n), 4) for n in expected_tokens(jnp.array([0.0, 0.5, 1.0]), 3)]
    [1.0, 1.875, 4.0]

  Reference:
    Leviathan, Kalman, Matias, Fast Inference from Transformers via Speculative Decoding, 2023,
    arXiv:2211.17192, eq. 1.
  """
  if num_drafts < 0:
    raise ValueError(f"num_drafts must not be negative, got {num_drafts}")
  rate = jnp.asarray(rate, jnp.float32)
  tokens = jnp.ones_like(rate)
  for _ in range(num_drafts):
    tokens = 1.0 + rate * tokens  # Horner: exact at a = 1 too.
  return tokens
