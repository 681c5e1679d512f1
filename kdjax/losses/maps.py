"""Losses on whole feature maps: what the positions and channels of one example say together."""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from kdjax.losses.common import (
  check_same_axes,
  check_same_shape,
  constant,
  existing,
  unit,
  visible,
)
from kdjax.losses.kernels import polynomial_kernel
from kdjax.reduce import ReduceFn, reduce_loss, safe_divide
from kdjax.types import Array


def visible_map(features, where: Array | None, support: Array | None) -> tuple[Array, Array]:
  """A map `[B, *positions, C]` as float32 `[B, P, C]`, 0 where masked, and its real positions.

  Args:
    features: float `[B, *positions, C]`.
    where: bool `[B]` or None.
    support: bool `[*positions]` or `[B, *positions]`, or None.

  Returns:
    The pair of float32 `[B, P, C]` and bool `[B, P]`.
  """
  shape = jnp.shape(features)
  flat = (shape[0], math.prod(shape[1:-1]))
  values = visible(features, where, core_ndim=len(shape) - 1).reshape(*flat, shape[-1])
  real = existing(support, shape[:-1]).reshape(flat)
  return (values if support is None else jnp.where(real[..., None], values, 0.0)), real


def fsp_loss(
  student_first: Array,
  student_second: Array,
  teacher_first: Array,
  teacher_second: Array,
  *,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Flow of solution procedure: how two layers' channels go together, over all positions.

  $$L = \lVert G^s - G^t \rVert_F^2, \quad
  G_{i j} = \frac{1}{P} \sum_x h^{first}_{x i} h^{second}_{x j}$$

  Args:
    student_first: float `[B, *positions, C_1]`, an earlier layer.
    student_second: float `[B, *positions, C_2]`, a later one; pool the larger map beforehand.
    teacher_first: float `[B, *any, C_1]`; receives no gradient.
    teacher_second: float `[B, *any, C_2]`; receives no gradient.
    support: bool `[*positions]` or `[B, *positions]`, the positions that exist; student and
      teacher must then share theirs.
    where: bool `[B]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in features to the fourth: a scalar, or `[B]` for `reduce_fn=None`.

  Raises:
    ValueError: if the two layers of a side differ in shape before the channels, the sides differ
      in channels or examples, or `where` has not the shape `[B]`.

  Example:
    >>> import jax.numpy as jnp
    >>> x = jnp.ones([1, 2, 2, 1])
    >>> float(fsp_loss(x, 3 * x, x, x))
    4.0

  Reference:
    Yim et al., A Gift from Knowledge Distillation, CVPR 2017.
  """
  student = _flow(student_first, student_second, where, support)
  teacher = constant(_flow(teacher_first, teacher_second, where, support))
  check_same_shape(student, teacher)
  return reduce_loss(jnp.sum((student - teacher) ** 2, (-2, -1)), where=where, reduce_fn=reduce_fn)


def channel_correlation_loss(
  student_features: Array,
  teacher_features: Array,
  *,
  unit_rows: bool = False,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Inter-channel correlation: how alike each two channels of a map are.

  $$L = \frac{1}{C^2} \lVert G^s - G^t \rVert_F^2, \quad G_{i j} = \sum_x h_{x i} h_{x j}$$

  Args:
    student_features: float `[B, *positions, C]`, through a `projector` to the teacher's width.
    teacher_features: float `[B, *any, C]`; receives no gradient.
    unit_rows: divide each row of both G by its Euclidean norm, so that the scale of the features
      does not matter.
    support: bool `[*positions]` or `[B, *positions]`, the positions that exist; student and
      teacher must then share theirs.
    where: bool `[B]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in features to the fourth (no unit with `unit_rows`): a scalar, or `[B]` for
    `reduce_fn=None`.

  Raises:
    ValueError: if channels or examples differ, or `where` has not the shape `[B]`.

  Example:
    >>> import jax.numpy as jnp
    >>> float(channel_correlation_loss(jnp.ones([1, 4, 3]), jnp.zeros([1, 4, 3])))
    16.0

  Reference:
    Liu et al., Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation,
    2021, arXiv:2202.03680. Their code has rows of unit length, as `unit_rows`, and divides by
    C B instead of C^2 after the mean over the batch.
  """
  student, _ = visible_map(student_features, where, support)
  teacher, _ = visible_map(constant(teacher_features), where, support)
  grams = [jnp.einsum("bpi,bpj->bij", x, x) for x in (student, teacher)]
  check_same_shape(*grams)
  if unit_rows:
    grams = [unit(gram) for gram in grams]
  loss = jnp.mean((grams[0] - grams[1]) ** 2, axis=(-2, -1))
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def neuron_selectivity_loss(
  student_features: Array,
  teacher_features: Array,
  *,
  kernel: Callable[[Array], Array] = polynomial_kernel,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Neuron selectivity transfer: squared MMD between the channels' patterns over the positions.

  $$L = \frac{1}{C_s^2} \sum_{i, i'} k(s_i, s_{i'}) + \frac{1}{C_t^2} \sum_{j, j'} k(t_j, t_{j'})
  - \frac{2}{C_s C_t} \sum_{i, j} k(s_i, t_j)$$

  $s_i$ and $t_j$ are the channels as vectors over the positions, each of unit length. The channels
  are compared as sets, so their numbers may differ.

  Args:
    student_features: float `[B, *positions, C_s]`, channels last.
    teacher_features: float `[B, *positions, C_t]`; receives no gradient.
    kernel: `[..., N, P] -> [..., N, N]`, such as `polynomial_kernel` (the paper's best),
      `gaussian_kernel`, `linear_kernel`, or a partial of one.
    support: bool `[*positions]` or `[B, *positions]`, the positions that exist.
    where: bool `[B]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in units of the kernel: a scalar, or `[B]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ before the channels, or `where` has not the shape `[B]`.

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[[1.0], [0.0]]]), jnp.array([[[0.0], [2.0]]])
    >>> float(neuron_selectivity_loss(student, teacher))
    2.0

  Reference:
    Huang, Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017,
    arXiv:1707.01219 (whose objective has half of it; the bandwidth of the Gaussian is the mean
    squared distance of the pairs, here of all pairs in the union of both sets).
  """
  check_same_axes(student_features, teacher_features, -1)
  student, _ = visible_map(student_features, where, support)
  teacher, _ = visible_map(constant(teacher_features), where, support)
  split = student.shape[-1]
  alike = kernel(unit(jnp.swapaxes(jnp.concatenate([student, teacher], axis=-1), -2, -1)))
  own, other = alike[:, :split, :split], alike[:, split:, split:]
  means = [jnp.mean(x, axis=(-2, -1)) for x in (own, other, alike[:, :split, split:])]
  loss = means[0] + means[1] - 2 * means[2]
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def factor_transfer_loss(
  student_factors: Array,
  teacher_factors: Array,
  *,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Absolute difference of factors of unit length.

  $$L = \left\lVert \frac{F^s}{\lVert F^s \rVert_2} - \frac{F^t}{\lVert F^t \rVert_2}
  \right\rVert_1$$

  The teacher's factors come from a `factor_encoder` trained beforehand, with a `factor_decoder`, to
  paraphrase the teacher's features (a `hint_loss` of the reconstruction); the student's from
  another one, trained with the student to translate.

  Args:
    student_factors: float `[B, ...]`.
    teacher_factors: float of the same shape; receives no gradient.
    where: bool `[B]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32: a scalar, or `[B]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ, or `where` has not the shape `[B]`.

  Example:
    >>> import jax.numpy as jnp
    >>> round(float(factor_transfer_loss(jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 2.0]]))), 4)
    0.8

  Reference:
    Kim, Park, Kwak, Paraphrasing Complex Network: Network Compression via Factor Transfer, 2018,
    arXiv:1802.04977 (with p = 1, theirs; some code takes the mean of the absolute differences,
    smaller by their number).
  """
  check_same_shape(student_factors, teacher_factors)
  core_ndim = jnp.ndim(student_factors) - 1
  axes = tuple(range(1, core_ndim + 1))
  student = unit(visible(student_factors, where, core_ndim=core_ndim), axes)
  teacher = unit(visible(constant(teacher_factors), where, core_ndim=core_ndim), axes)
  size = jnp.abs(student - teacher)
  # Equal factors may differ by rounding, in whose direction the loss would have a full gradient.
  rounding = size <= 1e-6 * (jnp.abs(student) + jnp.abs(teacher))
  loss = jnp.sum(jnp.where(rounding, 0.0, size), axis=axes)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def hierarchical_context_loss(
  student_features: Array,
  teacher_features: Array,
  *,
  sizes: Sequence[int] = (4, 2, 1),
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Mean squared difference of maps, and of their averages over ever larger regions.

  $$L = \frac{\sum_{l=0} 2^{-l}\, \mathrm{MSE}(\mathrm{pool}_l\, h^s, \mathrm{pool}_l\, h^t)}
  {\sum_{l=0} 2^{-l}}$$

  Level 0 is the map itself; each other averages it into n regions an axis.

  Args:
    student_features: float `[B, *positions, C]`, from a `reviewer`, or the like.
    teacher_features: float of the same shape; receives no gradient.
    sizes: n of each level, from fine to coarse. One that is not below the shortest axis of
      positions is left out.
    where: bool `[B]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in squared units of the features: a scalar, or `[B]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ, `where` has not the shape `[B]`, or a size is not positive.

  Example:
    >>> import jax.numpy as jnp
    >>> student = jnp.array([[[1.0], [-1.0]]])
    >>> round(float(hierarchical_context_loss(student, jnp.zeros([1, 2, 1]))), 4)
    0.6667

  Reference:
    Chen et al., Distilling Knowledge via Knowledge Review, 2021, arXiv:2104.09044 (weights and
    sizes as in the authors' code).
  """
  if min(sizes, default=1) < 1:
    raise ValueError(f"sizes must be positive, got {tuple(sizes)}")
  check_same_shape(student_features, teacher_features)
  shape = jnp.shape(student_features)
  core_ndim = len(shape) - 1
  student = visible(student_features, where, core_ndim=core_ndim)
  difference = student - visible(constant(teacher_features), where, core_ndim=core_ndim)
  shortest = min(shape[1:-1], default=1)
  # Averages are linear: the difference of the averages is the average of the difference.
  levels = [difference, *(_averages(difference, n) for n in sizes if n < shortest)]
  weights = [0.5**level for level in range(len(levels))]
  axes = tuple(range(1, len(shape)))
  parts = [w * jnp.mean(x**2, axis=axes) for w, x in zip(weights, levels, strict=True)]
  loss = sum(parts[1:], parts[0]) / sum(weights)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def _flow(first, second, where, support) -> Array:
  check_same_axes(first, second, -1)
  first, real = visible_map(first, where, support)
  second, _ = visible_map(second, where, support)
  flow = jnp.einsum("bpi,bpj->bij", first, second)
  return safe_divide(flow, jnp.broadcast_to(jnp.sum(real, -1)[:, None, None], flow.shape))


def _averages(values: Array, size: int) -> Array:
  """Means over `size` regions of each axis of positions, as even as can be."""
  for axis in range(1, values.ndim - 1):
    length = values.shape[axis]
    if length % size == 0:  # No region shares a position with another.
      shape = (*values.shape[:axis], size, length // size, *values.shape[axis + 1 :])
      values = jnp.mean(values.reshape(shape), axis=axis + 1)
      continue
    pool = np.zeros([length, size], np.float32)
    for i in range(size):
      start, stop = i * length // size, -(-(i + 1) * length // size)
      pool[start:stop, i] = 1 / (stop - start)
    values = jnp.moveaxis(jnp.tensordot(values, pool, axes=(axis, 0)), -1, axis)
  return values
