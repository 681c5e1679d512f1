"""The features that entries of --distill_losses compare, and what every term on them is made of.

`name@student_feature=teacher_feature` says which; without it they are the queries, or the last
hidden layer of a model that has none. `item` is the label's row of the item table, where there is
one. Widths may differ: where a loss needs one width, a projector is learned with the student.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.loss_flags import LossSpec
from experiments.loss_view import Maker, View, feature, positions_like, with_positions
from kdjax import losses
from kdjax.train.objective import Term
from kdjax.types import Array, Batch, FactoredLogits, Outputs

ITEM = "item"


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


def _default(outputs: Outputs) -> str:
  return "query" if "query" in outputs.features else max(outputs.features, default="query")


def _names(spec: LossSpec, student: Outputs, teacher: Outputs) -> tuple[str, str]:
  return spec.student_feature or _default(student), spec.teacher_feature or _default(teacher)


def _read(outputs: Outputs, name: str, whose: str, items: Array) -> Array:
  """The features called so, or the rows of the items."""
  if name == ITEM and isinstance(outputs.logits, FactoredLogits):
    return outputs.logits.rows(items)
  return with_positions(feature(outputs, name, whose))


def pair_of(spec: LossSpec, view: View, student: Outputs, teacher: Outputs, batch: Batch) -> Pair:
  """What an entry compares.

  Raises:
    ValueError: if a model has no such features, or they differ in more than their width.
  """
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
  real = positions_like(own, view.real(batch))
  # What has positions of its own, as the tokens of a text with one label, counts where they exist.
  where = view.where(batch)
  where = where if where.shape == own.shape[:2] else real
  return Pair(own, other, where, real, view.labels(batch), batch)


def widths_of(spec: LossSpec, student: Outputs, teacher: Outputs) -> tuple[int, int]:
  """What a learned part is made for; known from shapes alone."""

  def width(outputs: Outputs, name: str, whose: str) -> int:
    if name == ITEM and isinstance(outputs.logits, FactoredLogits):
      return outputs.logits.table.shape[-1]
    return feature(outputs, name, whose).shape[-1]

  own, other = _names(spec, student, teacher)
  return width(student, own, "student"), width(teacher, other, "teacher")


def fixed(loss: Callable[[Pair], Any]) -> Maker:
  """A loss that learns nothing of its own."""

  def make(spec: LossSpec, view: View):
    return Term(
      spec.term,
      lambda student, teacher, batch: loss(pair_of(spec, view, student, teacher, batch)),
    )

  return make


def learned(helper: Callable[[int, int], losses.Helper], loss: Callable[..., Any]) -> Maker:
  """`loss(apply, pair)` with the `apply` of a helper made for both widths."""

  def make(spec: LossSpec, view: View):
    def init(key, student, teacher):
      return helper(*widths_of(spec, student, teacher)).init(key)

    def term(params, student, teacher, batch):
      pair = pair_of(spec, view, student, teacher, batch)
      return loss(functools.partial(helper(*pair.widths).apply, params), pair)

    return Term(spec.term, term, init=init)

  return make
