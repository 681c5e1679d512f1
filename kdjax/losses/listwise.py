"""Losses on the order of a whole candidate list: top-one probabilities and Plackett-Luce."""

import jax
import jax.numpy as jnp

from kdjax.losses.common import (
  FLOOR,
  check_same_shape,
  constant,
  existing,
  floored,
  log_prob_pair,
  nan_where,
  visible,
)
from kdjax.losses.rank_weights import is_ranked
from kdjax.reduce import ReduceFn, reduce_loss
from kdjax.types import Array

_LARGEST = 0x7F7FFFFF - (1 << 23)  # Of ranks; the bits of the largest float.


def listnet_loss(
  student_scores: Array,
  teacher_scores: Array,
  *,
  temperature: float = 1.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Cross-entropy between the probabilities of being ranked first, times temperature**2.

  $$L = -T^2 \sum_i p^t_i \log p^s_i, \quad p = \mathrm{softmax}(x / T)$$

  It is `kl_loss` plus the entropy of the teacher: the gradient is the same, the optimum is not 0.

  Args:
    student_scores: float `[..., C]`, of C candidates.
    teacher_scores: float `[..., C]` of the same candidates (or relevance labels); no gradient.
    temperature: T > 0, shared by both.
    support: bool `[C]` or `[..., C]`, the candidates that exist.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats times T**2: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ, `where` has not the shape `[...]`, or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> round(float(listnet_loss(jnp.zeros([1, 2]), jnp.array([[3.0, 1.0]]))), 4)
    0.6931

  Reference:
    Cao et al., Learning to Rank: From Pairwise Approach to Listwise Approach, ICML 2007 (top-one
    probabilities with the exponential; the temperature is ours).
  """
  log_s, log_t = log_prob_pair(
    student_scores, teacher_scores, temperature=temperature, support=support, where=where
  )
  # Without this a list whose support is empty would cost log C.
  real = existing(support, log_s.shape)
  loss = -jnp.sum(jnp.where(real, jnp.exp(log_t) * log_s, 0.0), axis=-1)
  return reduce_loss(temperature**2 * loss, where=where, reduce_fn=reduce_fn)


def listmle_loss(
  student_scores: Array,
  teacher_scores: Array,
  *,
  k: int | None = None,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Negative log-likelihood, under the student, of the order in which the teacher ranks.

  $$L = -\sum_{r=1}^{k} \log \frac{e^{x^s_{\pi_r}}}{\sum_{j \ge r} e^{x^s_{\pi_j}}}, \quad
  x^t_{\pi_1} \ge x^t_{\pi_2} \ge \dots$$

  Only the order of the teacher's scores matters; ties keep the order of the list. Candidates that
  the teacher calls impossible (-inf) have no order among each other, they only stay below.

  Args:
    student_scores: float `[..., C]`, of C candidates.
    teacher_scores: float `[..., C]` of the same candidates (or relevance labels); no gradient.
    k: how many of the teacher's ranks are taught; None for all.
    support: bool `[C]` or `[..., C]`, the candidates that exist.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats a list: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ, `where` has not the shape `[...]`, or k < 1.

  Example:
    >>> import jax.numpy as jnp
    >>> round(float(listmle_loss(jnp.zeros([1, 3]), jnp.array([[0.1, 0.7, 0.2]]))), 4)
    1.7918

  Reference:
    Xia et al., Listwise Approach to Learning to Rank: Theory and Algorithm, ICML 2008; Xia, Liu,
    Li, Statistical Consistency of Top-k Ranking, NeurIPS 2009 (the first k ranks).
  """
  check_same_shape(student_scores, teacher_scores)
  _check_k(k)
  student = floored(visible(student_scores, where, core_ndim=1), support)
  teacher = floored(visible(constant(teacher_scores), where, core_ndim=1), support)
  loss = _order_loss(student, teacher, teacher != FLOOR, k)
  loss = nan_where(jnp.any(jnp.isnan(teacher), axis=-1), loss)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def relaxed_ranking_loss(
  student_scores: Array,
  teacher_ranks: Array,
  *,
  k: int | None = None,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Relaxed ranking distillation: keep the order of the interesting, the rest only below.

  $$L = -\sum_{k=1}^{K} \log \frac{e^{x_{\pi_k}}}
  {\sum_{i=k}^{K} e^{x_{\pi_i}} + \sum_{j \in U} e^{x_j}}$$

  $\pi$ is the teacher's order of the K interesting candidates, U the uninteresting ones. Any
  sampler of `kdjax.losses` makes such a list: `sample_relaxed_candidates` for RRD,
  `sample_corrections` for the dual correction (DCD: underestimated above overestimated). For the
  item side (IR-RRD, and the item side of DCD) the list is one of users for an item: the loss is
  the same, with the item's vector as the query and the users' as the table.

  Args:
    student_scores: float `[..., C]`, of C candidates.
    teacher_ranks: int `[..., C]`, the teacher's ranks of these (the smaller the better, gaps are
      fine, ties keep the order of the list); `UNRANKED` for the uninteresting.
    k: how many candidates of a list have a rank at most, which spares sorting the rest (a rank
      beyond counts as none); None if not known.
    support: bool `[C]` or `[..., C]`, the candidates that exist.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats a list: a scalar, or `[...]` for `reduce_fn=None`. 0 where none is ranked.

  Raises:
    ValueError: if the shapes differ, `where` has not the shape `[...]`, or k < 1.

  Example:
    >>> import jax.numpy as jnp
    >>> from kdjax.losses import UNRANKED
    >>> ranks = jnp.array([[1, 0, UNRANKED, UNRANKED]])
    >>> round(float(relaxed_ranking_loss(jnp.zeros([1, 4]), ranks)), 4)
    2.4849

  Reference:
    Kang et al., DE-RRD: A Knowledge Distillation Framework for Recommender System, CIKM 2020,
    doi:10.1145/3340531.3412005; Kang et al., Item-side Ranking Regularized Distillation for
    Recommender System, Information Sciences 2021; Lee, Kim, Dual Correction Strategy for Ranking
    Distillation in Top-N Recommender System, CIKM 2021, arXiv:2109.03459.
  """
  check_same_shape(student_scores, teacher_ranks)
  _check_k(k)
  student = floored(visible(student_scores, where, core_ndim=1), support)
  loss = _ranks_loss(student, teacher_ranks, support, k)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def plackett_luce_loss(
  student_scores: Array,
  teacher_ranks: Array,
  *,
  k: int | None = None,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Cross-entropy between Plackett-Luce distributions over orders, from draws of the teacher's.

  $$L = -E_{\pi \sim \mathrm{PL}(x^t)} \log \mathrm{PL}_k(\pi \mid x^s) \approx -\frac{1}{D}
  \sum_{d=1}^{D} \sum_{r=1}^{k} \log \frac{e^{x^s_{\pi^d_r}}}{\sum_{j \ge r} e^{x^s_{\pi^d_j}}}$$

  Where `listmle_loss` knows one order only, this one also tells how sure the teacher is of it. The
  mean over draws is unbiased; for k = 1 its expectation is `listnet_loss`.

  Args:
    student_scores: float `[..., C]`, of C candidates.
    teacher_ranks: int `[..., D, C]`, D orders drawn by `sample_rankings` from the teacher's scores;
      `UNRANKED` for candidates that only stay below.
    k: how many ranks are taught; None for all.
    support: bool `[C]` or `[..., C]`, the candidates that exist.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats a list: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes do not fit, `where` has not the shape `[...]`, or k < 1.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> teacher_ranks = jnp.array([[[0, 1, 2], [1, 0, 2]]])
    >>> round(float(plackett_luce_loss(jnp.zeros([1, 3]), teacher_ranks, k=1)), 4)
    1.0986

  Reference:
    Reddi et al., RankDistil: Knowledge Distillation for Ranking, AISTATS 2021; Luce, Individual
    Choice Behavior, 1959; Plackett, The Analysis of Permutations, 1975.
  """
  shape, ranks_shape = jnp.shape(student_scores), jnp.shape(teacher_ranks)
  if len(ranks_shape) < 2 or (*ranks_shape[:-2], ranks_shape[-1]) != shape:
    raise ValueError(
      f"teacher_ranks must have the shape of the scores, {shape}, with an axis of draws before "
      f"the last one, got shape {ranks_shape}"
    )
  _check_k(k)
  student = floored(visible(student_scores, where, core_ndim=1), support)
  student = jnp.broadcast_to(student[..., None, :], ranks_shape)
  real = jnp.broadcast_to(existing(support, shape)[..., None, :], ranks_shape)
  loss = jnp.mean(_ranks_loss(student, teacher_ranks, real, k), axis=-1)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def _check_k(k: int | None) -> None:
  if k is not None and k < 1:
    raise ValueError(f"k must be positive, got {k}")


def _ranks_loss(scores: Array, ranks: Array, support: Array | None, k: int | None) -> Array:
  """`_order_loss` of integer ranks, where negative ones mean no rank."""
  ranks = jnp.asarray(ranks)
  taught = is_ranked(ranks, support)
  # top_k is fast on floats alone. The bits of positive floats are in the order of their values, and
  # those of whole numbers from 2^23 on are normal: exact for ranks that a float32 would round.
  bits = jnp.clip(ranks.astype(jnp.int32), 0, _LARGEST) + (1 << 23)
  size = jax.lax.bitcast_convert_type(bits, jnp.float32)
  return _order_loss(scores, jnp.where(taught, -size, -jnp.inf), taught, k)


def _order_loss(scores: Array, keys: Array, taught: Array, k: int | None) -> Array:
  """-log Plackett-Luce of the falling order of `keys`, if `taught`: `[..., C]` to `[...]`.

  Whatever is not taught must have the smallest keys, so that it stands in every denominator. With
  k the rest needs no order: it is selected, not sorted.
  """
  count = scores.shape[-1]
  if k is None or k >= count:
    order, below = jnp.argsort(keys, axis=-1, descending=True), jnp.empty((*scores.shape[:-1], 0))
  else:
    order = jax.lax.top_k(keys, k)[1]
    others = jnp.put_along_axis(scores, order, FLOOR, axis=-1, inplace=False)
    below = jax.nn.logsumexp(others, axis=-1, keepdims=True)
  scores, taught = (jnp.take_along_axis(a, order, axis=-1) for a in (scores, taught))
  rest = jnp.concatenate([scores, below], axis=-1)
  rest = jax.lax.cumlogsumexp(rest, axis=rest.ndim - 1, reverse=True)[..., : scores.shape[-1]]
  return jnp.sum(jnp.where(taught, rest - scores, 0.0), axis=-1)
