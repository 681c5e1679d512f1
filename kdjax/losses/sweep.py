"""Cross-entropy and forward KL over a catalogue in one sweep, with their gradients.

The reductions that people train with give every token a weight known beforehand. Then the gradients
are taken in the sweep that computes the loss, and the backward pass only scales them.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax.losses.blocks import (
  Blocks,
  Gradients,
  Stats,
  Sums,
  add_found,
  block_gradients,
  block_logits,
  no_sums,
  over_tokens,
  scan_items,
  worth_keeping,
)
from kdjax.losses.exponentials import exp, taken_once
from kdjax.losses.fused import Swept
from kdjax.tree import vary_as
from kdjax.types import Array, FactoredLogits

_FILTERED_TOKENS = 256  # At most, in a block that may be left out.


class Target(NamedTuple):
  """What the student's softmax is compared with: labels, a teacher, or both at once.

  Attributes:
    labels: int `[T]`, or None.
    teacher: query `[T, d_t]`, table `[V, d_t]` (or a `Table`) and bias, or None.
  """

  labels: Array | None = None
  teacher: FactoredLogits | None = None


class Mix(NamedTuple):
  """The loss of a token with logits `u`: `label CE(temperature u) + teacher scale KL(u)`.

  A temperature of None is 1: both parts then share one softmax.
  """

  label: Array | float = 1.0
  teacher: Array | float = 1.0
  scale: Array | float = 1.0
  temperature: Array | float | None = None

  @property
  def own(self) -> str:
    """The softmax that the labels are compared with."""
    return "student" if self.temperature is None else "unscaled"

  @property
  def label_slope(self) -> Array | float:
    """The gradient of a token's loss by the cross-entropy's softmax of `u`."""
    return self.label if self.temperature is None else self.label * self.temperature


class Losses(NamedTuple):
  """Cross-entropy and scaled KL of every token, float32 `[T]`; None without such a target."""

  label: Any
  teacher: Any

  def mixed(self, mix: Mix) -> Array:
    """The loss of each token."""
    parts = zip((mix.label, mix.teacher), self, strict=True)
    return functools.reduce(jnp.add, [share * x for share, x in parts if x is not None])


class Part(NamedTuple):
  """What some of the items say of every token, `[T, 1]`; by the name of a softmax where a dict.

  Attributes:
    tops: the largest logit.
    totals: sum of exp(z - top).
    label: the label's logit, 0 where it is none of them; or None.
    gap: sum of exp(t - top) (t - s - their tops) over the teacher's and the student's; or None.
  """

  tops: dict[str, Array]
  totals: dict[str, Array]
  label: Array | None
  gap: Array | None


class Known(NamedTuple):
  """What a second sweep need not find again.

  Attributes:
    stats: of the softmaxes, by name.
    masses: float32 `[T, n]` by name, of each block of items; None where nothing is filtered.
    losses: of the tokens.
  """

  stats: dict[str, Stats]
  masses: dict[str, Array] | None
  losses: Losses


# Compiled as one program even where the caller runs op by op.
@functools.partial(jax.jit, static_argnames=("blocks", "with_grads", "filter_eps"))
def sweep(
  blocks: Blocks,
  student: FactoredLogits,
  given: tuple[Target, Mix],
  weight,
  known,
  *,
  with_grads,
  filter_eps: float | None = None,
) -> Swept:
  """Cross-entropy, KL or both: a `kdjax.losses.fused.Sweep` once it has its blocks.

  With `filter_eps`, a block of items gives no gradient to a block of tokens of which none has in
  any of its softmaxes as much mass there as `filter_eps` times the block's share of the catalogue.
  """
  (query, table, bias), (target, mix) = student, given
  if filter_eps is not None:
    # The fewer tokens, the likelier are blocks without gradient, which must lose no labels.
    blocks = blocks._replace(tokens=min(blocks.tokens, _FILTERED_TOKENS), direct=False)
  if target.labels is not None:
    target = target._replace(labels=blocks.own(target.labels, student.num_items))

  def step(carry, x):
    (query, labels, teacher_query, known), weight = x
    student = FactoredLogits(query, table, bias)
    teacher = target.teacher and target.teacher._replace(query=teacher_query)
    own = Target(labels, teacher)
    known, d_query, carry = _tokens(student, own, mix, weight, known, carry, blocks, filter_eps)
    return carry, (known, d_query)

  sums, room = None, {}
  if with_grads:
    sums = no_sums(table, bias, blocks, query, target, mix, weight)
    if known is None:
      room = _room(student, target, mix, blocks)
    room = vary_as(room, student, target, mix, weight)
  teacher_query = None if target.teacher is None else target.teacher.query
  tokens = (query, target.labels, teacher_query, known)
  (sums, _), (known, d_query) = over_tokens(step, blocks, tokens, weight, (sums, room))
  found = Swept(known.losses.mixed(mix), known.losses, known)
  if sums is None:
    return found
  grads = Gradients(d_query, *sums)
  if target.labels is not None and not blocks.direct:
    grads = _minus_labels(grads, query, table, target.labels, weight * mix.label_slope)
  return found._replace(grads=grads._replace(query=blocks.total(grads.query)))


def _shares(target: Target, mix: Mix) -> dict[str, Any]:
  """A softmax by name, each with its share of the gradient by the logits `u`."""
  shares = {}
  if target.teacher is not None:
    share = mix.teacher * mix.scale
    shares = {"student": share, "teacher": -share}
  if target.labels is not None:
    shares[mix.own] = shares.get(mix.own, 0.0) + mix.label_slope
  return shares


def _room(student: FactoredLogits, target: Target, mix: Mix, blocks: Blocks) -> dict[str, Array]:
  """Where exponentials `[n, T, items]` of all blocks are kept: by name, of those worth it.

  Blocks of tokens write to it in turn, for making room anew would fill it with zeros each time.
  """
  if not blocks.keep or blocks.items == student.num_items:
    return {}
  shape = (-(-student.num_items // blocks.items), blocks.tokens, blocks.items)
  models = dict.fromkeys(_shares(target, mix), student)
  if target.teacher is not None:
    models["teacher"] = target.teacher
  return {name: jnp.zeros(shape) for name, model in models.items() if worth_keeping(model)}


def _tokens(
  student: FactoredLogits,
  target: Target,
  mix: Mix,
  weight: Array,
  known: Any,
  carry: tuple[Sums | None, dict[str, Array]],
  blocks: Blocks,
  filter_eps: float | None,
):
  """A block of tokens against all items: what is known, d_query, and the carry.

  That is the sums, with its share added, and the room for exponentials.
  """
  num_items, size = student.num_items, blocks.items
  (labels, teacher), (sums, room) = target, carry
  shares = _shares(target, mix)

  def all_logits(start, names=shares):
    logits = {}
    if {"student", "unscaled"} & set(names):
      logits["student"] = block_logits(student, start, size)
    if mix.temperature is not None and "unscaled" in names:
      logits["unscaled"] = logits["student"] * mix.temperature
    if teacher is not None and "teacher" in names:
      logits["teacher"] = block_logits(teacher, start, size)
    return {name: logits[name] for name in names}

  def exponentials(logits, tops, fresh):
    powers = {name: exp(z - tops[name]) for name, z in logits.items()}
    if fresh is not True:
      powers = {name: jnp.where(fresh, p, 0.0) for name, p in powers.items()}
    return powers

  def look(room, start, fresh, i):
    logits = all_logits(start)
    # Of items seen before too: any top will do that no logit exceeds.
    tops = jax.tree.map(lambda z: jnp.max(z, axis=-1, keepdims=True), logits)
    powers = taken_once(exponentials(logits, tops, fresh))
    totals = jax.tree.map(lambda p: jnp.sum(p, axis=-1, keepdims=True), powers)
    label = None if labels is None else _label_logit(logits[mix.own], labels - start, fresh)
    gap = None
    if teacher is not None:
      gap = powers["teacher"] * (logits["teacher"] - logits["student"])
      gap = jnp.sum(gap, axis=-1, keepdims=True)
      gap -= totals["teacher"] * (tops["teacher"] - tops["student"])
    if size == num_items:
      room = {name: p[None] for name, p in powers.items()}
    else:
      room = {
        name: jax.lax.dynamic_update_index_in_dim(kept, powers[name], i, 0)
        for name, kept in room.items()
      }
    return room, Part(tops, totals, label, gap)

  count = -(-num_items // size)
  scales = {}
  if known is None:
    room, parts = scan_items(look, num_items, size, room, jnp.arange(count))
    known, scales = _join(parts, mix, blocks, filter_eps)
  left = {} if size == num_items else room
  if sums is None:
    return known, None, (None, left)
  slopes = {name: share * weight[:, None] / known.stats[name][1] for name, share in shares.items()}
  kept_slopes = {name: slopes[name][None] * scales[name] for name in room}

  def gradients(start, fresh, i):
    tops = {name: known.stats[name][0] for name in slopes if name not in room}
    again = exponentials(all_logits(start, tops), tops, fresh)
    parts = [part * slopes[name] for name, part in again.items()]
    parts += [kept[i] * kept_slopes[name][i] for name, kept in room.items()]
    if labels is not None and blocks.direct:
      found = ((start + jnp.arange(size))[None] == labels[:, None]) & fresh
      parts.append(jnp.where(found, -mix.label_slope * weight[:, None], 0.0))
    return block_gradients(student, start, functools.reduce(jnp.add, parts))

  bias = None if student.bias is None else jnp.zeros(size)
  nothing = Gradients(
    jnp.zeros(student.query.shape), jnp.zeros((size, student.query.shape[1])), bias
  )
  nothing = vary_as(nothing, student, target, mix, weight)

  def add(carry, start, fresh, x):
    (d_query, sums), (i, tiny) = carry, x
    if filter_eps is None:
      found = gradients(start, fresh, i)
    else:
      # The sums stay outside, for a branch that passes them on would copy them.
      found = jax.lax.cond(tiny, lambda: nothing, lambda: gradients(start, fresh, i))
    return add_found(d_query, sums, start, found), None

  tiny = None
  if filter_eps is not None:
    items = jnp.minimum(size, num_items - size * jnp.arange(count))
    least = filter_eps * items / blocks.total(jnp.asarray(num_items, jnp.float32))
    small = [
      jnp.all((mass < least[None]) | (weight == 0)[:, None], 0) for mass in known.masses.values()
    ]
    tiny = functools.reduce(jnp.logical_and, small)
  carry = (nothing.query, vary_as(sums, student, target, mix, weight))
  (d_query, sums), _ = scan_items(add, num_items, size, carry, (jnp.arange(count), tiny))
  return known, d_query, (sums, left)


def _join(parts: Part, mix: Mix, blocks: Blocks, filter_eps):
  """`Known`, and exp(top of a block - top) `[n, T, 1]` by name, from the parts of all blocks."""
  local = {}
  for name, tops in parts.tops.items():
    top = jnp.max(tops, axis=0)
    local[name] = top, jnp.sum(parts.totals[name] * jnp.exp(tops - top[None]), axis=0)
  stats = blocks.joined(local)
  lower = {name: parts.tops[name] - top[None] for name, (top, _) in stats.items()}
  scales = jax.tree.map(jnp.exp, lower)
  logs = {name: jnp.log(total[:, 0]) for name, (_, total) in stats.items()}
  losses = Losses(None, None)
  if parts.label is not None:
    logit = blocks.total(jnp.sum(parts.label, axis=0))
    losses = losses._replace(label=(stats[mix.own][0] - logit)[:, 0] + logs[mix.own])
  if parts.gap is not None:
    gap = parts.gap + parts.totals["teacher"] * (lower["teacher"] - lower["student"])
    gap = blocks.total(jnp.sum(scales["teacher"] * gap, axis=0)) / stats["teacher"][1]
    kl = gap[:, 0] + logs["student"] - logs["teacher"]
    losses = losses._replace(teacher=mix.scale * kl)
  masses = None
  if filter_eps is not None:
    masses = {
      name: (parts.totals[name] * scales[name] / total[None])[..., 0].T
      for name, (_, total) in stats.items()
    }
  return Known(stats, masses, losses), scales


def _label_logit(logits, columns, fresh) -> Array:
  """The logit of the label, 0 where the label is in another block; `[T, 1]`."""
  inside = (columns >= 0) & (columns < logits.shape[1])
  columns = jnp.where(inside, columns, 0)[:, None]
  if fresh is not True:
    inside &= fresh[0][columns[:, 0]]
  return jnp.where(inside[:, None], jnp.take_along_axis(logits, columns, axis=1), 0.0)


def _minus_labels(grads: Gradients, query, table, labels, weight) -> Gradients:
  """p - onehot(label): the second half touches one row a token, so it needs no matrix."""
  column = weight[:, None]
  d_query = grads.query - column * table.at[labels].get(mode="fill", fill_value=0)
  d_table = grads.table.at[labels].add(-column * query, mode="drop")
  d_bias = None if grads.bias is None else grads.bias.at[labels].add(-weight, mode="drop")
  return Gradients(d_query, d_table, d_bias)
