"""--distill_losses that rank: on candidates drawn from the teacher's best and from the rest."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.loss_flags import LossSpec
from experiments.loss_view import Logits, Maker, View, at_places, logits_at, sample_places
from kdjax import losses
from kdjax.reduce import totals
from kdjax.train.objective import Term
from kdjax.types import Array, FactoredLogits

RANKED = 4  # Positions of a row whose candidates are ranked.
TOP = 100  # The teacher's best items that candidates are drawn from.
DRAWN = 40  # Candidates of each kind.
SHORT = 10  # Places of the list that a user sees.
PAIRS = 5  # Of each group of like popularity.
GROUPS = 8  # Of like popularity.


class Ranking(NamedTuple):
  """The chosen positions, n of them, and what the teacher likes best there.

  Attributes:
    own: the student's logits.
    other: the teacher's.
    kept: the teacher's best, R of every position.
    groups: `(ids [n, k]) -> int [n, k]`, their groups of like popularity.
    key: for what is drawn.
    temperature: of the losses that have one.
    done: `where` and `reduce_fn`.
  """

  own: Logits
  other: Logits
  kept: losses.TopK
  groups: Callable[[Array], Array]
  key: Array
  temperature: float
  done: dict[str, Any]

  @property
  def best(self) -> Array:
    """The teacher's best items, int `[n, R]`."""
    return self.kept.indices

  @property
  def num_items(self) -> int:
    """C."""
    return self.other.num_items

  @property
  def draws(self) -> int:
    """How many candidates of each kind there can be."""
    return min(DRAWN, self.best.shape[-1])


def _ranked(loss: Callable[[Ranking], Any]) -> Maker:
  def make(spec: LossSpec, view: View):
    def term(student, teacher, batch):
      where = view.where(batch)
      places = sample_places(batch, where.shape[1], RANKED)
      own, other = (logits_at(places, view.logits(x, batch)) for x in (student, teacher))
      return loss(
        Ranking(
          own,
          other,
          _best(other, min(TOP, other.num_items // 2)),
          lambda ids: view.groups(batch, places, ids),
          jax.random.key(batch["noise"][0]),
          view.temperature,
          {"where": at_places(places, where), "reduce_fn": totals},
        )
      )

    return Term(spec.term, term)

  return make


def _best(logits: Logits, k: int) -> losses.TopK:
  """The k best of every position, found without the logits of all items where they are factored."""
  given = logits if isinstance(logits, FactoredLogits) else logits.values
  return losses.catalog_top_k_targets(given, k)


def _of_items(logits: Logits, items: Array) -> Array:
  """Logits of some items at all positions, `[items, n]`."""
  if not isinstance(logits, FactoredLogits):
    return logits.values[:, items].T
  query, table, bias = logits
  rows = table.take(items) if hasattr(table, "rdot") else table[items]
  return FactoredLogits(query, rows, None if bias is None else bias[items]).dense().T


def _student_ranks(x: Ranking, own: Array) -> Array:
  """The student's ranks in the whole catalogue, estimated from some of what the teacher leaves."""
  rest = losses.sample_uninteresting(x.key, x.best, num_items=x.num_items, draws=x.draws)
  return losses.estimate_ranks(own, x.own.at(rest.ids), num_items=x.num_items)


def _ranking_distillation(x: Ranking):
  ids = x.best[:, : x.draws]
  ranks = jnp.broadcast_to(jnp.arange(x.draws), ids.shape)
  own = x.own.at(ids)
  return losses.ranking_distillation_loss(
    own, ranks, student_ranks=_student_ranks(x, own), **x.done
  )


def _importance_ranking(x: Ranking):
  log_probs = x.kept.values - x.kept.log_normalizer[:, None]
  # Minus the log of its probability is how far an item lies from what the teacher would say.
  return importance(x.own, x.best[:, :SHORT], -log_probs[:, :SHORT], x.done)


def importance(own: Logits, ids: Array, distances: Array, done: dict[str, Any]):
  """DLLM2Rec's loss of the student on `ids` `[n, k]`, the teacher's best in its order."""
  ranks = jnp.broadcast_to(jnp.arange(ids.shape[-1]), ids.shape)
  agreed = losses.both_recommend(_best(own, ids.shape[-1]).indices, ids)
  return losses.importance_ranking_loss(own.at(ids), ranks, distances, agreed, **done)


def _clicks(x: Ranking, ids: Array, weights: Array):
  drawn = losses.sample_ranked(x.key, ids, weights, draws=x.draws)
  own, other = x.own.at(drawn.ids), x.other.at(drawn.ids)
  return losses.collaborative_loss(own, other, support=drawn.support, **x.done)


def _collaborative(x: Ranking):
  return _clicks(x, x.best, losses.position_weights(jnp.arange(x.best.shape[-1])))


def _student_collaborative(x: Ranking):
  """CD guided by the student: what it would recommend, and the teacher may know better."""
  ids = _best(x.own, x.best.shape[-1]).indices
  return _clicks(x, ids, losses.position_weights(jnp.arange(ids.shape[-1])))


def _bidirectional(x: Ranking):
  """The student's half of BD, the teacher's being trained already: what it ranks too low."""
  ranks = jnp.broadcast_to(jnp.arange(x.best.shape[-1]), x.best.shape)
  weights = losses.discrepancy_weights(_student_ranks(x, x.own.at(x.best)), ranks)
  return _clicks(x, x.best, weights)


def _dual_correction(x: Ranking):
  """DCD: what the student ranks too low above what it ranks too high."""
  ranks = losses.candidate_ranks(jax.lax.stop_gradient(x.own.at(x.best)))
  drawn = losses.sample_corrections(x.key, x.best, ranks, draws=x.draws)
  own = x.own.at(drawn.ids)
  return losses.relaxed_ranking_loss(own, drawn.ranks, k=x.draws, support=drawn.support, **x.done)


def _item_relaxed_ranking(x: Ranking):
  """IR-RRD: the users of the batch, ranked for items that the teacher recommends to them."""
  keys, users = jax.random.split(x.key), jnp.arange(x.best.shape[0])
  weights = losses.position_weights(jnp.arange(x.best.shape[-1]), scale=10.0)
  items = losses.sample_ranked(keys[0], x.best, weights, draws=1).ids[:, 0]
  real = x.done["where"]
  other = jnp.where(real, _of_items(x.other, items), -jnp.inf)
  scores, best = jax.lax.top_k(other, min(TOP, max(1, len(users) // 2)))
  draws = min(DRAWN, best.shape[-1])
  drawn = losses.sample_relaxed_candidates(
    keys[1],
    jnp.where(scores > -jnp.inf, best, -1),
    num_items=len(users),
    interesting=draws,
    uninteresting=draws,
    seen=jnp.broadcast_to(jnp.where(real, -1, users), other.shape),
  )
  own = jnp.take_along_axis(_of_items(x.own, items), drawn.ids, axis=-1)
  return losses.relaxed_ranking_loss(own, drawn.ranks, k=draws, support=drawn.support, **x.done)


def _stratified_pair(x: Ranking):
  pairs = losses.sample_pairs(
    x.key, x.kept.values, x.groups(x.best), num_groups=GROUPS, draws=PAIRS
  )
  upper, lower = (jnp.take_along_axis(x.best, i, axis=-1) for i in (pairs.upper, pairs.lower))
  own = x.own.at(upper), x.own.at(lower)
  return losses.stratified_pair_loss(*own, support=pairs.support, **x.done)


def _on_candidates(loss: Callable[..., Any]) -> Maker:
  """A loss of `(ranking, own, other, drawn, **done)` on interesting and uninteresting items."""

  def of_drawn(x: Ranking):
    drawn = losses.sample_relaxed_candidates(
      x.key, x.best, num_items=x.num_items, interesting=x.draws, uninteresting=x.draws
    )
    return loss(x, x.own.at(drawn.ids), x.other.at(drawn.ids), drawn, **x.done)

  return _ranked(of_drawn)


def _on_lists(loss: Callable[..., Any]) -> Maker:
  """The same loss where all classes are candidates already, the right one first."""

  def of_list(x: Ranking):
    scores = x.other.dense()
    ids = jnp.broadcast_to(jnp.arange(x.num_items), scores.shape)
    drawn = losses.Candidates(ids, losses.candidate_ranks(scores), jnp.ones(ids.shape, bool))
    return loss(x, x.own.dense(), scores, drawn, **x.done)

  return _ranked(of_list)


def _relaxed(x, own, other, drawn, **done):
  del other
  return losses.relaxed_ranking_loss(own, drawn.ranks, k=x.draws, support=drawn.support, **done)


def _listmle(x, own, other, drawn, **done):
  return losses.listmle_loss(own, other, k=x.draws, support=drawn.support, **done)


def _plackett_luce(x, own, other, drawn, **done):
  ranks = losses.sample_rankings(x.key, other, draws=2, support=drawn.support)
  return losses.plackett_luce_loss(own, ranks, k=x.draws, support=drawn.support, **done)


def _margin_mse(x, own, other, drawn, **done):
  del x
  split = (own[:, 0], own[:, 1:], other[:, 0], other[:, 1:])
  return losses.margin_mse_loss(*split, support=drawn.support[:, 1:], **done)


def _lambda(x, own, other, drawn, **done):
  del x
  # As gains the teacher's probabilities, 1 for its first.
  gains = jnp.exp(other - jnp.max(other, axis=-1, keepdims=True))
  return losses.lambda_loss(own, gains, support=drawn.support, **done)


def _hinge(x, own, other, drawn, **done):
  del x
  return losses.pairwise_hinge_loss(own, other, support=drawn.support, **done)


def _softened(loss):
  return lambda x, own, other, drawn, **done: loss(
    own, other, temperature=x.temperature, support=drawn.support, **done
  )


_OF_CANDIDATES: Mapping[str, Callable[..., Any]] = {
  "relaxed_ranking": _relaxed,
  "listmle": _listmle,
  "plackett_luce": _plackett_luce,
  "margin_mse": _margin_mse,
  "lambda": _lambda,
  "pairwise_hinge": _hinge,
  "listnet": _softened(losses.listnet_loss),
  "ranknet": _softened(losses.ranknet_loss),
}
CATALOG: Mapping[str, Maker] = {
  "ranking_distillation": _ranked(_ranking_distillation),
  "importance_ranking": _ranked(_importance_ranking),
  "collaborative": _ranked(_collaborative),
  "student_collaborative": _ranked(_student_collaborative),
  "bidirectional": _ranked(_bidirectional),
  "dual_correction": _ranked(_dual_correction),
  "stratified_pair": _ranked(_stratified_pair),
  **{name: _on_candidates(loss) for name, loss in _OF_CANDIDATES.items()},
}
# On lists of candidates, such as a query's mined ones.
LISTS: Mapping[str, Maker] = {name: _on_lists(loss) for name, loss in _OF_CANDIDATES.items()}
# Whose columns must be the same items for all users.
WHOLE: Mapping[str, Maker] = {"item_relaxed_ranking": _ranked(_item_relaxed_ranking)}
