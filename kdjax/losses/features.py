"""Losses on features, position by position, and the learned projection between two widths."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax.losses.common import check_same_shape, constant, unit, visible
from kdjax.reduce import ReduceFn, reduce_loss
from kdjax.types import Array, Params


class Helper(NamedTuple):
  """A learned part of a loss, as a pair of pure functions.

  Its params are trained with the student's and dropped at export.

  Attributes:
    init: `init(key) -> params`.
    apply: `apply(params, student_features) -> features` to compare with the teacher's. Some take
      or give several arrays, and say so.
  """

  init: Callable[[Array], Params]
  apply: Callable[..., Any]


def projector(student_dim: int, teacher_dim: int) -> Helper:
  r"""An affine map from the student's width to the teacher's.

  $$r(h) = h W + b, \quad W \in R^{d_s \times d_t}$$

  Args:
    student_dim: d_s > 0, the last axis of the student's features.
    teacher_dim: d_t > 0, the last axis of the teacher's.

  Returns:
    Helper whose params are `{"kernel": float32 [d_s, d_t], "bias": float32 [d_t]}`.

  Raises:
    ValueError: if a width is not positive.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> helper = projector(8, 32)
    >>> params = helper.init(jax.random.key(0))
    >>> helper.apply(params, jnp.ones([2, 5, 8])).shape
    (2, 5, 32)

  Reference:
    Romero et al., FitNets: Hints for Thin Deep Nets, 2015, arXiv:1412.6550 (their regressor,
    applied position by position).
  """
  if student_dim < 1 or teacher_dim < 1:
    raise ValueError(f"widths must be positive, got {student_dim} and {teacher_dim}")

  def init(key: Array) -> Params:
    kernel = jax.nn.initializers.lecun_normal()(key, (student_dim, teacher_dim), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros([teacher_dim], jnp.float32)}

  def apply(params: Params, student_features: Array) -> Array:
    projected = jnp.einsum("...s,st->...t", student_features, params["kernel"])
    return projected + jnp.broadcast_to(params["bias"], projected.shape)

  return Helper(init, apply)


def hint_loss(
  student_features: Array,
  teacher_features: Array,
  *,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Mean squared difference of features, position by position.

  $$L = \frac{1}{d} \lVert h^s - h^t \rVert^2$$

  Where the widths differ, pass the student's features through a `projector` first.

  Args:
    student_features: float `[..., d]`.
    teacher_features: float `[..., d]`; receives no gradient.
    where: bool `[...]`, the positions that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in squared units of the features: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ, or `where` has not the shape `[...]`.

  Example:
    >>> import jax.numpy as jnp
    >>> float(hint_loss(jnp.ones([2, 3, 4]), jnp.zeros([2, 3, 4])))
    1.0

  Reference:
    Romero et al., FitNets: Hints for Thin Deep Nets, 2015, arXiv:1412.6550. They print half the
    squared norm; the mean over d keeps one weight right for all widths. On hidden states and
    embeddings it is the loss of Jiao et al., TinyBERT, 2020, arXiv:1909.10351.
  """
  student, teacher = _visible_pair(student_features, teacher_features, where)
  return reduce_loss(jnp.mean((student - teacher) ** 2, axis=-1), where=where, reduce_fn=reduce_fn)


def cosine_feature_loss(
  student_features: Array,
  teacher_features: Array,
  *,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""One minus the cosine of the features, position by position: directions, not lengths.

  $$L = 1 - \frac{h^s \cdot h^t}{\lVert h^s \rVert \lVert h^t \rVert}$$

  A zero vector has no direction: its cosine is 0 and its gradient is 0.

  Args:
    student_features: float `[..., d]`.
    teacher_features: float `[..., d]`; receives no gradient.
    where: bool `[...]`, the positions that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32 in [0, 2]: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ, or `where` has not the shape `[...]`.

  Example:
    >>> import jax.numpy as jnp
    >>> float(cosine_feature_loss(jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 2.0]])))
    1.0

  Reference:
    Sanh et al., DistilBERT, a distilled version of BERT, 2019, arXiv:1910.01108.
  """
  student, teacher = (unit(x) for x in _visible_pair(student_features, teacher_features, where))
  # Half the squared distance of the directions: no rounding is left over where they agree.
  missing = sum(jnp.all(x == 0, axis=-1).astype(jnp.float32) for x in (student, teacher))
  loss = 0.5 * (jnp.sum((student - teacher) ** 2, axis=-1) + missing)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def patient_loss(
  student_features: Array,
  teacher_features: Array,
  *,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Squared distance of normalised features: patient distillation of [CLS] states.

  $$L = \left\lVert \frac{h^s}{\lVert h^s \rVert} - \frac{h^t}{\lVert h^t \rVert}
  \right\rVert^2$$

  Twice `cosine_feature_loss` where neither vector is 0. Stack the [CLS] states of the chosen
  layers to `[batch, layers, d]` to distil several at once.

  Args:
    student_features: float `[..., d]`.
    teacher_features: float `[..., d]`; receives no gradient.
    where: bool `[...]`, the states that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32 in [0, 4]: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ, or `where` has not the shape `[...]`.

  Example:
    >>> import jax.numpy as jnp
    >>> float(patient_loss(jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 2.0]])))
    2.0

  Reference:
    Sun et al., Patient Knowledge Distillation for BERT Model Compression, 2019, arXiv:1908.09355
    (which adds up layers and examples; `jnp.mean` divides by both).
  """
  student, teacher = (unit(x) for x in _visible_pair(student_features, teacher_features, where))
  loss = jnp.sum((student - teacher) ** 2, axis=-1)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def variational_loss(
  student_mean: Array,
  student_variance: Array,
  teacher_features: Array,
  *,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Variational information distillation: how likely a Gaussian of the student finds the teacher.

  $$L = \frac{1}{d} \sum_c \left( \log \sigma_c + \frac{(h^t_c - \mu_c)^2}{2 \sigma_c^2} \right)$$

  A lower bound on the mutual information of the two layers: maximal likelihood under
  $q(h^t | h^s) = N(\mu(h^s), \sigma^2)$. `variational_regressor` learns mean and variance.

  Args:
    student_mean: float `[..., d]`, the mean predicted from the student's features.
    student_variance: float `[d]`, a variance a channel, or `[..., d]`; positive.
    teacher_features: float `[..., d]`; receives no gradient.
    where: bool `[...]`, the positions that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats a channel, without the constant log(2 pi) / 2 (so it may be negative): a
    scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes do not fit, or `where` has not the shape `[...]`.

  Example:
    >>> import jax.numpy as jnp
    >>> float(variational_loss(jnp.zeros([2, 3]), jnp.ones(3), jnp.ones([2, 3])))
    0.5

  Reference:
    Ahn et al., Variational Information Distillation for Knowledge Transfer, 2019,
    arXiv:1904.05835 (which adds up channels and positions; the mean keeps one weight right).
  """
  mean, teacher = _visible_pair(student_mean, teacher_features, where)
  variance = jnp.asarray(student_variance, jnp.float32)
  if variance.shape not in (mean.shape[-1:], mean.shape):
    raise ValueError(f"variance has shape {variance.shape} but the mean has {mean.shape}")
  variance = jnp.broadcast_to(variance, mean.shape)
  if where is not None:
    variance = jnp.where(jnp.asarray(where)[..., None], variance, 1.0)
  loss = 0.5 * jnp.mean((teacher - mean) ** 2 / variance + jnp.log(variance), axis=-1)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def _visible_pair(student, teacher, where):
  """Both `[..., d]` in float32, 0 where masked, the teacher without gradient."""
  check_same_shape(student, teacher)
  return visible(student, where, core_ndim=1), visible(constant(teacher), where, core_ndim=1)
