"""Ranks, and the weights that recommenders' distillation draws from them."""

import jax
import jax.numpy as jnp

from kdjax.losses.common import constant, existing, floored
from kdjax.reduce import safe_divide
from kdjax.types import Array

UNRANKED = -1  # The rank of a candidate without one: it counts only as below all that have one.


def candidate_ranks(scores: Array, *, support: Array | None = None) -> Array:
  """Rank of every candidate by its score: 0 for the highest, ties in the order of the list.

  Args:
    scores: float `[..., C]`.
    support: bool `[C]` or `[..., C]`, the candidates that exist.

  Returns:
    int32 `[..., C]`, a permutation of the first numbers; `UNRANKED` outside of the support.

  Example:
    >>> import jax.numpy as jnp
    >>> candidate_ranks(jnp.array([0.1, 0.9, 0.5])).tolist()
    [2, 0, 1]
  """
  scores = jnp.asarray(constant(scores), jnp.float32)
  real = existing(support, scores.shape)
  order = jnp.argsort(jnp.where(real, -floored(scores), jnp.inf), axis=-1)
  return jnp.where(real, jnp.argsort(order, axis=-1), UNRANKED).astype(jnp.int32)


def estimate_ranks(scores: Array, sampled_scores: Array, *, num_items: int) -> Array:
  r"""Ranks in a whole catalogue, estimated from the scores of a uniform sample of it.

  $$\hat r_i = \left\lfloor \frac{V - 1}{E} \left|\{e : x_e > x_i\}\right| \right\rfloor$$

  Args:
    scores: float `[..., C]`, of the candidates, by the student.
    sampled_scores: float `[..., E]`, of E items drawn uniformly, by the same model.
    num_items: V, the size of the catalogue.

  Returns:
    int32 `[..., C]` in `[0, V)`, 0 the best.

  Example:
    >>> import jax.numpy as jnp
    >>> scores, sampled_scores = jnp.array([5.0, 0.5]), jnp.array([0.0, 1.0, 2.0, 3.0])
    >>> estimate_ranks(scores, sampled_scores, num_items=101).tolist()
    [0, 75]

  Reference:
    Tang, Wang, Ranking Distillation, KDD 2018, arXiv:1809.07428 (their rank counts from 1).
  """
  scores, sampled = constant((jnp.asarray(scores), jnp.asarray(sampled_scores)))
  size = sampled.shape[-1]
  better = jnp.sum(sampled[..., None, :] > scores[..., :, None], axis=-1, dtype=jnp.int32)
  # In integers, for a float32 would round; in two parts, for V * E overflows an int32.
  whole, rest = divmod(num_items - 1, size)
  return whole * better + rest * better // size


def position_weights(
  ranks: Array, *, scale: float | Array = 10.0, support: Array | None = None
) -> Array:
  r"""Weights that fall off with the teacher's rank and sum to 1.

  $$w_i = \frac{e^{-r_i / \lambda}}{\sum_j e^{-r_j / \lambda}}$$

  Args:
    ranks: int `[..., C]`, 0 the best; negative ones (`UNRANKED`) weigh 0.
    scale: lambda > 0, the ranks after which a weight has fallen to 1/e.
    support: bool `[C]` or `[..., C]`, the candidates that exist.

  Returns:
    float32 `[..., C]`; all 0 where no candidate is ranked.

  Raises:
    ValueError: if `scale` is not positive.

  Example:
    >>> import jax.numpy as jnp
    >>> weights = position_weights(jnp.array([0, 1, UNRANKED]), scale=1.0)
    >>> [round(float(w), 4) for w in weights]
    [0.7311, 0.2689, 0.0]

  Reference:
    Tang, Wang, Ranking Distillation, KDD 2018, arXiv:1809.07428 (importance of the position).
  """
  _check_positive(scale)
  ranks = jnp.asarray(ranks)
  ranked = is_ranked(ranks, support)
  weights = jax.nn.softmax(floored(-ranks.astype(jnp.float32) / scale, ranked), axis=-1)
  return jnp.where(ranked, weights, 0.0)


def discrepancy_weights(
  student_ranks: Array, teacher_ranks: Array, *, scale: float | Array = 0.01
) -> Array:
  r"""Weights of the items that the student ranks lower than the teacher does.

  $$w_i = \tanh(\max(\epsilon (r^s_i - r^t_i), 0))$$

  With the arguments swapped, those of the items that the student ranks too high.

  Args:
    student_ranks: int or float `[..., C]`, 0 the best.
    teacher_ranks: int or float `[..., C]` of the same items, 0 the best.
    scale: epsilon > 0, the inverse of the number of ranks that matter.

  Returns:
    float32 `[..., C]` in [0, 1), without gradient; 0 where either has no rank.

  Raises:
    ValueError: if `scale` is not positive.

  Example:
    >>> import jax.numpy as jnp
    >>> weights = discrepancy_weights(jnp.array([5, 0]), jnp.array([0, 5]), scale=0.1)
    >>> [round(float(w), 4) for w in weights]
    [0.4621, 0.0]

  Reference:
    Tang, Wang, Ranking Distillation, KDD 2018, arXiv:1809.07428 (dynamic importance); Kweon, Kang,
    Yu, Bidirectional Distillation for Top-K Recommender System, WWW 2021, arXiv:2106.02870 (what
    the teacher teaches; the notebook they published counts ranks from the bottom, and so samples
    the other side); Lee, Kim, Dual Correction Strategy, CIKM 2021, arXiv:2109.03459.
  """
  _check_positive(scale)
  gap, ranked = _rank_gap(student_ranks, teacher_ranks)
  return jnp.where(ranked, jnp.tanh(jnp.maximum(scale * gap, 0.0)), 0.0)


def reverse_discrepancy_weights(
  student_ranks: Array, teacher_ranks: Array, *, scale: float | Array = 1e-4
) -> Array:
  r"""Weights of the items that a teacher should learn from its student.

  $$w_i \propto e^{\epsilon (r^t_i - r^s_i)}$$

  Softer than `discrepancy_weights`: the teacher is the better one, so that no item is excluded and
  none is certain.

  Args:
    student_ranks: int or float `[..., C]`, 0 the best.
    teacher_ranks: int or float `[..., C]` of the same items, 0 the best.
    scale: epsilon > 0, the inverse of the number of ranks that matter.

  Returns:
    float32 `[..., C]`, without gradient, summing to 1 over the items that both rank.

  Raises:
    ValueError: if `scale` is not positive.

  Example:
    >>> import jax.numpy as jnp
    >>> weights = reverse_discrepancy_weights(jnp.array([5, 0]), jnp.array([0, 5]), scale=0.1)
    >>> [round(float(w), 4) for w in weights]
    [0.2689, 0.7311]

  Reference:
    Kweon, Kang, Yu, Bidirectional Distillation for Top-K Recommender System, WWW 2021,
    arXiv:2106.02870.
  """
  _check_positive(scale)
  gap, ranked = _rank_gap(student_ranks, teacher_ranks)
  return jnp.where(ranked, jax.nn.softmax(floored(-scale * gap, ranked), axis=-1), 0.0)


def both_recommend(student_ids: Array, teacher_ids: Array) -> Array:
  """Which of the teacher's recommendations the student makes as well.

  Args:
    student_ids: int `[..., K]`, the student's best items.
    teacher_ids: int `[..., C]`, the teacher's; negative ones (PAD) agree with nothing.

  Returns:
    bool `[..., C]`.

  Example:
    >>> import jax.numpy as jnp
    >>> both_recommend(jnp.array([7, 3]), jnp.array([3, 4])).tolist()
    [True, False]
  """
  student_ids, teacher_ids = jnp.asarray(student_ids), jnp.asarray(teacher_ids)
  same = jnp.any(teacher_ids[..., :, None] == student_ids[..., None, :], axis=-1)
  return same & (teacher_ids >= 0)


def is_ranked(ranks: Array, support: Array | None = None) -> Array:
  """Which candidates have a rank and exist: bool of the shape of `ranks`."""
  return (jnp.asarray(ranks) > UNRANKED) & existing(support, jnp.shape(ranks))


def hybrid_weights(position: Array, discrepancy: Array) -> Array:
  """Their product, summing to 1 over the last axis; all 0 where every product is."""
  product = position * discrepancy
  return safe_divide(product, jnp.sum(product, axis=-1, keepdims=True))


def _rank_gap(student_ranks, teacher_ranks) -> tuple[Array, Array]:
  student, teacher = constant((jnp.asarray(student_ranks), jnp.asarray(teacher_ranks)))
  teacher = jnp.broadcast_to(teacher, student.shape)
  return (student - teacher).astype(jnp.float32), is_ranked(student) & is_ranked(teacher)


def _check_positive(scale) -> None:
  if isinstance(scale, int | float) and not scale > 0:
    raise ValueError(f"scale must be positive, got {scale}")
