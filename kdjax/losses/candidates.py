"""Which candidates a ranking loss compares: samplers, as pure functions of ids and a key.

They work from the teacher's best ids, not from scores of the whole catalogue, and a model that
returns `FactoredLogits` scores what they choose: `student.at(candidates.ids)`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kdjax.losses.common import FLOOR, check_temperature, constant, existing, floored
from kdjax.losses.rank_weights import (
  UNRANKED,
  candidate_ranks,
  discrepancy_weights,
  position_weights,
)
from kdjax.tree import vary_as
from kdjax.types import Array


class Candidates(NamedTuple):
  """The items that a loss compares, one list an example.

  Attributes:
    ids: int32 `[..., C]`, 0 where there is none.
    ranks: int32 `[..., C]`, by the teacher, 0 the best; `UNRANKED` for those that stay below.
    support: bool `[..., C]`, False where too few items could be drawn.
  """

  ids: Array
  ranks: Array
  support: Array


def sample_ranked(key: Array, teacher_ids: Array, weights: Array, *, draws: int) -> Candidates:
  """Draws items without replacement, by weight, and leaves them in the teacher's order.

  With `position_weights` of the places, the samples of RRD and of collaborative distillation (CD;
  guided by the student when the ids are the student's best). With `discrepancy_weights`, those of
  bidirectional distillation (BD).

  Args:
    key: PRNG key.
    teacher_ids: int `[..., R]`, items from the best to the worst; negative ones (PAD) are none.
    weights: float `[..., R]` or `[R]`, not negative; an item of weight 0 is never drawn.
    draws: how many, at most R.

  Returns:
    Candidates of `[..., draws]`. `ranks` are places in `teacher_ids`.

  Raises:
    ValueError: if `draws` is not in `[1, R]`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> ids = jnp.array([40, 10, 30, 20])
    >>> drawn = sample_ranked(jax.random.key(0), ids, jnp.array([1.0, 0.0, 1.0, 0.0]), draws=3)
    >>> drawn.ids.tolist(), drawn.ranks.tolist(), drawn.support.tolist()
    ([40, 30, 0], [0, 2, -1], [True, True, False])

  Reference:
    Kang et al., DE-RRD, CIKM 2020, doi:10.1145/3340531.3412005; Lee et al., Collaborative
    Distillation for Top-N Recommendation, ICDM 2019, arXiv:1911.05276; Kweon, Kang, Yu,
    Bidirectional Distillation, WWW 2021, arXiv:2106.02870 (whose code draws with replacement).
  """
  teacher_ids = jnp.asarray(teacher_ids)
  size = teacher_ids.shape[-1]
  if not 1 <= draws <= size:
    raise ValueError(f"draws must lie in [1, {size}], got {draws}")
  weights = jnp.broadcast_to(jnp.asarray(constant(weights), jnp.float32), teacher_ids.shape)
  possible = (weights > 0) & (teacher_ids >= 0)
  log_weights = jnp.log(jnp.where(possible, weights, 1.0))
  noisy = log_weights + jax.random.gumbel(key, teacher_ids.shape)
  noisy, places = jax.lax.top_k(jnp.where(possible, noisy, -jnp.inf), draws)
  places = jnp.sort(jnp.where(noisy > -jnp.inf, places, size), axis=-1)
  support = places < size
  ids = jnp.take_along_axis(teacher_ids, jnp.where(support, places, 0), axis=-1)
  return Candidates(
    jnp.where(support, ids, 0).astype(jnp.int32),
    jnp.where(support, places, UNRANKED).astype(jnp.int32),
    support,
  )


def sample_uninteresting(
  key: Array, excluded_ids: Array, *, num_items: int, draws: int
) -> Candidates:
  """Draws items uniformly, without replacement, from all but the excluded ones.

  Costs nothing in the size of the catalogue: Floyd's algorithm draws places among the items that
  are left, and sorted exclusions turn places into ids.

  Args:
    key: PRNG key.
    excluded_ids: int `[..., E]`, in any order, with or without repeats; ids out of `[0, V)` (PAD)
      exclude nothing.
    num_items: V, the size of the catalogue.
    draws: how many.

  Returns:
    Candidates of `[..., draws]`, all of them `UNRANKED`.

  Raises:
    ValueError: if `draws` < 1.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> drawn = sample_uninteresting(jax.random.key(0), jnp.array([0, 2, -1]), num_items=4, draws=2)
    >>> sorted(drawn.ids.tolist())
    [1, 3]

  Reference:
    Kang et al., DE-RRD, CIKM 2020, doi:10.1145/3340531.3412005; Bentley, Floyd, Programming Pearls:
    A Sample of Brilliance, 1987.
  """
  if draws < 1:
    raise ValueError(f"draws must be positive, got {draws}")
  excluded = jnp.asarray(excluded_ids).astype(jnp.int32)
  excluded = jnp.where((excluded >= 0) & (excluded < num_items), excluded, num_items)
  excluded = jnp.sort(excluded, axis=-1)
  repeated = jnp.zeros(excluded.shape, bool)
  repeated = repeated.at[..., 1:].set(excluded[..., 1:] == excluded[..., :-1])
  excluded = jnp.sort(jnp.where(repeated, num_items, excluded), axis=-1)
  left = num_items - jnp.sum(excluded < num_items, axis=-1)
  places = _distinct(key, left, draws)
  # The m-th excluded id has excluded[m] - m items left before it.
  before = excluded - jnp.broadcast_to(jnp.arange(excluded.shape[-1]), excluded.shape)
  before = jnp.where(excluded < num_items, before, num_items)
  skipped = jnp.sum(before[..., None, :] <= places[..., :, None], axis=-1)
  support = places >= 0
  ids = jnp.where(support, places + skipped, 0).astype(jnp.int32)
  return Candidates(ids, jnp.full(ids.shape, UNRANKED, jnp.int32), support)


def sample_relaxed_candidates(
  key: Array,
  teacher_ids: Array,
  *,
  num_items: int,
  interesting: int = 40,
  uninteresting: int = 40,
  scale: float = 10.0,
  seen: Array | None = None,
) -> Candidates:
  r"""The list of relaxed ranking distillation: interesting items, then uninteresting ones.

  The interesting are drawn from the teacher's best with $p \propto e^{-r / \lambda}$, the
  uninteresting uniformly from all that is neither there nor seen. For the item side (IR-RRD) the
  ids are users, and `num_items` counts them.

  Args:
    key: PRNG key.
    teacher_ids: int `[..., R]`, the teacher's best unseen items, the best first; PAD at the end.
    num_items: the size of the catalogue.
    interesting: K <= R, how many.
    uninteresting: L, how many.
    scale: lambda > 0, in ranks.
    seen: int `[..., H]`, the items that the user knows (PAD for none); never uninteresting.

  Returns:
    Candidates of `[..., K + L]` for `relaxed_ranking_loss`.

  Raises:
    ValueError: if K or L is out of range, or `scale` is not positive.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> options = {"num_items": 100, "interesting": 2, "uninteresting": 3}
    >>> drawn = sample_relaxed_candidates(jax.random.key(0), jnp.arange(5), **options)
    >>> drawn.ids.shape, drawn.ranks[2:].tolist()
    ((5,), [-1, -1, -1])

  Reference:
    Kang et al., DE-RRD, CIKM 2020, doi:10.1145/3340531.3412005; Kang et al., Item-side Ranking
    Regularized Distillation for Recommender System, Information Sciences 2021.
  """
  teacher_ids = jnp.asarray(teacher_ids)
  weights = position_weights(jnp.arange(teacher_ids.shape[-1]), scale=scale)
  keys = jax.random.split(key)
  best = sample_ranked(keys[0], teacher_ids, weights, draws=interesting)
  excluded = teacher_ids if seen is None else jnp.concatenate([teacher_ids, seen], axis=-1)
  rest = sample_uninteresting(keys[1], excluded, num_items=num_items, draws=uninteresting)
  return _join(best, rest)


def sample_corrections(
  key: Array,
  teacher_ids: Array,
  student_ranks: Array,
  *,
  draws: int = 40,
  scale: float = 0.01,
) -> Candidates:
  """The list of the dual correction: underestimated items, then overestimated ones.

  Both are drawn by how far the student's rank is off (`discrepancy_weights`). For the item side
  the ids are users.

  Args:
    key: PRNG key.
    teacher_ids: int `[..., R]`, the teacher's best unseen items, the best first.
    student_ranks: int `[..., R]`, the student's ranks of these among each other, 0 the best:
      `candidate_ranks(student.at(teacher_ids))`.
    draws: how many of each side, at most R.
    scale: the inverse of the number of ranks that matter, > 0.

  Returns:
    Candidates of `[..., 2 * draws]` for `relaxed_ranking_loss`: the underestimated in the teacher's
    order, the overestimated `UNRANKED`. Fewer are in the support where the models agree.

  Raises:
    ValueError: if `draws` or `scale` is out of range.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> ids, student_ranks = jnp.array([7, 8, 9]), jnp.array([2, 1, 0])
    >>> drawn = sample_corrections(jax.random.key(0), ids, student_ranks, draws=1)
    >>> drawn.ids.tolist(), drawn.ranks.tolist()
    ([7, 9], [0, -1])

  Reference:
    Lee, Kim, Dual Correction Strategy for Ranking Distillation in Top-N Recommender System, CIKM
    2021, arXiv:2109.03459 (ranks within the teacher's list, as in their code).
  """
  student_ranks = jnp.asarray(student_ranks)
  teacher_ranks = jnp.broadcast_to(jnp.arange(student_ranks.shape[-1]), student_ranks.shape)
  under = discrepancy_weights(student_ranks, teacher_ranks, scale=scale)
  over = discrepancy_weights(teacher_ranks, student_ranks, scale=scale)
  keys = jax.random.split(key)
  below = sample_ranked(keys[1], teacher_ids, over, draws=draws)
  below = below._replace(ranks=jnp.full_like(below.ranks, UNRANKED))
  return _join(sample_ranked(keys[0], teacher_ids, under, draws=draws), below)


def sample_rankings(
  key: Array,
  teacher_scores: Array,
  *,
  draws: int = 1,
  temperature: float = 1.0,
  support: Array | None = None,
) -> Array:
  r"""Orders drawn from the teacher's Plackett-Luce distribution over its candidates.

  $$P(\pi) = \prod_r \frac{e^{x_{\pi_r} / T}}{\sum_{j \ge r} e^{x_{\pi_j} / T}}$$

  Args:
    key: PRNG key.
    teacher_scores: float `[..., C]`.
    draws: D, how many orders.
    temperature: T > 0.
    support: bool `[C]` or `[..., C]`, the candidates that exist.

  Returns:
    int32 `[..., D, C]`, ranks from 0; `UNRANKED` outside of the support and at -inf.

  Raises:
    ValueError: if T <= 0 or `draws` < 1.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> sample_rankings(jax.random.key(0), jnp.array([0.0, 900.0, -jnp.inf])).tolist()
    [[1, 0, -1]]

  Reference:
    Yellott, The relationship between Luce's Choice Axiom, Thurstone's Theory of Comparative
    Judgment, and the double exponential distribution, 1977 (ordering by Gumbel noise).
  """
  check_temperature(temperature)
  if draws < 1:
    raise ValueError(f"draws must be positive, got {draws}")
  scores = jnp.asarray(constant(teacher_scores), jnp.float32)
  real = existing(support, scores.shape) & (scores > FLOOR)
  shape = (*scores.shape[:-1], draws, scores.shape[-1])
  noise = jax.random.gumbel(key, shape)
  scores = jnp.broadcast_to((floored(scores) / temperature)[..., None, :], shape)
  return candidate_ranks(scores + noise, support=jnp.broadcast_to(real[..., None, :], shape))


def _distinct(key: Array, size: Array, draws: int) -> Array:
  """A uniform subset of `range(size)` a row: int32 `[..., draws]`, -1 where size is too small."""

  def draw(step, state):
    key, chosen = state
    key, fresh = jax.random.split(key)
    last = size - draws + step
    drawn = jax.random.randint(fresh, size.shape, 0, jnp.maximum(last, 0) + 1)
    known = jnp.any(chosen == drawn[..., None], axis=-1)
    drawn = jnp.where(last < 0, -1, jnp.where(known, last, drawn))
    return key, chosen.at[..., step].set(drawn.astype(jnp.int32))

  chosen = jnp.full((*size.shape, draws), -1, jnp.int32)
  return jax.lax.fori_loop(0, draws, draw, vary_as((key, chosen), key, size))[1]


def _join(*parts: Candidates) -> Candidates:
  fields = (jnp.concatenate(field, axis=-1) for field in zip(*parts, strict=True))
  return Candidates(*fields)
