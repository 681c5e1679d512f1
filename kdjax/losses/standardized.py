"""Logit standardisation: student and teacher compared without their scales."""

import jax.numpy as jnp

from kdjax.losses.common import FLOOR, check_same_shape, constant, floored, mean_over, visible
from kdjax.losses.logits import kl_loss
from kdjax.reduce import ReduceFn
from kdjax.types import Array


def standardize_logits(logits: Array, *, support: Array | None = None) -> Array:
  r"""Logits with mean 0 and standard deviation 1 over the classes of each example.

  $$Z(z)_c = \frac{z_c - \bar z}{\sigma}, \quad
  \sigma^2 = \frac{1}{|S|} \sum_{c \in S} (z_c - \bar z)^2$$

  S holds the supported classes whose logit is not -inf. Any loss on logits may follow; its
  temperature then means the same for both sides.

  Args:
    logits: float `[..., C]`.
    support: bool `[C]` or `[..., C]`, the classes that exist.

  Returns:
    float32 `[..., C]`; -inf outside S, and 0 where all logits of S agree.

  Example:
    >>> import jax.numpy as jnp
    >>> [round(float(z), 4) for z in standardize_logits(jnp.array([1.0, 3.0, -jnp.inf]))]
    [-1.0, 1.0, -inf]

  Reference:
    Sun et al., Logit Standardization in Knowledge Distillation, 2024, arXiv:2403.01427. The
    deviation divides by the number of classes, as they print; their code divides by one less.
  """
  logits = floored(jnp.asarray(logits, jnp.float32), support)
  real = logits != FLOOR  # NaN stays in, and so stays visible.
  largest = jnp.max(jnp.where(real, jnp.abs(logits), 0.0), axis=-1, keepdims=True)
  centred = jnp.where(real, logits, 0.0) - mean_over(logits, real)[..., None]
  variance = mean_over(centred**2, real)[..., None]
  # Of equal logits only the rounding of their mean is left, which must not be blown up.
  equal = variance <= (1e-6 * largest) ** 2
  scaled = jnp.where(equal, 0.0, centred) / jnp.sqrt(jnp.where(equal, 1.0, variance))
  return jnp.where(real, scaled, -jnp.inf)


def standardized_kl_loss(
  student_logits: Array,
  teacher_logits: Array,
  *,
  temperature: float = 2.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""KL(teacher || student) of standardised logits, softened, times temperature**2.

  $$L = T^2 \sum_c p^t_c (\log p^t_c - \log p^s_c), \quad p = \mathrm{softmax}(Z(z) / T)$$

  Z is `standardize_logits`. The student need not match the teacher's range of logits, only their
  relations; both may be shifted and scaled without changing the loss.

  Args:
    student_logits: float `[..., C]`.
    teacher_logits: float `[..., C]`; receives no gradient.
    temperature: T > 0, in standard deviations.
    support: bool `[C]` or `[..., C]`, the classes that exist.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats times T**2: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ, `where` has not the shape `[...]`, or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> student = jnp.array([[0.0, 1.0, 5.0]])
    >>> float(standardized_kl_loss(student, 7.0 + 10.0 * student)) < 1e-6
    True

  Reference:
    Sun et al., Logit Standardization in Knowledge Distillation, 2024, arXiv:2403.01427.
  """
  check_same_shape(student_logits, teacher_logits)
  student = standardize_logits(visible(student_logits, where, core_ndim=1), support=support)
  teacher = visible(constant(teacher_logits), where, core_ndim=1)
  return kl_loss(
    student,
    standardize_logits(teacher, support=support),
    temperature=temperature,
    where=where,
    reduce_fn=reduce_fn,
  )
