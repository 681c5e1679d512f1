"""The terms of --distill_losses for sequence models: what each loss is given.

Losses on logits get every labelled position. Losses that rank candidates or compare positions with
each other get some positions of every row, fresh in every step: their cost grows with candidates or
with pairs. Which ones depends on the row alone, so that micro-batches and devices, which split the
rows, together see those of the whole batch, and totals over counts stay means.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import FitConfig
from experiments.loss_flags import LossSpec
from kdjax import losses
from kdjax.reduce import totals
from kdjax.train.objective import Term
from kdjax.types import Array, Batch, FactoredLogits, Outputs

RANKED = 4  # Positions of a row whose candidates are ranked,
RELATED = 2  # that are compared with those of the other rows by twos,
TRIPLES = 1  # and by threes.
TOP = 100  # The teacher's best items that candidates are drawn from.
DRAWN = 40  # Candidates of each kind.
GROUPS = 8  # Experts, groups of entities, and groups of like popularity.

# On dense logits [positions, items]; True for those that also need the labels.
DENSE: Mapping[str, tuple[Callable[..., Any], bool]] = {
  "reverse_kl": (losses.reverse_kl_loss, False),
  "jensen_shannon": (losses.jensen_shannon_loss, False),
  "skew_kl": (losses.skew_kl_loss, False),
  "skew_reverse_kl": (losses.skew_reverse_kl_loss, False),
  "total_variation": (losses.total_variation_loss, False),
  "cosine_probability": (losses.cosine_probability_loss, False),
  "logit_mse": (losses.logit_mse_loss, False),
  "standardized_kl": (losses.standardized_kl_loss, False),
  "decoupled": (losses.decoupled_loss, True),
  "normalized_decoupled": (losses.normalized_decoupled_loss, True),
}
# On features [positions, width] of one width, through a projector where they differ.
PROJECTED: Mapping[str, Callable[..., Any]] = {
  "hint": losses.hint_loss,
  "cosine_feature": losses.cosine_feature_loss,
  "patient": losses.patient_loss,
}
# On features of any two widths, positions against positions; how many of a row.
RELATIONS: Mapping[str, tuple[Callable[..., Any], int]] = {
  "rkd_distance": (losses.rkd_distance_loss, RELATED),
  "rkd_angle": (losses.rkd_angle_loss, TRIPLES),
  "similarity_preserving": (losses.similarity_preserving_loss, RELATED),
  "correlation_congruence": (losses.correlation_congruence_loss, RELATED),
  "probabilistic_transfer": (losses.probabilistic_transfer_loss, RELATED),
  "cka": (losses.cka_loss, RELATED),
  "topology": (losses.topology_loss, RELATED),
}
# On the scores of candidates [positions, candidates], see `_ranked`.
CANDIDATES = (
  "listnet",
  "listmle",
  "plackett_luce",
  "relaxed_ranking",
  "ranknet",
  "pairwise_hinge",
  "lambda",
  "margin_mse",
  "ranking_distillation",
  "collaborative",
  "stratified_pair",
  "importance_ranking",
)
FEATURED = (*PROJECTED, *RELATIONS, "experts", "info_nce")
VALID = ("kl", *DENSE, *CANDIDATES, *FEATURED)


def make_terms(
  specs: list[LossSpec],
  *,
  catalog_logits: Callable[[FactoredLogits, FitConfig], FactoredLogits],
  temperature: float,
  fit: FitConfig,
  popularity: Array | np.ndarray,
  num_steps: int,
) -> list[Term]:
  """One term an entry.

  Args:
    specs: from `parse_losses`.
    catalog_logits: casts what products with the whole catalogue are made of.
    temperature: of the losses that have one.
    fit: the flags of training.
    popularity: float `[V]`, the log of each item's share of the training events.
    num_steps: of the training, over which weights are scheduled.
  """
  terms = []
  for spec in specs:
    init = None
    if spec.name == "kl":
      loss = functools.partial(_kl, catalog_logits, fit, temperature)
    elif spec.name in DENSE:
      loss = functools.partial(_dense, *DENSE[spec.name], temperature)
    elif spec.name in CANDIDATES:
      groups = losses.popularity_groups(jnp.exp(jnp.asarray(popularity)), num_groups=GROUPS)
      loss = functools.partial(_ranked, spec.name, temperature, groups)
    elif spec.name in RELATIONS:
      loss = functools.partial(_related, *RELATIONS[spec.name], spec)
    else:
      init, loss = _learned(spec)
    loss = _loss_of_teacher(loss, spec.teacher)
    init = init and _init_of_teacher(init, spec.teacher)
    terms.append(Term(spec.term, loss, spec.schedule(num_steps), init))
  return terms


def _one_of(teacher: Any, number: int) -> Outputs:
  """The outputs of one teacher, a tuple themselves, or of one out of a plain tuple of them."""
  return teacher if isinstance(teacher, Outputs) else teacher[number]


def _loss_of_teacher(loss, number: int):
  return lambda *args: loss(*args[:-2], _one_of(args[-2], number), args[-1])


def _init_of_teacher(init, number: int):
  return lambda key, student, teacher: init(key, student, _one_of(teacher, number))


def _kl(catalog_logits, fit, temperature, student, teacher, batch):
  return losses.catalog_kl_loss(
    catalog_logits(student.logits, fit),
    catalog_logits(teacher.logits, fit),
    temperature=temperature,
    where=batch["labels"] >= 0,
    reduce_fn=totals,
  )


def _dense(loss, labelled, temperature, student, teacher, batch):
  where = batch["labels"] >= 0
  args = [student.logits.dense(), teacher.logits.dense()]
  args += [jnp.maximum(batch["labels"], 0)] if labelled else []
  options = {} if loss is losses.logit_mse_loss else {"temperature": temperature}
  return loss(*args, **options, where=where, reduce_fn=totals)


def _sample(batch: Batch, count: int) -> Array:
  """Some places of each row, evenly spread from a random start: int `[rows, count]`."""
  length = batch["labels"].shape[1]
  count = min(count, length)
  start = (batch["noise"] % length).astype(jnp.int32)
  steps = (jnp.arange(count) * length) // count
  return (start[:, None] + steps[None]) % length


def _at(places: Array, values: Array) -> Array:
  """`[rows, length, ...]` to `[rows * count, ...]`."""
  places = places.reshape(*places.shape, *[1] * (values.ndim - 2))
  chosen = jnp.take_along_axis(values, places, axis=1)
  return chosen.reshape(-1, *values.shape[2:])


def _pick(outputs: Outputs, name: str, whose: str) -> Array:
  if name not in outputs.features:
    known = ", ".join(sorted(outputs.features))
    raise ValueError(f"--distill_losses: the {whose} has no feature {name!r}; it has {known}")
  return outputs.features[name]


def _features(spec: LossSpec, student: Outputs, teacher: Outputs) -> tuple[Array, Array]:
  names = spec.student_feature or "query", spec.teacher_feature or "query"
  return _pick(student, names[0], "student"), _pick(teacher, names[1], "teacher")


def _related(loss, count, spec, student, teacher, batch):
  places = _sample(batch, count)
  vectors = (_at(places, x) for x in _features(spec, student, teacher))
  return loss(*vectors, where=_at(places, batch["labels"]) >= 0, reduce_fn=totals)


def _learned(spec: LossSpec):
  """Losses with a learned part: a projector, or experts that a selection chooses from."""

  def helper(student, teacher):
    narrow, wide = (x.shape[-1] for x in _features(spec, student, teacher))
    if spec.name == "experts":
      return losses.experts(narrow, wide, GROUPS)
    return losses.projector(narrow, wide)

  def init(key, student, teacher):
    return helper(student, teacher).init(key)

  def loss(params, student, teacher, batch):
    own, other = _features(spec, student, teacher)
    where = batch["labels"] >= 0
    apply = helper(student, teacher).apply
    if spec.name == "experts":
      key = jax.random.key(batch["noise"][0])
      own = apply(params, own, other, key=key, where=where)
      return losses.hint_loss(own, other, where=where, reduce_fn=totals)
    own = apply(params, own)
    if spec.name == "info_nce":
      places = _sample(batch, RELATED)
      own, other, where = (_at(places, x) for x in (own, other, where))
      return losses.info_nce_loss(own, other, where=where, reduce_fn=totals)
    return PROJECTED[spec.name](own, other, where=where, reduce_fn=totals)

  return init, loss


def _ranked(name, temperature, groups, student, teacher, batch):
  """Losses on the scores of candidates that are drawn from the teacher's best and from the rest."""
  places, key = _sample(batch, RANKED), jax.random.key(batch["noise"][0])
  where = _at(places, batch["labels"]) >= 0
  own, other = (
    FactoredLogits(_at(places, x.query), x.table, x.bias) for x in (student.logits, teacher.logits)
  )
  scores = jax.lax.stop_gradient(other.dense())
  best_scores, best = jax.lax.top_k(scores, min(TOP, scores.shape[-1] // 2))
  num_items, draws = scores.shape[-1], min(DRAWN, best.shape[-1])
  done: dict[str, Any] = {"where": where, "reduce_fn": totals}
  if name == "ranking_distillation":
    ids = best[:, :draws]
    ranks = jnp.broadcast_to(jnp.arange(draws), ids.shape)
    rest = losses.sample_uninteresting(key, best, num_items=num_items, draws=draws)
    student_ranks = losses.estimate_ranks(own.at(ids), own.at(rest.ids), num_items=num_items)
    return losses.ranking_distillation_loss(
      own.at(ids), ranks, student_ranks=jax.lax.stop_gradient(student_ranks), **done
    )
  if name == "importance_ranking":
    ids = best[:, :10]
    ranks = jnp.broadcast_to(jnp.arange(ids.shape[-1]), ids.shape)
    log_probs = best_scores - jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    _, theirs = jax.lax.top_k(jax.lax.stop_gradient(own.dense()), ids.shape[-1])
    agreed = losses.both_recommend(theirs, ids)
    # Minus the log of its probability is how far an item lies from what the teacher would say.
    return losses.importance_ranking_loss(
      own.at(ids), ranks, -log_probs[:, : ids.shape[-1]], agreed, **done
    )
  if name == "collaborative":
    weights = losses.position_weights(jnp.arange(best.shape[-1]))
    drawn = losses.sample_ranked(key, best, weights, draws=draws)
    return losses.collaborative_loss(
      own.at(drawn.ids), other.at(drawn.ids), support=drawn.support, **done
    )
  if name == "stratified_pair":
    pairs = losses.sample_pairs(key, best_scores, groups[best], num_groups=GROUPS, draws=5)
    upper, lower = (jnp.take_along_axis(best, x, axis=-1) for x in (pairs.upper, pairs.lower))
    return losses.stratified_pair_loss(own.at(upper), own.at(lower), support=pairs.support, **done)
  drawn = losses.sample_relaxed_candidates(
    key, best, num_items=num_items, interesting=draws, uninteresting=draws
  )
  ours, theirs = own.at(drawn.ids), other.at(drawn.ids)
  options: dict[str, Any] = {"support": drawn.support, **done}
  if name == "relaxed_ranking":
    return losses.relaxed_ranking_loss(ours, drawn.ranks, **options)
  if name == "listmle":
    return losses.listmle_loss(ours, theirs, k=draws, **options)
  if name == "plackett_luce":
    ranks = losses.sample_rankings(key, theirs, draws=2, support=drawn.support)
    return losses.plackett_luce_loss(ours, ranks, k=draws, **options)
  if name == "margin_mse":
    split = (ours[:, 0], ours[:, 1:], theirs[:, 0], theirs[:, 1:])
    return losses.margin_mse_loss(*split, support=drawn.support[:, 1:], **done)
  if name == "lambda":
    # As gains the teacher's probabilities, 1 for its first.
    gains = jnp.exp(theirs - jnp.max(theirs, axis=-1, keepdims=True))
    return losses.lambda_loss(ours, gains, **options)
  if name == "pairwise_hinge":
    return losses.pairwise_hinge_loss(ours, theirs, **options)
  loss = {"listnet": losses.listnet_loss, "ranknet": losses.ranknet_loss}[name]
  return loss(ours, theirs, temperature=temperature, **options)
