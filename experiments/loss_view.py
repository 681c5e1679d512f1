"""What a task shows to the losses of --distill_losses, in one shape for all tasks.

Everything has positions `[B, P]`: those of a packed row of histories, or one (P = 1) for a pair or
a click. Losses that rank candidates or compare positions with each other get some positions of
every row, fresh in every step: their cost grows with candidates or with pairs. Which ones depends
on the row alone, so that micro-batches and devices, which split the rows, together see those of the
whole batch, and totals over counts stay means.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from experiments.loss_flags import LossSpec
from kdjax import losses
from kdjax.train.objective import Term
from kdjax.types import Array, Batch, FactoredLogits, Outputs


class DenseLogits(NamedTuple):
  """Logits that are there already, with the methods of `FactoredLogits`.

  Attributes:
    values: float32 `[..., C]`.
  """

  values: Array

  @property
  def num_items(self) -> int:
    """C."""
    return self.values.shape[-1]

  def dense(self) -> Array:
    """All logits."""
    return self.values

  def at(self, ids: Array) -> Array:
    """Those of candidates: `ids` int `[..., n]` to float32 `[..., n]`."""
    return jnp.take_along_axis(self.values, ids, axis=-1)


Logits = FactoredLogits | DenseLogits


class View(NamedTuple):
  """How a task's batches and outputs are read.

  Attributes:
    logits: `(outputs, batch) -> Logits` of `[B, P]` positions.
    labels: `(batch) -> int [B, P]`, the right class; any number where it does not count.
    items: `(batch) -> int [B, P]`, the item that belongs there; any where it does not count.
    where: `(batch) -> bool [B, P]`, the positions with a label.
    real: `(batch) -> bool [B, P]`, the positions that exist.
    num_rows: how many rows the training has.
    groups: `(batch, places, ids int [n, k]) -> int [n, k]`, the group of like popularity of each
      candidate at each of the n chosen places; all are one by default.
    attends: `(batch) -> bool [B, P, P]`, which key a query sees; those that exist by default.
    temperature: of the losses that have one.
    negatives: `(batch) -> losses.Negatives`, which tell what the student gives to all that a
      teacher's best leave out; None to sum over the whole catalogue.
  """

  logits: Callable[[Outputs, Batch], Logits]
  labels: Callable[[Batch], Array]
  items: Callable[[Batch], Array]
  where: Callable[[Batch], Array]
  real: Callable[[Batch], Array]
  num_rows: int
  groups: Callable[[Batch, Array, Array], Array] = lambda batch, places, ids: jnp.zeros_like(ids)
  attends: Callable[[Batch], Array | None] = lambda batch: None
  temperature: float = 1.0
  negatives: Callable[[Batch], losses.Negatives] | None = None

  def of_rest(self, teacher: Any, batch: Batch) -> dict[str, Any]:
    """Options of a loss on a teacher's best: the negatives, where there are any."""
    if self.negatives is None or not isinstance(teacher, losses.TopK):
      return {}
    return {"negatives": self.negatives(batch)}


# Its weight, and which teacher it gets, are set by `loss_terms`.
Maker = Callable[[LossSpec, View], Term]


def sample_places(batch: Batch, length: int, count: int) -> Array:
  """Some places of each row, evenly spread from a random start: int `[B, count]`."""
  count = min(count, length)
  start = (batch["noise"] % length).astype(jnp.int32)
  steps = (jnp.arange(count) * length) // count
  return (start[:, None] + steps[None]) % length


def at_places(places: Array, values: Array) -> Array:
  """`[B, P, ...]` to `[B * count, ...]`."""
  places = places.reshape(*places.shape, *[1] * (values.ndim - 2))
  chosen = jnp.take_along_axis(values, places, axis=1)
  return chosen.reshape(-1, *values.shape[2:])


def logits_at(places: Array, logits: Logits) -> Logits:
  """Logits `[B, P]` to those of `[B * count]`."""
  if isinstance(logits, FactoredLogits):
    return FactoredLogits(at_places(places, logits.query), logits.table, logits.bias)
  return DenseLogits(at_places(places, logits.values))


def feature(outputs: Outputs, name: str, whose: str) -> Array:
  """The activations called so.

  Raises:
    ValueError: naming those that there are.
  """
  if name not in outputs.features:
    known = ", ".join(sorted(outputs.features)) or "none"
    alone = whose == "teacher" and set(outputs.features) == {"query"}
    hint = " (with --cache_queries, a teacher keeps its queries alone)" if alone else ""
    if whose == "teacher" and not outputs.features:
      hint = " (a bi_encoder that teaches search keeps query and documents with --cache_queries)"
    raise ValueError(f"--distill_losses: the {whose} has no feature {name!r}; it has {known}{hint}")
  return outputs.features[name]


def with_positions(values: Array) -> Array:
  """Activations `[B, d]` as `[B, 1, d]`; those that have positions as they are."""
  return values if values.ndim > 2 else values[:, None]


def positions_like(values: Array, positions: Array) -> Array:
  """`positions` bool `[B, P]` for activations of the same P, and all for those of another."""
  alike = values.shape[:2] == positions.shape
  return positions if alike else jnp.ones(values.shape[:2], bool)
