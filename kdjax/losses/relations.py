"""Losses on relations: how the examples of a batch stand to each other.

A masked example is nobody's partner. Each loss gives one value an example, whose mean over the
batch is the published loss. Features are `[B, ...]`, and all axes but the first are one vector.
"""

import math

import jax.numpy as jnp

from kdjax.losses.common import check_same_axes, constant, mean_over, norm, unit, visible
from kdjax.reduce import ReduceFn, reduce_loss, safe_divide
from kdjax.types import Array

DIRECT = 2**24  # Differences of all pairs up to this many numbers are taken one by one.


def rkd_distance_loss(
  student_features: Array,
  teacher_features: Array,
  *,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Relational distillation of distances, in units of their mean.

  $$L_i = \frac{1}{B - 1} \sum_{j \ne i} l(\psi^s_{i j} - \psi^t_{i j}), \quad
  \psi_{i j} = \frac{\lVert h_i - h_j \rVert}{\mu}, \quad
  \mu = \frac{1}{B (B - 1)} \sum_{i \ne j} \lVert h_i - h_j \rVert$$

  with the Huber loss $l(x) = x^2 / 2$ up to $|x| = 1$, $|x| - 1/2$ beyond.

  Args:
    student_features: float `[B, ...]`.
    teacher_features: float `[B, ...]`, of any width; receives no gradient.
    where: bool `[B]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32: a scalar, or `[B]` for `reduce_fn=None`. 0 for an example without partners.

  Raises:
    ValueError: if the numbers of examples differ, or `where` has not the shape `[B]`.

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0], [1.0], [3.0]])
    >>> round(float(rkd_distance_loss(student, teacher)), 4)
    0.0208

  Reference:
    Park et al., Relational Knowledge Distillation, 2019, arXiv:1904.05068 (their sum over pairs
    divided by how many they are; some code counts the pairs i = j too, a factor (B - 1) / B).
  """
  students, teachers, seen = _vectors(student_features, teacher_features, where)
  pairs = _pairs(seen)

  def psi(vectors: Array) -> Array:
    distances = _distances(vectors, seen)
    mean = safe_divide(jnp.sum(jnp.where(pairs, distances, 0.0)), jnp.sum(pairs))
    return safe_divide(distances, jnp.broadcast_to(mean, distances.shape))

  loss = mean_over(_huber(psi(students) - psi(teachers)), pairs)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def rkd_angle_loss(
  student_features: Array,
  teacher_features: Array,
  *,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Relational distillation of angles: the cosine at each example between each two others.

  $$L_j = \frac{1}{(B - 1)(B - 2)} \sum_{i \ne j} \sum_{k \ne i, j}
  l(\psi^s_{i j k} - \psi^t_{i j k}), \quad \psi_{i j k} = e_{i j} \cdot e_{k j}, \quad
  e_{i j} = \frac{h_i - h_j}{\lVert h_i - h_j \rVert}$$

  with the Huber loss $l(x) = x^2 / 2$ up to $|x| = 1$, $|x| - 1/2$ beyond. Needs memory for
  `B * B * B` and `B * B * d` numbers.

  Args:
    student_features: float `[B, ...]`.
    teacher_features: float `[B, ...]`, of any width; receives no gradient.
    where: bool `[B]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32: a scalar, or `[B]` for `reduce_fn=None`. 0 for an example with less than two partners.

  Raises:
    ValueError: if the numbers of examples differ, or `where` has not the shape `[B]`.

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[1.0], [0.0], [2.0]])
    >>> round(float(rkd_angle_loss(student, teacher)), 4)
    1.0

  Reference:
    Park et al., Relational Knowledge Distillation, 2019, arXiv:1904.05068 (their sum over triplets
    of different examples divided by how many they are; some code divides by B**3).
  """
  students, teachers, seen = _vectors(student_features, teacher_features, where)
  pairs = _pairs(seen)

  def psi(vectors: Array) -> Array:
    edges = unit(vectors[:, None] - vectors[None])  # [i, j]: from j to i.
    return jnp.einsum("ijd,kjd->jik", edges, edges)

  triplets = pairs[:, :, None] & pairs[:, None, :] & pairs[None]
  loss = _huber(psi(students) - psi(teachers)).reshape(len(seen), -1)
  loss = mean_over(loss, triplets.reshape(loss.shape))
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def similarity_preserving_loss(
  student_features: Array,
  teacher_features: Array,
  *,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Pairs that are similar to the teacher should be similar to the student.

  $$L_i = \frac{1}{B} \lVert g^s_i - g^t_i \rVert^2, \quad
  g_i = \frac{(h_i \cdot h_j)_j}{\lVert (h_i \cdot h_j)_j \rVert}$$

  Args:
    student_features: float `[B, ...]`.
    teacher_features: float `[B, ...]`, of any width; receives no gradient.
    where: bool `[B]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32: a scalar, or `[B]` for `reduce_fn=None`.

  Raises:
    ValueError: if the numbers of examples differ, or `where` has not the shape `[B]`.

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.eye(2), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    >>> round(float(similarity_preserving_loss(student, teacher)), 4)
    0.2929

  Reference:
    Tung, Mori, Similarity-Preserving Knowledge Distillation, 2019, arXiv:1907.09682 (rows of
    Euclidean length 1; some code divides them by their L1 norm instead).
  """
  students, teachers, seen = _vectors(student_features, teacher_features, where)
  difference = unit(students @ students.T) - unit(teachers @ teachers.T)
  loss = mean_over(difference**2, jnp.broadcast_to(seen[None], difference.shape))
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def correlation_congruence_loss(
  student_features: Array,
  teacher_features: Array,
  *,
  sharpness: float = 0.4,
  order: int = 2,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Correlations between examples, by a Gaussian kernel expanded in powers of the cosine.

  $$L_i = \frac{1}{B} \sum_j (k^s_{i j} - k^t_{i j})^2, \quad
  k_{i j} = e^{-2 \gamma} \sum_{p=0}^P \frac{(2 \gamma)^p}{p!} \cos(h_i, h_j)^p
  \approx e^{-\gamma \lVert \hat h_i - \hat h_j \rVert^2}$$

  Args:
    student_features: float `[B, ...]`.
    teacher_features: float `[B, ...]`, of any width; receives no gradient.
    sharpness: gamma > 0 of the Gaussian.
    order: P >= 1, the highest power.
    where: bool `[B]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32: a scalar, or `[B]` for `reduce_fn=None`.

  Raises:
    ValueError: if the numbers of examples differ, `where` has not the shape `[B]`, or gamma or P
      is out of range.

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.eye(2), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    >>> round(float(correlation_congruence_loss(student, teacher)), 4)
    0.1266

  Reference:
    Peng et al., Correlation Congruence for Knowledge Distillation, 2019, arXiv:1904.01802 (gamma
    and P are theirs).
  """
  if isinstance(sharpness, int | float) and not sharpness > 0:
    raise ValueError(f"sharpness must be positive, got {sharpness}")
  if order < 1:
    raise ValueError(f"order must be at least 1, got {order}")
  students, teachers, seen = _vectors(student_features, teacher_features, where)

  def kernel(vectors: Array) -> Array:
    cosines = _cosines(vectors)
    terms = [(2 * sharpness) ** p / math.factorial(p) * cosines**p for p in range(1, order + 1)]
    return jnp.exp(-2.0 * sharpness) * (1.0 + sum(terms))

  difference = kernel(students) - kernel(teachers)
  loss = mean_over(difference**2, jnp.broadcast_to(seen[None], difference.shape))
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def probabilistic_transfer_loss(
  student_features: Array,
  teacher_features: Array,
  *,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""KL(teacher || student) of the probability of picking each other example as a neighbour.

  $$L_i = \sum_{j \ne i} p^t_{j | i} \log \frac{p^t_{j | i}}{p^s_{j | i}}, \quad
  p_{j | i} = \frac{k_{i j}}{\sum_{m \ne i} k_{i m}}, \quad k_{i j} = \frac{1 + \cos(h_i, h_j)}{2}$$

  Probabilities below 1e-7 count as 1e-7 under the logarithm.

  Args:
    student_features: float `[B, ...]`.
    teacher_features: float `[B, ...]`, of any width; receives no gradient.
    where: bool `[B]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats: a scalar, or `[B]` for `reduce_fn=None`.

  Raises:
    ValueError: if the numbers of examples differ, or `where` has not the shape `[B]`.

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.eye(3), jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> round(float(probabilistic_transfer_loss(student, teacher)), 4)
    0.0378

  Reference:
    Passalis, Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, 2018,
    arXiv:1803.10837 (their sum over i is a mean here; the authors' code lets j = i take part and
    divides by B**2).
  """
  students, teachers, seen = _vectors(student_features, teacher_features, where)
  pairs = _pairs(seen)

  def probabilities(vectors: Array) -> Array:
    alike = jnp.where(pairs, jnp.maximum(0.5 + 0.5 * _cosines(vectors), 0.0), 0.0)
    total = jnp.sum(alike, axis=-1, keepdims=True)
    return safe_divide(alike, jnp.broadcast_to(total, alike.shape))

  p_s, p_t = probabilities(students), probabilities(teachers)
  log_s, log_t = (jnp.log(jnp.maximum(p, 1e-7)) for p in (p_s, p_t))
  return reduce_loss(jnp.sum(p_t * (log_t - log_s), axis=-1), where=where, reduce_fn=reduce_fn)


def linear_cka(
  student_features: Array, teacher_features: Array, *, where: Array | None = None
) -> Array:
  r"""Linear centred kernel alignment of two representations of the same examples.

  $$\mathrm{CKA} = \frac{\lVert X^\top Y \rVert_F^2}
  {\lVert X^\top X \rVert_F \lVert Y^\top Y \rVert_F}$$

  with the columns of X and Y centred over the examples. It is 1 for representations that differ by
  a rotation, a shift and a common scale.

  Args:
    student_features: float `[B, ...]`.
    teacher_features: float `[B, ...]`, of any width; receives no gradient.
    where: bool `[B]`, the examples that count.

  Returns:
    float32 scalar in [0, 1]; 0 where a side does not vary.

  Raises:
    ValueError: if the numbers of examples differ, or `where` has not the shape `[B]`.

  Example:
    >>> import jax.numpy as jnp
    >>> x = jnp.array([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
    >>> round(float(linear_cka(x, 3.0 - 2.0 * x)), 4)
    1.0

  Reference:
    Kornblith et al., Similarity of Neural Network Representations Revisited, 2019,
    arXiv:1905.00414.
  """
  students, teachers, _ = _grams(student_features, teacher_features, where)
  return jnp.sum(students * teachers)


def cka_loss(
  student_features: Array,
  teacher_features: Array,
  *,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""One minus the linear centred kernel alignment: structure, whatever the rotation and scale.

  $$L_i = \frac{B}{2} \sum_j \left( \frac{K^s_{i j}}{\lVert K^s \rVert_F} -
  \frac{K^t_{i j}}{\lVert K^t \rVert_F} \right)^2, \quad
  K_{i j} = (h_i - \bar h) \cdot (h_j - \bar h)$$

  The mean over the batch is `1 - linear_cka`, without its rounding near 0.

  Args:
    student_features: float `[B, ...]`.
    teacher_features: float `[B, ...]`, of any width; receives no gradient.
    where: bool `[B]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32: a scalar in [0, 1] for `jnp.mean`, or `[B]` for `reduce_fn=None`. Where a side does
    not vary, the mean is 1.

  Raises:
    ValueError: if the numbers of examples differ, or `where` has not the shape `[B]`.

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[1.0], [-1.0], [0.0]]), jnp.array([[1.0], [1.0], [-2.0]])
    >>> float(cka_loss(student, teacher))
    1.0

  Reference:
    Kornblith et al., Similarity of Neural Network Representations Revisited, 2019,
    arXiv:1905.00414; as a loss of distillation: Saha et al., Distilling Representational Similarity
    using Centered Kernel Alignment (CKA), BMVC 2022.
  """
  *grams, count = _grams(student_features, teacher_features, where)
  missing = sum(jnp.all(gram == 0).astype(jnp.float32) for gram in grams)
  loss = 0.5 * (count * jnp.sum((grams[0] - grams[1]) ** 2, axis=-1) + missing)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def _vectors(student, teacher, where) -> tuple[Array, Array, Array]:
  """Both sides as `[B, d]`, 0 where masked, and which examples count, `[B]`."""
  check_same_axes(student, teacher, 1)
  rows = []
  for features in (student, constant(teacher)):
    values = visible(features, where, core_ndim=jnp.ndim(features) - 1)
    rows.append(values.reshape(len(values), math.prod(values.shape[1:])))
  return rows[0], rows[1], jnp.ones(len(rows[0]), bool) if where is None else jnp.asarray(where)


def _pairs(seen: Array) -> Array:
  """Pairs of different examples that both count: bool `[B, B]`."""
  return seen[:, None] & seen[None, :] & ~jnp.eye(len(seen), dtype=bool)


def _distances(vectors: Array, seen: Array) -> Array:
  """Euclidean distances `[B, B]`; equal vectors have none, and no gradient."""
  count, width = vectors.shape
  if count * count * width <= DIRECT:
    return norm(vectors[:, None] - vectors[None])
  # From products, which need no [B, B, d]; of centred vectors, so that less cancels.
  mean = safe_divide(jnp.sum(vectors, axis=0, keepdims=True), jnp.sum(seen))
  centred = jnp.where(seen[:, None], vectors - mean, 0.0)
  lengths = jnp.sum(centred**2, axis=-1)
  lengths = lengths[:, None] + lengths[None]
  squares = lengths - 2 * jnp.matmul(centred, centred.T, precision="highest")
  equal = squares <= 1e-6 * lengths  # What rounding leaves of 0.
  return jnp.where(equal, 0.0, jnp.sqrt(jnp.where(equal, 1.0, squares)))


def _cosines(vectors: Array) -> Array:
  directions = unit(vectors)
  return directions @ directions.T


def _huber(x: Array) -> Array:
  size = jnp.abs(x)
  return jnp.where(size <= 1.0, 0.5 * x**2, size - 0.5)


def _grams(student, teacher, where) -> tuple[Array, Array, Array]:
  """Both centred Gram matrices over their norm, `[B, B]`, and how many examples count."""
  students, teachers, seen = _vectors(student, teacher, where)
  count = jnp.sum(seen)

  def gram(vectors: Array) -> Array:
    mean = safe_divide(jnp.sum(vectors, axis=0, keepdims=True), count)
    centred = jnp.where(seen[:, None], vectors - mean, 0.0)
    return unit(centred @ centred.T, axis=(0, 1))

  return gram(students), gram(teachers), count
