"""Losses on features, and the learned projection between two widths."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kdjax.losses.common import check_same_shape, constant, visible
from kdjax.reduce import ReduceFn, reduce_loss
from kdjax.types import Array, Params


class Helper(NamedTuple):
  """A learned part of a loss, as a pair of pure functions.

  Its params are trained with the student's and dropped at export.

  Attributes:
    init: `init(key) -> params`.
    apply: `apply(params, student_features) -> features` to compare with the teacher's.
  """

  init: Callable[[Array], Params]
  apply: Callable[[Params, Array], Array]


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
    squared norm; the mean over d keeps one weight right for all widths.
  """
  check_same_shape(student_features, teacher_features)
  student = visible(student_features, where, core_ndim=1)
  teacher = visible(constant(teacher_features), where, core_ndim=1)
  return reduce_loss(jnp.mean((student - teacher) ** 2, axis=-1), where=where, reduce_fn=reduce_fn)
