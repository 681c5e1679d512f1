"""--distill_losses on whole rows of features: maps, attention, and flows from layer to layer.

Losses of attention are given the name of a block.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.feature_pairs import Pair, fixed, learned, pair_of, widths_of
from experiments.loss_flags import LossSpec
from experiments.loss_view import Maker, View, feature
from kdjax import losses
from kdjax.reduce import Mean, totals
from kdjax.train.objective import Term
from kdjax.types import Array, Outputs

HEADS = 4  # Relation heads, at most.


def _whole(loss: Callable[..., Any], **options: Any):
  """A loss of whole rows, whose positions are those of a map."""

  def of_pair(x: Pair, own: Array | None = None):
    rows = jnp.any(x.real, axis=1)
    own = x.own if own is None else own
    return loss(own, x.other, support=x.real, where=rows, reduce_fn=totals, **options)

  return of_pair


def _projected_map(loss: Callable[..., Any], **options: Any) -> Maker:
  whole = _whole(loss, **options)
  return learned(losses.projector, lambda apply, x: whole(x, apply(x.own)))


def _context(apply, x: Pair):
  """Empty positions, which this loss does not know, are equal on both sides."""
  own, other = (jnp.where(x.real[..., None], v, 0.0) for v in (apply(x.own), x.other))
  rows = jnp.any(x.real, axis=1)
  return losses.hierarchical_context_loss(own, other, where=rows, reduce_fn=totals)


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
    parts = helpers(*widths_of(spec, student, teacher))
    keys = jax.random.split(key, len(parts))
    return {name: part.init(k) for (name, part), k in zip(parts.items(), keys, strict=True)}

  def term(params, student, teacher, batch):
    x = pair_of(spec, view, student, teacher, batch)
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
      "first": losses.projector(*widths_of(embeddings, student, teacher)).init(first),
      "last": losses.projector(*widths_of(spec, student, teacher)).init(last),
    }

  def term(params, student, teacher, batch):
    x = pair_of(spec, view, student, teacher, batch)
    embeddings = spec._replace(student_feature="embedding", teacher_feature="embedding")
    first = pair_of(embeddings, view, student, teacher, batch)
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


# Positions that belong together, a history, are what these need.
MAPS: Mapping[str, Maker] = {
  "attention_transfer": fixed(_whole(losses.attention_transfer_loss)),
  "neuron_selectivity": fixed(_whole(losses.neuron_selectivity_loss)),
  "channel_correlation": _projected_map(losses.channel_correlation_loss, unit_rows=True),
  "hierarchical_context": learned(losses.projector, _context),
  "factor_transfer": _factor_transfer,
  "fsp": _fsp,
  "attention_mse": _attention(("attention",), _attention_mse),
  "attention_relation": _attention(("queries", "keys"), _relations(losses.attention_relation_loss)),
  "self_relation": _attention(("values",), _relations(losses.self_relation_loss)),
}
