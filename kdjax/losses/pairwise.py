"""Losses on pairs of candidates: soft, hinge, weighted by NDCG, and within strata."""

import jax
import jax.numpy as jnp

from kdjax.losses.common import (
  check_same_shape,
  check_temperature,
  constant,
  existing,
  floored,
  mean_over,
  nan_where,
  visible,
)
from kdjax.losses.logits import binary_cross_entropy_loss
from kdjax.losses.rank_weights import candidate_ranks
from kdjax.reduce import ReduceFn, reduce_loss, safe_divide
from kdjax.types import Array


def ranknet_loss(
  student_scores: Array,
  teacher_scores: Array,
  *,
  temperature: float = 1.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Cross-entropy of pairwise preferences with the teacher's, times temperature**2.

  $$L = -\frac{T^2}{|P|} \sum_{(i, j) \in P} \bar p_{ij} \log p_{ij} +
  (1 - \bar p_{ij}) \log(1 - p_{ij}), \quad p_{ij} = \sigma\left(\frac{x^s_i - x^s_j}{T}\right),
  \; \bar p_{ij} = \sigma\left(\frac{x^t_i - x^t_j}{T}\right)$$

  P holds the pairs of candidates that exist. The teacher's probabilities say how strongly it
  prefers one over the other; hard preferences are the limit of a teacher scaled up.

  Args:
    student_scores: float `[..., C]`, of C candidates.
    teacher_scores: float `[..., C]`, of the same candidates; receives no gradient.
    temperature: T > 0, shared by both.
    support: bool `[C]` or `[..., C]`, the candidates that exist.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats times T**2: a scalar, or `[...]` for `reduce_fn=None`. 0 where no pair is left.

  Raises:
    ValueError: if the shapes differ, `where` has not the shape `[...]`, or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> round(float(ranknet_loss(jnp.array([[1.0, 0.0]]), jnp.array([[9.0, 0.0]]))), 4)
    0.3134

  Reference:
    Burges et al., Learning to Rank using Gradient Descent, ICML 2005 (their target probabilities;
    here from the teacher's scores).
  """
  check_same_shape(student_scores, teacher_scores)
  check_temperature(temperature)
  student = floored(visible(student_scores, where, core_ndim=1), support) / temperature
  teacher = floored(visible(constant(teacher_scores), where, core_ndim=1), support) / temperature
  target = jax.nn.sigmoid(_differences(teacher))
  loss = binary_cross_entropy_loss(_differences(student), target, reduce_fn=None)
  others = jnp.broadcast_to(~jnp.eye(loss.shape[-1], dtype=bool), loss.shape)
  loss = _mean_over_pairs(loss, _both(existing(support, student.shape)) & others)
  return reduce_loss(temperature**2 * loss, where=where, reduce_fn=reduce_fn)


def pairwise_hinge_loss(
  student_scores: Array,
  teacher_scores: Array,
  *,
  margin: float = 1.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Hinge on every pair that the teacher orders: the student should keep a margin.

  $$L = \frac{1}{|P|} \sum_{(i, j) \in P} \max(0, m - (x^s_i - x^s_j)), \quad
  P = \{(i, j): x^t_i > x^t_j\}$$

  Args:
    student_scores: float `[..., C]`, of C candidates.
    teacher_scores: float `[..., C]` of the same candidates (or relevance labels); no gradient.
    margin: m >= 0.
    support: bool `[C]` or `[..., C]`, the candidates that exist.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in scores: a scalar, or `[...]` for `reduce_fn=None`. 0 where no pair is ordered.

  Raises:
    ValueError: if the shapes differ, `where` has not the shape `[...]`, or m < 0.

  Example:
    >>> import jax.numpy as jnp
    >>> float(pairwise_hinge_loss(jnp.array([[0.5, 0.0]]), jnp.array([[2.0, 1.0]])))
    0.5

  Reference:
    Herbrich, Graepel, Obermayer, Large Margin Rank Boundaries for Ordinal Regression, 2000;
    Joachims, Optimizing Search Engines using Clickthrough Data, KDD 2002 (the mean over pairs in
    place of their sum).
  """
  check_same_shape(student_scores, teacher_scores)
  if isinstance(margin, int | float) and margin < 0:
    raise ValueError(f"margin must not be negative, got {margin}")
  student = floored(visible(student_scores, where, core_ndim=1), support)
  teacher = floored(visible(constant(teacher_scores), where, core_ndim=1), support)
  ordered = _above(teacher) & _both(existing(support, student.shape))
  loss = _mean_over_pairs(jax.nn.relu(margin - _differences(student)), ordered)
  loss = nan_where(jnp.any(jnp.isnan(teacher), axis=-1), loss)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def lambda_loss(
  student_scores: Array,
  teacher_gains: Array,
  *,
  swap_weight: float = 1.0,
  gap_weight: float = 0.0,
  k: int | None = None,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Pairwise logistic loss, each pair weighted by what it matters to NDCG.

  $$L = \sum_{G_i > G_j} (w_\rho \rho_{ij} + w_\delta \delta_{ij}) \frac{G_i - G_j}{\mathrm{maxDCG}}
  \log(1 + e^{-(x^s_i - x^s_j)}), \quad
  \rho_{ij} = \left|\frac{1}{D(r_i)} - \frac{1}{D(r_j)}\right|, \;
  \delta_{ij} = \left|\frac{1}{D(|r_i - r_j|)} - \frac{1}{D(|r_i - r_j| + 1)}\right|$$

  $D(r) = \log_2(1 + r)$ and r is the rank by the student, which receives no gradient through it.
  $\rho$ is the change of NDCG when the two are swapped (LambdaRank), $\delta$ that of a bound on it
  (NDCG-Loss2). Gains come from the teacher: relevances, say, or $1 / D$ of its ranks.

  Args:
    student_scores: float `[..., C]`, of C candidates.
    teacher_gains: float `[..., C]`, not negative, of the same candidates; receives no gradient.
    swap_weight: w_rho >= 0.
    gap_weight: w_delta >= 0; NDCG-Loss2 is (0, 1), NDCG-Loss2++ is (1, 10).
    k: ranks that count, as in NDCG@k; None for all. Only for `gap_weight=0`.
    support: bool `[C]` or `[..., C]`, the candidates that exist.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in weighted nats a list: a scalar, or `[...]` for `reduce_fn=None`. 0 where all gains
    are equal.

  Raises:
    ValueError: if the shapes differ, `where` has not the shape `[...]`, a weight is negative, k < 1
      or k comes with a `gap_weight`.

  Example:
    >>> import jax.numpy as jnp
    >>> round(float(lambda_loss(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]))), 4)
    0.4847

  Reference:
    Burges, Ragno, Le, Learning to Rank with Nonsmooth Cost Functions, NeurIPS 2006; Wang et al.,
    The LambdaLoss Framework for Ranking Metric Optimization, CIKM 2018 (in nats, not bits).
  """
  check_same_shape(student_scores, teacher_gains)
  _check_lambda_options(swap_weight, gap_weight, k)
  student = floored(visible(student_scores, where, core_ndim=1), support)
  gains = visible(constant(teacher_gains), where, core_ndim=1)
  real = existing(support, student.shape)
  gains = jnp.where(real, gains, 0.0)
  ranks = candidate_ranks(constant(student), support=support)
  discounts = jnp.where(real, _discount(ranks + 1, k), 0.0)
  ideal = -jnp.sort(-gains, axis=-1)
  places = jnp.broadcast_to(jnp.arange(1, real.shape[-1] + 1), real.shape)
  max_dcg = jnp.sum(ideal * _discount(places, k), axis=-1)
  gap = jnp.abs(_differences(ranks))
  weights = swap_weight * jnp.abs(_differences(discounts))
  # Ranks are equal on the diagonal only, which is no pair; D(0) would divide by 0 there.
  bound = _discount(jnp.maximum(gap, 1)) - _discount(gap + 1)
  weights = (weights + gap_weight * bound) * _differences(gains)
  ordered = _above(gains) & _both(real)
  pairs = jnp.where(ordered, weights * jax.nn.softplus(-_differences(student)), 0.0)
  loss = safe_divide(jnp.sum(pairs, axis=(-2, -1)), max_dcg)
  loss = nan_where(jnp.any(jnp.isnan(gains), axis=-1), loss)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def stratified_pair_loss(
  student_upper_scores: Array,
  student_lower_scores: Array,
  *,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Unbiased distillation (UnKD): order pairs that the teacher ordered among equals in popularity.

  $$L = -\frac{1}{|S|} \sum_{(i, j) \in S} \log \sigma(x_i - x_j)$$

  Every pair comes from one popularity group, so that the teacher's liking of popular items, which
  is the same on both sides, is not handed on. `sample_pairs` draws S: in each group the teacher
  ranks i above j. The teacher enters by this choice alone.

  Args:
    student_upper_scores: float `[..., P]`, of the item i of each pair.
    student_lower_scores: float `[..., P]`, of the item j of each pair.
    support: bool `[P]` or `[..., P]`, the pairs that count.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats: a scalar, or `[...]` for `reduce_fn=None`. 0 where no pair is left.

  Raises:
    ValueError: if the shapes differ, or `where` has not the shape `[...]`.

  Example:
    >>> import jax.numpy as jnp
    >>> round(float(stratified_pair_loss(jnp.array([[1.0]]), jnp.array([[0.0]]))), 4)
    0.3133

  Reference:
    Chen et al., Unbiased Knowledge Distillation for Recommendation, WSDM 2023, arXiv:2211.14729
    (their sum over the pairs of a user, divided by how many there are).
  """
  check_same_shape(student_upper_scores, student_lower_scores)
  upper = floored(visible(student_upper_scores, where, core_ndim=1), support)
  lower = floored(visible(student_lower_scores, where, core_ndim=1), support)
  loss = mean_over(jax.nn.softplus(lower - upper), existing(support, upper.shape))
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def _check_lambda_options(swap_weight, gap_weight, k) -> None:
  for name, weight in (("swap_weight", swap_weight), ("gap_weight", gap_weight)):
    if isinstance(weight, int | float) and weight < 0:
      raise ValueError(f"{name} must not be negative, got {weight}")
  if k is not None and k < 1:
    raise ValueError(f"k must be positive, got {k}")
  if k is not None and not (isinstance(gap_weight, int | float) and gap_weight == 0):
    raise ValueError(f"k is defined for gap_weight=0 only, got k={k} and gap_weight={gap_weight}")


def _discount(ranks: Array, k: int | None = None) -> Array:
  """1 / log2(1 + rank) of ranks that count from 1; 0 beyond k."""
  ranks = ranks.astype(jnp.float32)
  discount = 1.0 / jnp.log2(1.0 + jnp.maximum(ranks, 1.0))
  return discount if k is None else jnp.where(ranks <= k, discount, 0.0)


def _differences(values: Array) -> Array:
  """`values[..., i] - values[..., j]`: `[..., C]` to `[..., C, C]`."""
  return values[..., :, None] - values[..., None, :]


def _above(values: Array) -> Array:
  return values[..., :, None] > values[..., None, :]


def _both(real: Array) -> Array:
  return real[..., :, None] & real[..., None, :]


def _mean_over_pairs(values: Array, real: Array) -> Array:
  flat = (*values.shape[:-2], -1)
  return mean_over(values.reshape(flat), real.reshape(flat))
