"""--distill_losses on features: position by position, positions against each other, or whole maps.

`name@student_feature=teacher_feature` says which; without it they are the queries, or the last
hidden layer of a model that has none. `item` is the label's row of the item table, where there is
one; losses of attention are given the name of a block. Widths may differ: where a loss needs one
width, a projector is learned with the student.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.loss_flags import LossSpec
from experiments.loss_view import (
  Maker,
  View,
  at_places,
  feature,
  positions_like,
  sample_places,
  with_positions,
)
from kdjax import losses
from kdjax.reduce import Mean, totals
from kdjax.train.objective import Memory, Term
from kdjax.types import Array, Batch, FactoredLogits, Outputs

RELATED = 2  # Positions of a row that are compared with those of the other rows by twos,
TRIPLES = 1  # and by threes.
EXPERTS = 8  # Distillation experts, and groups of alike positions.
HEADS = 4  # Relation heads, at most.
NEGATIVES = 256  # Remembered embeddings that one is contrasted with, at most.


class Pair(NamedTuple):
  """The features that an entry compares.

  Attributes:
    own: float `[B, P, ..., d_s]`, the student's.
    other: float `[B, P, ..., d_t]`, the teacher's.
    where: bool `[B, P]`, the positions that count.
    real: bool `[B, P]`, the positions that exist.
    labels: int `[B, P]`, or `[B, 1]` where features have positions of their own.
    batch: all of it.
  """

  own: Array
  other: Array
  where: Array
  real: Array
  labels: Array
  batch: Batch

  @property
  def widths(self) -> tuple[int, int]:
    """d_s and d_t."""
    return self.own.shape[-1], self.other.shape[-1]


ITEM = "item"


def _default(outputs: Outputs) -> str:
  return "query" if "query" in outputs.features else max(outputs.features, default="query")


def _names(spec: LossSpec, student: Outputs, teacher: Outputs) -> tuple[str, str]:
  return spec.student_feature or _default(student), spec.teacher_feature or _default(teacher)


def _read(outputs: Outputs, name: str, whose: str, items: Array) -> Array:
  """The features called so, or the rows of the items."""
  if name == ITEM and isinstance(outputs.logits, FactoredLogits):
    return jnp.asarray(outputs.logits.table)[items]
  return with_positions(feature(outputs, name, whose))


def _pair(spec: LossSpec, view: View, student: Outputs, teacher: Outputs, batch: Batch) -> Pair:
  items = view.items(batch)
  own, other = (
    _read(outputs, name, whose, items)
    for outputs, name, whose in zip(
      (student, teacher), _names(spec, student, teacher), ("student", "teacher"), strict=True
    )
  )
  if own.shape[:-1] != other.shape[:-1]:
    raise ValueError(
      f"--distill_losses: {spec.term!r} compares features of shapes {own.shape} and {other.shape}, "
      "which may differ in the last axis only"
    )
  where, real = (positions_like(own, of(batch)) for of in (view.where, view.real))
  return Pair(own, other, where, real, view.labels(batch), batch)


def _widths(spec: LossSpec, student: Outputs, teacher: Outputs) -> tuple[int, int]:
  """What a learned part is made for; known from shapes alone."""

  def width(outputs: Outputs, name: str, whose: str) -> int:
    if name == ITEM and isinstance(outputs.logits, FactoredLogits):
      return outputs.logits.table.shape[-1]
    return feature(outputs, name, whose).shape[-1]

  own, other = _names(spec, student, teacher)
  return width(student, own, "student"), width(teacher, other, "teacher")


def _fixed(loss: Callable[[Pair], Any]) -> Maker:
  """A loss that learns nothing of its own."""

  def make(spec: LossSpec, view: View):
    return Term(
      spec.term,
      lambda student, teacher, batch: loss(_pair(spec, view, student, teacher, batch)),
    )

  return make


def _learned(helper: Callable[[int, int], losses.Helper], loss: Callable[..., Any]) -> Maker:
  """`loss(apply, pair)` with the `apply` of a helper made for both widths."""

  def make(spec: LossSpec, view: View):
    def init(key, student, teacher):
      return helper(*_widths(spec, student, teacher)).init(key)

    def term(params, student, teacher, batch):
      pair = _pair(spec, view, student, teacher, batch)
      return loss(functools.partial(helper(*pair.widths).apply, params), pair)

    return Term(spec.term, term, init=init)

  return make


def _projected(loss: Callable[..., Any]) -> Maker:
  """A loss of single positions, of one width."""

  def of_pair(apply, x: Pair):
    return loss(apply(x.own), x.other, where=x.where, reduce_fn=totals)

  return _learned(losses.projector, of_pair)


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

  return _fixed(of_pair)


def _whole(loss: Callable[..., Any], **options: Any):
  """A loss of whole rows, whose positions are those of a map."""

  def of_pair(x: Pair, own: Array | None = None):
    rows = jnp.any(x.real, axis=1)
    own = x.own if own is None else own
    return loss(own, x.other, support=x.real, where=rows, reduce_fn=totals, **options)

  return of_pair


def _projected_map(loss: Callable[..., Any], **options: Any) -> Maker:
  whole = _whole(loss, **options)
  return _learned(losses.projector, lambda apply, x: whole(x, apply(x.own)))


def _context(apply, x: Pair):
  """Empty positions, which this loss does not know, are equal on both sides."""
  own, other = (jnp.where(x.real[..., None], v, 0.0) for v in (apply(x.own), x.other))
  rows = jnp.any(x.real, axis=1)
  return losses.hierarchical_context_loss(own, other, where=rows, reduce_fn=totals)


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
    x = _pair(spec, view, student, teacher, batch)
    own, other, where = _chosen(x, RELATED)
    chosen = x._replace(own=own, other=other, where=where)
    hint = _expert_hint(functools.partial(_experts(*x.widths).apply, params), chosen)
    groups = losses.expert_groups(params, other)
    topology = losses.group_topology_loss(own, other, groups, where=where, reduce_fn=totals)
    return Mean(topology.total + hint.total, hint.count)

  return _learned(_experts, _expert_hint)(spec, view)._replace(loss=term)


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
    x = _pair(spec, view, student, teacher, batch)
    own, other, where = last(x)
    return losses.projector(*x.widths).apply(params, own), other, where

  def init(key, student, teacher):
    return losses.projector(*_widths(spec, student, teacher)).init(key)

  def init_memory(key, student, teacher):
    _, width = _widths(spec, student, teacher)
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


def _factor_transfer(spec: LossSpec, view: View):
  """Paraphraser and translator learn together: the student's factors do not reach the teacher's."""

  def helpers(narrow: int, wide: int):
    factors = max(1, wide // 2)
    return {
      "translator": losses.factor_encoder(narrow, factors, spatial_ndim=1),
      "paraphraser": losses.factor_encoder(wide, factors, spatial_ndim=1),
      "decoder": losses.factor_decoder(factors, wide, spatial_ndim=1),
    }

  def init(key, student, teacher):
    parts = helpers(*_widths(spec, student, teacher))
    keys = jax.random.split(key, len(parts))
    return {name: part.init(k) for (name, part), k in zip(parts.items(), keys, strict=True)}

  def term(params, student, teacher, batch):
    x = _pair(spec, view, student, teacher, batch)
    parts = helpers(*x.widths)
    own, other = (jnp.where(x.real[..., None], v, 0.0) for v in (x.own, x.other))
    rows = jnp.any(x.real, axis=1)
    factors = parts["paraphraser"].apply(params["paraphraser"], other)
    back = parts["decoder"].apply(params["decoder"], factors)
    translated = parts["translator"].apply(params["translator"], own)
    transfer = losses.factor_transfer_loss(translated, factors, where=rows, reduce_fn=totals)
    hints = losses.hint_loss(back, other, where=x.real, reduce_fn=None)
    paraphrase = totals(jnp.sum(hints, axis=1) / jnp.maximum(jnp.sum(x.real, axis=1), 1))
    return Mean(transfer.total + paraphrase.total, transfer.count)

  return Term(spec.term, term, init=init)


def _fsp(spec: LossSpec, view: View):
  """The flow from the embeddings to the features that are named."""

  def init(key, student, teacher):
    first, last = jax.random.split(key)
    embeddings = spec._replace(student_feature="embedding", teacher_feature="embedding")
    return {
      "first": losses.projector(*_widths(embeddings, student, teacher)).init(first),
      "last": losses.projector(*_widths(spec, student, teacher)).init(last),
    }

  def term(params, student, teacher, batch):
    x = _pair(spec, view, student, teacher, batch)
    embeddings = spec._replace(student_feature="embedding", teacher_feature="embedding")
    first = _pair(embeddings, view, student, teacher, batch)
    own = losses.projector(*first.widths).apply(params["first"], first.own)
    last = losses.projector(*x.widths).apply(params["last"], x.own)
    return losses.fsp_loss(
      *(own, last, first.other, x.other),
      support=x.real,
      where=jnp.any(x.real, axis=1),
      reduce_fn=totals,
    )

  return Term(spec.term, term, init=init)


def _last_block(outputs: Outputs, suffix: str, whose: str) -> str:
  found = [name for name in outputs.features if name.endswith(suffix)]
  if not found:
    raise ValueError(f"--distill_losses: the {whose} has no attention to compare")
  return max(found, key=lambda name: int(name.split("_")[1])).removesuffix(suffix)


def _blocks(spec: LossSpec, student: Outputs, teacher: Outputs) -> tuple[str, str]:
  """The blocks that are named, the last ones by default."""
  return (
    spec.student_feature or _last_block(student, "_values", "student"),
    spec.teacher_feature or _last_block(teacher, "_values", "teacher"),
  )


def _attention(parts: tuple[str, ...], loss: Callable[..., Any]) -> Maker:
  """`loss(*student_parts, *teacher_parts, where, support)` on parts of a block's attention."""

  def make(spec: LossSpec, view: View):
    def term(student, teacher, batch):
      own, other = _blocks(spec, student, teacher)
      args = [feature(student, f"{own}_{part}", "student") for part in parts]
      args += [feature(teacher, f"{other}_{part}", "teacher") for part in parts]
      return loss(*args, where=view.real(batch), support=view.attends(batch))

    return Term(spec.term, term)

  return make


def _attention_mse(own, other, *, where, support):
  # Heads are averaged: there may be another number of them.
  own, other = own.mean(axis=1), other.mean(axis=1)
  return losses.attention_mse_loss(own, other, where=where, support=support, reduce_fn=totals)


def _relations(loss):
  def of_parts(*args, where, support):
    heads = functools.reduce(math.gcd, (x.shape[-1] for x in args), HEADS)
    return loss(*args, num_heads=heads, where=where, support=support, reduce_fn=totals)

  return of_parts


# Any model has features, with positions or without.
ANY: Mapping[str, Maker] = {
  "hint": _projected(losses.hint_loss),
  "cosine_feature": _projected(losses.cosine_feature_loss),
  "patient": _projected(losses.patient_loss),
  "activation_boundary": _projected(losses.activation_boundary_loss),
  "overhaul": _projected(losses.overhaul_loss),
  "variational": _learned(losses.variational_regressor, _variational),
  "experts": _learned(_experts, _expert_hint),
  "rkd_distance": _related(losses.rkd_distance_loss),
  "rkd_angle": _related(losses.rkd_angle_loss, TRIPLES),
  "similarity_preserving": _related(losses.similarity_preserving_loss),
  "correlation_congruence": _related(losses.correlation_congruence_loss),
  "probabilistic_transfer": _related(losses.probabilistic_transfer_loss),
  "cka": _related(losses.cka_loss),
  "topology": _related(losses.topology_loss),
  "group_topology": _group_topology,
  "info_nce": _learned(losses.projector, _info_nce),
  "crd": _crd,
  "contrastive": _fixed(_contrastive),
}
# What follows needs positions that belong together: a history.
MAPS: Mapping[str, Maker] = {
  "attention_transfer": _fixed(_whole(losses.attention_transfer_loss)),
  "neuron_selectivity": _fixed(_whole(losses.neuron_selectivity_loss)),
  "channel_correlation": _projected_map(losses.channel_correlation_loss, unit_rows=True),
  "hierarchical_context": _learned(losses.projector, _context),
  "factor_transfer": _factor_transfer,
  "fsp": _fsp,
  "attention_mse": _attention(("attention",), _attention_mse),
  "attention_relation": _attention(("queries", "keys"), _relations(losses.attention_relation_loss)),
  "self_relation": _attention(("values",), _relations(losses.self_relation_loss)),
}
