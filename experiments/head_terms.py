"""--distill_losses on the heads of a student: its users' profiles, like items, demand."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments.loss_flags import LossSpec
from experiments.loss_view import Maker, View, at_places, feature, logits_at, sample_places
from kdjax import losses
from kdjax.metrics.catalog import top_k
from kdjax.reduce import totals
from kdjax.train.objective import Term
from kdjax.types import Array, FactoredLogits, Outputs

PLACES = 2  # Positions of a row whose items are compared, or whose demand is added up.
SHARPNESS = 10.0  # Of the distribution over like items, as a factor of cosines.
NEAREST = 10


def _head(student: Outputs, name: str) -> Array:
  """What a head says.

  Raises:
    ValueError: naming the flag that gives the student one.
  """
  if name not in student.features:
    flag = {"profile": "profile_dim=64", "similarity": "similarity_dim=16", "demand": "demand"}[
      name
    ]
    raise ValueError(f"--distill_losses: {name} needs a student with that head: give --{flag}")
  return student.features[name]


def _profile(spec: LossSpec, view: View) -> Term:
  """The head's vector is to point where the teacher's query does."""

  def term(student, teacher, batch):
    own, other = _head(student, "profile"), feature(teacher, "query", "teacher")
    if own.shape[-1] != other.shape[-1]:
      raise ValueError(f"--profile_dim={own.shape[-1]}: the teacher's has {other.shape[-1]}")
    return losses.cosine_feature_loss(own, other, where=view.real(batch), reduce_fn=totals)

  return Term(spec.term, term)


def _similarity(spec: LossSpec, view: View) -> Term:
  """Which items of the batch are like each other, as cosines of the teacher's table say."""

  def term(student, teacher, batch):
    real = view.where(batch)
    places = sample_places(batch, real.shape[1], PLACES)
    items, real = (at_places(places, x) for x in (view.items(batch), real))
    pair = _head(student, "similarity"), jnp.asarray(teacher.logits.table)
    own, other = (SHARPNESS * cosines(table[items]) for table in pair)
    others = (items[:, None] != items[None]) & real[None]
    return losses.kl_loss(own, other, support=others, where=real, reduce_fn=totals)

  return Term(spec.term, term)


def _demand(spec: LossSpec, view: View) -> Term:
  """The head's shares are to be those of the teacher's predictions, added up."""

  def term(student, teacher, batch):
    real = view.where(batch)
    places = sample_places(batch, real.shape[1], PLACES)
    probs = jax.nn.softmax(logits_at(places, view.logits(teacher, batch)).dense(), axis=-1)
    own = jnp.broadcast_to(_head(student, "demand"), probs.shape)
    where = at_places(places, real)
    return losses.soft_cross_entropy_loss(own, probs, where=where, reduce_fn=totals)

  return Term(spec.term, term)


HEADS: Mapping[str, Maker] = {"profile": _profile, "similarity": _similarity, "demand": _demand}


def cosines(rows: Array) -> Array:
  """Between all rows of `[n, d]`: float32 `[n, n]`."""
  rows = rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), 1e-6)
  return rows @ rows.T


def nearest(rows: Array, count: int = NEAREST) -> np.ndarray:
  """The items most like each item, itself left out: int `[V, count]`."""
  rows = jnp.asarray(rows, jnp.float32)
  rows = rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), 1e-6)
  own = np.arange(len(rows))
  found = top_k(rows, rows, own, np.arange(len(rows) + 1), k=min(count, len(rows) - 1))
  return np.asarray(found.ids)


def scores(
  heads: Mapping[str, Array], last: np.ndarray, targets: np.ndarray, counts: np.ndarray
) -> dict[str, float]:
  """How well heads do without a teacher's word.

  Args:
    heads: what they say of all items.
    last: int `[n]`, the item that a user had last.
    targets: int `[n]`, one that comes then.
    counts: int `[V]`, how often each item is had then by all.

  Returns:
    `similar_hit@10`, the share of cases where the target is among the ten most like the last item;
    `demand_spearman`, the rank correlation of demand as predicted and as it came.
  """
  found = {}
  if "similarity" in heads:
    hits = (nearest(heads["similarity"])[last] == targets[:, None]).any(axis=1)
    found[f"similar_hit@{NEAREST}"] = float(hits.mean())
  if "demand" in heads:
    found["demand_spearman"] = float(stats.spearmanr(heads["demand"], counts).statistic)
  return found


def agreement(heads: Mapping[str, Any], teacher: FactoredLogits) -> dict[str, float]:
  """How much heads say what the teacher does, of one query a user.

  Returns:
    `profile_cosine`, the mean over users; `similar_overlap@10`, the share of the teacher's ten most
    like items of an item that are among the head's; `demand_agreement`, the rank correlation with
    the teacher's probabilities added up over users.
  """
  found = {}
  if "profile" in heads:
    pair = (np.asarray(heads["profile"]), np.asarray(teacher.query))
    own, other = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6) for x in pair)
    found["profile_cosine"] = float(np.mean(np.sum(own * other, axis=-1)))
  if "similarity" in heads:
    own, other = nearest(heads["similarity"]), nearest(jnp.asarray(teacher.table))
    shared = (own[:, :, None] == other[:, None, :]).any(axis=2)
    found[f"similar_overlap@{NEAREST}"] = float(shared.mean())
  if "demand" in heads:
    share = np.zeros(teacher.num_items)
    for first in range(0, len(teacher.query), 256):
      block = teacher._replace(query=teacher.query[first : first + 256])
      share += np.asarray(jnp.sum(jax.nn.softmax(block.dense(), axis=-1), axis=0))
    found["demand_agreement"] = float(stats.spearmanr(heads["demand"], share).statistic)
  return found
