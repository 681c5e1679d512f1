"""Pointwise ranking distillation: the teacher's best items as weighted or soft positives."""

import jax
import jax.numpy as jnp

from kdjax.losses.common import (
  FLOOR,
  check_same_shape,
  check_temperature,
  constant,
  existing,
  floored,
  mean_over,
  visible,
)
from kdjax.losses.logits import binary_cross_entropy_loss
from kdjax.losses.rank_weights import (
  discrepancy_weights,
  hybrid_weights,
  is_ranked,
  position_weights,
)
from kdjax.reduce import ReduceFn, reduce_loss
from kdjax.types import Array


def ranking_distillation_loss(
  student_scores: Array,
  teacher_ranks: Array,
  *,
  student_ranks: Array | None = None,
  position_scale: float = 1.0,
  discrepancy_scale: float = 0.1,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Ranking distillation (RD): the teacher's best items are positives, weighted by rank.

  $$L = -\sum_i w_i \log \sigma(x_i), \quad w_i = \frac{a_i b_i}{\sum_j a_j b_j}, \quad
  a_i \propto e^{-r^t_i / \lambda}, \quad b_i = \tanh(\max(\mu (r^s_i - r^t_i), 0))$$

  a is the importance of the position, b of what the student still ranks too low. Without the
  student's ranks (the first epochs, in the paper) w = a.

  Args:
    student_scores: float `[..., C]`, of the teacher's best items.
    teacher_ranks: int `[..., C]`, 0 the best; `UNRANKED` for items that are not taught.
    student_ranks: int `[..., C]` of the same items in the whole catalogue, 0 the best (see
      `estimate_ranks`); None for w = a. Receives no gradient.
    position_scale: lambda > 0, in ranks.
    discrepancy_scale: mu > 0, the inverse of the number of ranks that matter.
    support: bool `[C]` or `[..., C]`, the items that exist.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats: a scalar, or `[...]` for `reduce_fn=None`. 0 where no item has a weight.

  Raises:
    ValueError: if the shapes differ, `where` has not the shape `[...]`, or a scale is not positive.

  Example:
    >>> import jax.numpy as jnp
    >>> scores, ranks = jnp.array([[2.0, 0.0]]), jnp.array([[0, 1]])
    >>> round(float(ranking_distillation_loss(scores, ranks)), 4)
    0.2792

  Reference:
    Tang, Wang, Ranking Distillation: Learning Compact Ranking Models With High Performance for
    Recommender System, KDD 2018, arXiv:1809.07428 (the product normalised as in the paper; their
    code does so for a only).
  """
  check_same_shape(student_scores, teacher_ranks)
  weights = position_weights(teacher_ranks, scale=position_scale, support=support)
  if student_ranks is not None:
    check_same_shape(student_ranks, teacher_ranks)
    gap = discrepancy_weights(student_ranks, teacher_ranks, scale=discrepancy_scale)
    weights = hybrid_weights(weights, gap)
  student = floored(visible(student_scores, where, core_ndim=1), support)
  loss = jnp.sum(weights * jax.nn.softplus(-student), axis=-1)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def collaborative_loss(
  student_scores: Array,
  teacher_scores: Array,
  *,
  temperature: float = 1.0,
  bias: float = 0.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Collaborative distillation (CD): cross-entropy with softened clicks on sampled items.

  $$L = -\frac{1}{|S|} \sum_{i \in S} q_i \log \sigma(x^s_i) + (1 - q_i) \log(1 - \sigma(x^s_i)),
  \quad q_i = \sigma\left(\frac{x^t_i + b}{T}\right)$$

  Which items to compare is half of the method. Guided by the teacher: `sample_ranked` on its best
  ids with `position_weights`; guided by the student: the same on the student's best ids. For
  bidirectional distillation (BD) b = 0, and the weights are `discrepancy_weights`; the way back is
  this loss with student and teacher swapped, and `reverse_discrepancy_weights`.

  Args:
    student_scores: float `[..., C]`, of C sampled items, logits of a click.
    teacher_scores: float `[..., C]`, of the same items; receives no gradient.
    temperature: T > 0, of the teacher alone.
    bias: b, raises or lowers what the teacher says of items without feedback.
    support: bool `[C]` or `[..., C]`, the items that were drawn.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats: a scalar, or `[...]` for `reduce_fn=None`. 0 where no item is left.

  Raises:
    ValueError: if the shapes differ, `where` has not the shape `[...]`, or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> round(float(collaborative_loss(jnp.array([[1.0]]), jnp.array([[2.0]]), temperature=2.0)), 4)
    0.5822

  Reference:
    Lee et al., Collaborative Distillation for Top-N Recommendation, ICDM 2019, arXiv:1911.05276;
    Kweon, Kang, Yu, Bidirectional Distillation for Top-K Recommender System, WWW 2021,
    arXiv:2106.02870 (the teacher alone is softened, as in their code; the mean over items is ours).
  """
  check_same_shape(student_scores, teacher_scores)
  check_temperature(temperature)
  student = floored(visible(student_scores, where, core_ndim=1), support)
  teacher = floored(visible(constant(teacher_scores), where, core_ndim=1), support)
  clicks = jax.nn.sigmoid((teacher + bias) / temperature)
  loss = binary_cross_entropy_loss(student, clicks, reduce_fn=None)
  loss = mean_over(loss, existing(support, loss.shape))
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def importance_ranking_loss(
  student_scores: Array,
  teacher_ranks: Array,
  teacher_distances: Array,
  agreed: Array,
  *,
  position_weight: float = 0.3,
  confidence_weight: float = 0.5,
  agreement_weight: float = 0.1,
  position_scale: float = 1.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Importance-aware ranking distillation (DLLM2Rec), for teachers that are not always right.

  $$L = -\sum_i (\gamma_p w^p_i + \gamma_c w^c_i + \gamma_o w^o_i) \log \sigma(x_i), \quad
  w^p_i \propto e^{-r_i / \beta}, \; w^c_i \propto e^{-d_i}, \; w^o_i = [i \in O^s \cap O^t]$$

  Unlike `ranking_distillation_loss`, it stresses what student and teacher agree on.

  Args:
    student_scores: float `[..., C]`, of the teacher's best items.
    teacher_ranks: int `[..., C]`, 0 the best; `UNRANKED` for items that are not taught.
    teacher_distances: float `[..., C]`, how far what the teacher generated lies from each item: the
      less, the surer it is. Receives no gradient.
    agreed: bool `[..., C]`, whether the student recommends the item as well: `both_recommend`.
    position_weight: gamma_p >= 0.
    confidence_weight: gamma_c >= 0.
    agreement_weight: gamma_o >= 0.
    position_scale: beta > 0, in ranks.
    support: bool `[C]` or `[..., C]`, the items that exist.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in weighted nats: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ, `where` has not the shape `[...]`, `position_scale` is not
      positive or a weight is negative.

  Example:
    >>> import jax.numpy as jnp
    >>> teacher_ranks, distances = jnp.array([[0, 1]]), jnp.array([[0.5, 0.5]])
    >>> args = jnp.zeros([1, 2]), teacher_ranks, distances, jnp.array([[True, False]])
    >>> round(float(importance_ranking_loss(*args)), 4)
    0.6238

  Reference:
    Cui et al., Distillation Matters: Empowering Sequential Recommenders to Match the Performance of
    Large Language Models, RecSys 2024, arXiv:2405.00338. The three are added as they print it;
    their code divides by the sum, and repeats a negative sample in each term.
  """
  for other in (teacher_ranks, teacher_distances, agreed):
    check_same_shape(student_scores, other)
  parts = {
    "position_weight": position_weight,
    "confidence_weight": confidence_weight,
    "agreement_weight": agreement_weight,
  }
  for name, weight in parts.items():
    if isinstance(weight, int | float) and weight < 0:
      raise ValueError(f"{name} must not be negative, got {weight}")
  position = position_weights(teacher_ranks, scale=position_scale, support=support)
  taught = is_ranked(teacher_ranks, support)
  distances = visible(constant(teacher_distances), where, core_ndim=1)
  confidence = jax.nn.softmax(jnp.where(taught, -distances, FLOOR), axis=-1)
  others = confidence_weight * confidence + agreement_weight * jnp.asarray(agreed, jnp.float32)
  weights = position_weight * position + jnp.where(taught, others, 0.0)
  student = floored(visible(student_scores, where, core_ndim=1), support)
  loss = jnp.sum(weights * jax.nn.softplus(-student), axis=-1)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)
