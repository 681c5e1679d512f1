"""--distill_losses on features: position by position, and positions against each other."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.feature_pairs import Pair, fixed, learned, pair_of, widths_of
from experiments.loss_flags import LossSpec
from experiments.loss_view import Maker, View, at_places, sample_places
from kdjax import losses
from kdjax.reduce import Mean, totals
from kdjax.train.objective import Memory, Term
from kdjax.types import Array

RELATED = 2  # Positions of a row that are compared with those of the other rows by twos,
TRIPLES = 1  # and by threes.
EXPERTS = 8  # Distillation experts, and groups of alike positions.
NEGATIVES = 256  # Remembered embeddings that one is contrasted with, at most.


def _projected(loss: Callable[..., Any]) -> Maker:
  """A loss of single positions, of one width."""

  def of_pair(apply, x: Pair):
    return loss(apply(x.own), x.other, where=x.where, reduce_fn=totals)

  return learned(losses.projector, of_pair)


def _chosen(x: Pair, count: int, own: Array | None = None) -> tuple[Array, Array, Array]:
  """Both features and `where` of some positions of every row."""
  places = sample_places(x.batch, x.where.shape[1], count)
  return (
    at_places(places, x.own if own is None else own),
    at_places(places, x.other),
    at_places(places, x.where),
  )


def _related(loss: Callable[..., Any], count: int = RELATED) -> Maker:
  """A loss that compares positions with each other, of any two widths."""

  def of_pair(x: Pair):
    own, other, where = _chosen(x, count)
    return loss(own, other, where=where, reduce_fn=totals)

  return fixed(of_pair)


def _variational(apply, x: Pair):
  mean, variance = apply(x.own)
  return losses.variational_loss(mean, variance, x.other, where=x.where, reduce_fn=totals)


def _experts(narrow: int, wide: int) -> losses.Helper:
  return losses.experts(narrow, wide, EXPERTS)


def _expert_hint(apply, x: Pair) -> Mean:
  key = jax.random.key(x.batch["noise"][0])
  temperature = losses.expert_temperature(x.batch["progress"][0])
  own = apply(x.own, x.other, key=key, temperature=temperature, where=x.where)
  return losses.hint_loss(own, x.other, where=x.where, reduce_fn=totals)


def _group_topology(spec: LossSpec, view: View):
  """HTD: the groups are those of the experts, which learn them by their hint."""

  def term(params, student, teacher, batch):
    x = pair_of(spec, view, student, teacher, batch)
    own, other, where = _chosen(x, RELATED)
    chosen = x._replace(own=own, other=other, where=where)
    hint = _expert_hint(functools.partial(_experts(*x.widths).apply, params), chosen)
    groups = losses.expert_groups(params, other)
    topology = losses.group_topology_loss(
      own, other, groups, num_groups=EXPERTS, where=where, reduce_fn=totals
    )
    return Mean(topology.total + hint.total, hint.count)

  return learned(_experts, _expert_hint)(spec, view)._replace(loss=term)


def _info_nce(apply, x: Pair):
  own, other, where = _chosen(x, RELATED, apply(x.own))
  return losses.info_nce_loss(own, other, where=where, reduce_fn=totals)


def _contrastive(x: Pair):
  """Student against itself: positions with one label attract each other."""
  places = sample_places(x.batch, x.where.shape[1], RELATED)
  labels = jnp.broadcast_to(x.labels, x.where.shape)
  own, labels, where = (at_places(places, v) for v in (x.own, labels, x.where))
  return losses.contrastive_loss(own, labels, where=where, reduce_fn=totals)


def _crd(spec: LossSpec, view: View):
  """Each row's last position against the remembered ones of other rows."""

  def last(x: Pair) -> tuple[Array, Array, Array]:
    """Both embeddings `[B, d]`, and bool `[B]`, whether there is such a position."""
    index = jnp.argmax(jnp.where(x.where, jnp.arange(x.where.shape[1])[None], -1), axis=1)[:, None]
    return (
      at_places(index, x.own),
      at_places(index, x.other),
      jnp.any(x.where, axis=1),
    )

  def embeddings(params, student, teacher, batch):
    x = pair_of(spec, view, student, teacher, batch)
    own, other, where = last(x)
    return losses.projector(*x.widths).apply(params, own), other, where

  def init(key, student, teacher):
    return losses.projector(*widths_of(spec, student, teacher)).init(key)

  def init_memory(key, student, teacher):
    _, width = widths_of(spec, student, teacher)
    return losses.init_memory(key, num_examples=view.num_rows, dim=width)

  def change(memory, params, student, teacher, batch):
    own, other, where = embeddings(params, student, teacher, batch)
    after = losses.update_memory(memory, own, other, batch["row"], where=where)
    return jax.tree.map(jnp.subtract, after, memory)

  def term(memory, params, student, teacher, batch):
    own, _, where = embeddings(params, student, teacher, batch)
    ids = losses.contrast_ids(
      jax.random.key(batch["noise"][0]),
      batch["row"],
      num_examples=view.num_rows,
      num_negatives=min(NEGATIVES, view.num_rows - 1),
    )
    normalizer = losses.memory_normalizer(own, memory.teacher, ids, where=where)
    return losses.crd_loss(
      own, memory.teacher, ids, normalizer=normalizer, where=where, reduce_fn=totals
    )

  return Term(spec.term, term, init=init, memory=Memory(init_memory, change))


# Any model has features, with positions or without.
FEATURES: Mapping[str, Maker] = {
  "hint": _projected(losses.hint_loss),
  "cosine_feature": _projected(losses.cosine_feature_loss),
  "patient": _projected(losses.patient_loss),
  "activation_boundary": _projected(losses.activation_boundary_loss),
  "overhaul": _projected(losses.overhaul_loss),
  "variational": learned(losses.variational_regressor, _variational),
  "experts": learned(_experts, _expert_hint),
  "rkd_distance": _related(losses.rkd_distance_loss),
  "rkd_angle": _related(losses.rkd_angle_loss, TRIPLES),
  "similarity_preserving": _related(losses.similarity_preserving_loss),
  "correlation_congruence": _related(losses.correlation_congruence_loss),
  "probabilistic_transfer": _related(losses.probabilistic_transfer_loss),
  "cka": _related(losses.cka_loss),
  "topology": _related(losses.topology_loss),
  "group_topology": _group_topology,
  "info_nce": learned(losses.projector, _info_nce),
  "crd": _crd,
  "contrastive": fixed(_contrastive),
}
