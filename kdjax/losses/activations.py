"""Losses on activations before their ReLU: which side of the boundary, and how far above it."""

import jax.numpy as jnp
from jax.scipy.stats import norm as gaussian

from kdjax.losses.common import check_same_shape, constant, nan_where, visible
from kdjax.reduce import ReduceFn, reduce_loss
from kdjax.types import Array


def activation_boundary_loss(
  student_features: Array,
  teacher_features: Array,
  *,
  margin: float = 1.0,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""The student's neurons should be on where the teacher's are, and off where they are off.

  $$L = \frac{1}{d} \sum_c [h^t_c > 0]\, \max(0, m - h^s_c)^2
  + [h^t_c \le 0]\, \max(0, m + h^s_c)^2$$

  Args:
    student_features: float `[..., d]`, before the ReLU, in the teacher's width.
    teacher_features: float `[..., d]`, before the ReLU; receives no gradient.
    margin: m >= 0, how far beyond the boundary the student should be.
    where: bool `[...]`, the positions that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in squared units of the features: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ, `where` has not the shape `[...]`, or the margin is negative.

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[0.5, -2.0]]), jnp.array([[3.0, -0.1]])
    >>> float(activation_boundary_loss(student, teacher))
    0.125

  Reference:
    Heo et al., Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden
    Neurons, 2019, arXiv:1811.03233 (the alternative loss, their Eq. 5; they add up channels, the
    mean over d keeps one weight right for all widths).
  """
  if isinstance(margin, int | float) and not margin >= 0:
    raise ValueError(f"margin must not be negative, got {margin}")
  check_same_shape(student_features, teacher_features)
  student = visible(student_features, where, core_ndim=1)
  teacher = visible(constant(teacher_features), where, core_ndim=1)
  short = margin - jnp.where(teacher > 0, student, -student)
  loss = jnp.mean(jnp.maximum(short, 0.0) ** 2, axis=-1)
  loss = nan_where(jnp.any(jnp.isnan(teacher), axis=-1), loss)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def negative_margin(mean: Array, deviation: Array) -> Array:
  r"""The expectation of the negative values of a Gaussian: the margin of a margin ReLU.

  $$m = E[x | x < 0] = \mu - \sigma \frac{\varphi(\mu / \sigma)}{\Phi(-\mu / \sigma)}, \quad
  x \sim N(\mu, \sigma^2)$$

  The teacher's batch normalisation knows both: its bias is the mean, and the absolute value of its
  scale the deviation. Accurate also for channels that are hardly ever negative.

  Args:
    mean: float `[...]`.
    deviation: float `[...]`, not negative. At 0 the margin is min(mean, 0).

  Returns:
    float32 `[...]`, not positive.

  Example:
    >>> import jax.numpy as jnp
    >>> [round(float(m), 4) for m in negative_margin(jnp.array([0.0, 2.0]), jnp.array([1.0, 1.0]))]
    [-0.7979, -0.3732]

  Reference:
    Heo et al., A Comprehensive Overhaul of Feature Distillation, 2019, arXiv:1904.01866.
  """
  mean, deviation = jnp.asarray(mean, jnp.float32), jnp.asarray(deviation, jnp.float32)
  ratio = mean / jnp.where(deviation > 0, deviation, 1.0)
  near = jnp.minimum(ratio, 3.0)
  excess = jnp.exp(gaussian.logpdf(near) - gaussian.logcdf(-near)) - near
  # Far out both terms grow alike and cancel; Laplace's continued fraction is their difference.
  far = jnp.maximum(ratio, 3.0)
  tail = far
  for k in range(40, 1, -1):
    tail = far + k / tail
  excess = jnp.where(ratio < 3.0, excess, 1.0 / tail)
  return jnp.where(deviation > 0, -deviation * excess, jnp.minimum(mean, 0.0))


def overhaul_loss(
  student_features: Array,
  teacher_features: Array,
  *,
  margin: float | Array = -0.7978845608,  # -sqrt(2 / pi)
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Partial squared distance to the teacher's features after a margin ReLU.

  $$L = \frac{1}{d} \sum_c \begin{cases} 0 & h^s_c \le t_c \le 0 \\ (t_c - h^s_c)^2 &
  \text{else} \end{cases}, \quad t_c = \max(h^t_c, m_c)$$

  What the ReLU will drop need not be matched: a negative target is reached from below for free.

  Args:
    student_features: float `[..., d]`, before the ReLU, through a `projector` to the teacher's
      width.
    teacher_features: float `[..., d]`, before the ReLU; receives no gradient.
    margin: m <= 0, a number or float `[d]` (see `negative_margin`); the default is that of
      features with mean 0 and deviation 1.
    where: bool `[...]`, the positions that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in squared units of the features: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes do not fit, `where` has not the shape `[...]`, or the margin is a
      positive number.

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[-9.0, 1.0]]), jnp.array([[-0.5, 3.0]])
    >>> float(overhaul_loss(student, teacher))
    2.0

  Reference:
    Heo et al., A Comprehensive Overhaul of Feature Distillation, 2019, arXiv:1904.01866 (which
    adds up channels and positions; the mean over d keeps one weight right for all widths).
  """
  if isinstance(margin, int | float) and not margin <= 0:
    raise ValueError(f"margin must not be positive, got {margin}")
  check_same_shape(student_features, teacher_features)
  student = visible(student_features, where, core_ndim=1)
  teacher = visible(constant(teacher_features), where, core_ndim=1)
  margin = jnp.broadcast_to(jnp.asarray(constant(margin), jnp.float32), teacher.shape)
  target = jnp.maximum(teacher, margin)
  free = (student <= target) & (target <= 0)
  loss = jnp.mean(jnp.where(free, 0.0, target - student) ** 2, axis=-1)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)
