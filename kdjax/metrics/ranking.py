r"""Metrics of ranked candidate lists, exact in expectation over the order of tied candidates.

Candidates with equal scores have no order of their own. Every metric here is the *expected value
under a uniformly random order of the ties*, in closed form, so that a scorer which says the same
of every candidate gets exactly the chance level, neither the best case nor the worst.

In all of them a candidate is relevant when its label is above 0, a list without a relevant
candidate scores 0, and `k=None` ranks the whole list.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kdjax.reduce import ReduceFn, reduce_loss, safe_divide
from kdjax.types import Array


class _Ranked(NamedTuple):
  """A list in the order of its scores; every field is float32 `[..., C]` over ranks.

  `tied` candidates share a rank's score, `within` of them stand before it, `hits` of them are
  relevant, and `above` relevant ones score higher. `gain` is the mean gain of the tied ones.
  """

  tied: Array
  within: Array
  hits: Array
  above: Array
  gain: Array


def exponential_gain(labels: Array) -> Array:
  """`2**label - 1`: the usual gain of graded labels; 0 and 1 stay what they are."""
  return jnp.exp2(labels) - 1.0


def hit_rate_metric(
  scores: Array,
  labels: Array,
  *,
  k: int | None = 10,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
) -> Any:
  r"""Probability that a relevant candidate stands among the first k.

  $$\mathrm{HR@}k = 1 - \prod_{r \le k} P(\text{rank } r \text{ irrelevant} \mid
  \text{all before it irrelevant})$$

  With m relevant among e ties the factors are (e - m) / e, (e - m - 1) / (e - 1), ...: exact.

  Args:
    scores: float `[..., C]`.
    labels: float or int `[..., C]`, relevant where above 0.
    k: how many ranks count; None for all.
    support: bool `[..., C]`, which candidates exist.
    where: bool `[...]`, which lists count.
    reduce_fn: as in `kdjax.reduce.reduce_loss`; None gives one value a list.

  Returns:
    float32 in [0, 1]. A list with a NaN score gives NaN.

  Raises:
    ValueError: if the shapes of scores, labels and support differ, or k is not positive.

  Example:
    >>> import jax.numpy as jnp
    >>> float(hit_rate_metric(jnp.zeros(4), jnp.array([0, 1, 0, 0]), k=2))  # all tied: 2 of 4
    0.5

  Reference:
    Expected values under random tie order: McSherry and Najork, Computing Information Retrieval
    Performance Measures Efficiently in the Presence of Tied Scores, ECIR 2008.
  """
  ranked, last = _rank(scores, labels, support, k)
  survives = jnp.prod(_miss(ranked)[..., :last], axis=-1)
  return _finish(1.0 - survives, scores, support, where, reduce_fn)


def recall_metric(
  scores: Array,
  labels: Array,
  *,
  k: int | None = 10,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
) -> Any:
  r"""Share of the relevant candidates that stand among the first k.

  $$\mathrm{Recall@}k = \frac{1}{R} \sum_{r \le k} \frac{m_r}{e_r}$$

  where $m_r$ of the $e_r$ candidates tied at rank r are relevant, and R are relevant in all.

  Args:
    scores: float `[..., C]`.
    labels: float or int `[..., C]`, relevant where above 0.
    k: how many ranks count; None for all.
    support: bool `[..., C]`, which candidates exist.
    where: bool `[...]`, which lists count.
    reduce_fn: as in `kdjax.reduce.reduce_loss`; None gives one value a list.

  Returns:
    float32 in [0, 1]. A list with a NaN score gives NaN.

  Raises:
    ValueError: if the shapes of scores, labels and support differ, or k is not positive.

  Example:
    >>> import jax.numpy as jnp
    >>> float(recall_metric(jnp.array([3.0, 2.0, 1.0]), jnp.array([1, 0, 1]), k=2))
    0.5

  Reference:
    Ties as in `hit_rate_metric`.
  """
  ranked, last = _rank(scores, labels, support, k)
  found = jnp.sum((ranked.hits / ranked.tied)[..., :last], axis=-1)
  return _finish(safe_divide(found, _num_relevant(ranked)), scores, support, where, reduce_fn)


def precision_metric(
  scores: Array,
  labels: Array,
  *,
  k: int | None = 10,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
) -> Any:
  r"""Share of the first k ranks that hold a relevant candidate.

  $$\mathrm{Precision@}k = \frac{1}{k} \sum_{r \le k} \frac{m_r}{e_r}$$

  The divisor is k even where fewer candidates exist; with `k=None` it is how many exist.

  Args:
    scores: float `[..., C]`.
    labels: float or int `[..., C]`, relevant where above 0.
    k: how many ranks count; None for all.
    support: bool `[..., C]`, which candidates exist.
    where: bool `[...]`, which lists count.
    reduce_fn: as in `kdjax.reduce.reduce_loss`; None gives one value a list.

  Returns:
    float32 in [0, 1]. A list with a NaN score gives NaN.

  Raises:
    ValueError: if the shapes of scores, labels and support differ, or k is not positive.

  Example:
    >>> import jax.numpy as jnp
    >>> float(precision_metric(jnp.array([3.0, 2.0, 1.0]), jnp.array([1, 0, 1]), k=2))
    0.5

  Reference:
    Ties as in `hit_rate_metric`.
  """
  ranked, last = _rank(scores, labels, support, k)
  found = jnp.sum((ranked.hits / ranked.tied)[..., :last], axis=-1)
  exists = jnp.ones(scores.shape, bool) if support is None else support
  ranks = jnp.sum(exists, axis=-1) if k is None else k
  return _finish(safe_divide(found, ranks), scores, support, where, reduce_fn)


def ndcg_metric(
  scores: Array,
  labels: Array,
  *,
  k: int | None = 10,
  gain_fn: Callable[[Array], Array] = exponential_gain,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
) -> Any:
  r"""Normalised discounted cumulative gain.

  $$\mathrm{NDCG@}k = \frac{1}{\mathrm{IDCG@}k} \sum_{r \le k} \frac{\bar g_r}{\log_2(r + 1)}$$

  where $\bar g_r$ is the mean gain of the candidates tied at rank r, and IDCG is the sum for the
  labels in their best order.

  Args:
    scores: float `[..., C]`.
    labels: float or int `[..., C]`, graded relevance of 0 or more.
    k: how many ranks count; None for all.
    gain_fn: gain of a label; must give 0 at 0.
    support: bool `[..., C]`, which candidates exist.
    where: bool `[...]`, which lists count.
    reduce_fn: as in `kdjax.reduce.reduce_loss`; None gives one value a list.

  Returns:
    float32 in [0, 1]. A list with a NaN score gives NaN.

  Raises:
    ValueError: if the shapes of scores, labels and support differ, or k is not positive.

  Example:
    >>> import jax.numpy as jnp
    >>> round(float(ndcg_metric(jnp.array([3.0, 2.0, 1.0]), jnp.array([0, 1, 0]))), 4)
    0.6309

  Reference:
    Järvelin and Kekäläinen, Cumulated Gain-Based Evaluation of IR Techniques, 2002; the
    exponential gain is Burges et al., Learning to Rank using Gradient Descent, 2005.
  """
  ranked, last = _rank(scores, labels, support, k, gain_fn)
  gains = gain_fn(labels.astype(jnp.float32))
  ideal = -jnp.sort(-(gains if support is None else jnp.where(support, gains, 0.0)), axis=-1)
  discount = 1.0 / jnp.log2(jnp.arange(2.0, last + 2.0, dtype=jnp.float32))
  dcg = ranked.gain[..., :last] @ discount
  return _finish(safe_divide(dcg, ideal[..., :last] @ discount), scores, support, where, reduce_fn)


def mrr_metric(
  scores: Array,
  labels: Array,
  *,
  k: int | None = 10,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
) -> Any:
  r"""Reciprocal rank of the first relevant candidate, 0 when it stands after rank k.

  $$\mathrm{MRR@}k = \sum_{r \le k} \frac{1}{r}
  P(\text{the first relevant candidate has rank } r)$$

  The probabilities are those of `hit_rate_metric`: exact under ties.

  Args:
    scores: float `[..., C]`.
    labels: float or int `[..., C]`, relevant where above 0.
    k: how many ranks count; None for all.
    support: bool `[..., C]`, which candidates exist.
    where: bool `[...]`, which lists count.
    reduce_fn: as in `kdjax.reduce.reduce_loss`; None gives one value a list.

  Returns:
    float32 in [0, 1]. A list with a NaN score gives NaN.

  Raises:
    ValueError: if the shapes of scores, labels and support differ, or k is not positive.

  Example:
    >>> import jax.numpy as jnp
    >>> float(mrr_metric(jnp.array([3.0, 2.0, 1.0]), jnp.array([0, 1, 1])))
    0.5

  Reference:
    Ties as in `hit_rate_metric`.
  """
  ranked, last = _rank(scores, labels, support, k)
  miss = _miss(ranked)[..., :last]
  survives = jnp.cumprod(miss, axis=-1)
  before = jnp.concatenate([jnp.ones_like(survives[..., :1]), survives[..., :-1]], axis=-1)
  ranks = jnp.arange(1.0, last + 1.0, dtype=jnp.float32)
  return _finish((before * (1.0 - miss)) @ (1.0 / ranks), scores, support, where, reduce_fn)


def map_metric(
  scores: Array,
  labels: Array,
  *,
  k: int | None = 10,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
) -> Any:
  r"""Average precision at k; its mean over lists is the MAP.

  $$\mathrm{AP@}k = \frac{1}{R} \sum_{r \le k} \frac{1}{r}
  \frac{m_r}{e_r} \Big(1 + M_r + q_r \frac{m_r - 1}{e_r - 1}\Big)$$

  where $m_r$ of the $e_r$ candidates tied at rank r are relevant, $q_r$ of them stand before rank
  r, and $M_r$ relevant ones score higher. The divisor is R, all relevant candidates, as in
  trec_eval (not min(R, k)).

  Args:
    scores: float `[..., C]`.
    labels: float or int `[..., C]`, relevant where above 0.
    k: how many ranks count; None for all.
    support: bool `[..., C]`, which candidates exist.
    where: bool `[...]`, which lists count.
    reduce_fn: as in `kdjax.reduce.reduce_loss`; None gives one value a list.

  Returns:
    float32 in [0, 1]. A list with a NaN score gives NaN.

  Raises:
    ValueError: if the shapes of scores, labels and support differ, or k is not positive.

  Example:
    >>> import jax.numpy as jnp
    >>> round(float(map_metric(jnp.array([3.0, 2.0, 1.0]), jnp.array([1, 0, 1]))), 4)
    0.8333

  Reference:
    Ties as in `hit_rate_metric`.
  """
  ranked, last = _rank(scores, labels, support, k)
  others = (ranked.hits - 1.0) / jnp.maximum(ranked.tied - 1.0, 1.0)
  found = 1.0 + ranked.above + ranked.within * others
  precision = found / jnp.arange(1.0, scores.shape[-1] + 1.0, dtype=jnp.float32).reshape(
    (1,) * (scores.ndim - 1) + (-1,)
  )
  total = jnp.sum((ranked.hits / ranked.tied * precision)[..., :last], axis=-1)
  return _finish(safe_divide(total, _num_relevant(ranked)), scores, support, where, reduce_fn)


def _rank(
  scores: Array,
  labels: Array,
  support: Array | None,
  k: int | None,
  gain_fn: Callable[[Array], Array] = exponential_gain,
) -> tuple[_Ranked, int]:
  """Sorts the lists, finds their ties, and says how many ranks count."""
  for name, other in (("labels", labels), ("support", support)):
    if other is not None and other.shape != scores.shape:
      raise ValueError(f"{name} has shape {other.shape} but scores has {scores.shape}")
  if k is not None and k < 1:
    raise ValueError(f"k must be positive, got {k}")
  exists = jnp.ones(scores.shape, bool) if support is None else support
  ranked = _sort(scores, gain_fn(labels.astype(jnp.float32)), labels > 0, exists)
  return ranked, scores.shape[-1] if k is None else min(k, scores.shape[-1])


@jax.jit
def _sort(scores: Array, gains: Array, relevant: Array, exists: Array) -> _Ranked:
  """Sorts and finds ties; jitted, as dozens of small programs are slow outside of a jit."""
  scores = jnp.where(exists, scores.astype(jnp.float32), 0.0)
  gains = jnp.where(exists, gains, 0.0)
  relevant = jnp.where(exists & relevant, 1.0, 0.0)
  absent, scores, gains, hits = lax.sort(
    (~exists, -scores, gains, relevant), dimension=-1, num_keys=2
  )

  size, axis = scores.shape[-1], scores.ndim - 1
  ranks = lax.broadcasted_iota(jnp.int32, scores.shape, axis)
  differs = (scores[..., 1:] != scores[..., :-1]) | (absent[..., 1:] != absent[..., :-1])
  edge = jnp.ones_like(absent[..., :1])
  start = lax.cummax(jnp.where(jnp.concatenate([edge, differs], -1), ranks, 0), axis=axis)
  end = lax.cummin(
    jnp.where(jnp.concatenate([differs, edge], -1), ranks + 1, size), axis=axis, reverse=True
  )

  def sum_before(values: Array, at: Array) -> Array:
    sums = jnp.pad(jnp.cumsum(values, axis=-1), [(0, 0)] * axis + [(1, 0)])
    return jnp.take_along_axis(sums, at, axis=-1)

  tied = (end - start).astype(jnp.float32)
  above = sum_before(hits, start)
  return _Ranked(
    tied=tied,
    within=(ranks - start).astype(jnp.float32),
    hits=sum_before(hits, end) - above,
    above=above,
    gain=(sum_before(gains, end) - sum_before(gains, start)) / tied,
  )


def _miss(ranked: _Ranked) -> Array:
  """Probability of an irrelevant rank, all before it being irrelevant: `[..., C]`."""
  left = ranked.tied - ranked.within
  return jnp.maximum(left - ranked.hits, 0.0) / left


def _num_relevant(ranked: _Ranked) -> Array:
  return (ranked.above + ranked.hits)[..., -1]


def _finish(
  values: Array, scores: Array, support: Array | None, where: Array | None, reduce_fn: ReduceFn
) -> Any:
  """Keeps NaN scores visible, then reduces."""
  nan = jnp.isnan(scores) if support is None else jnp.isnan(scores) & support
  values = jnp.where(jnp.any(nan, axis=-1), jnp.nan, values)
  return reduce_loss(values, where=where, reduce_fn=reduce_fn)
