"""Tokens times items in blocks: what every sweep over a catalogue is made of.

A block of logits is sized to stay in cache. Small catalogues are cut along the tokens only, so that
every exponential is taken once; large ones also along the items. What the gradients need of a block
waits for the log-normaliser: where a few tokens against all items fit in little memory, their
exponentials are kept if the table is wide; elsewhere the logits are computed twice, for memory is
slower than narrow products. Matrix products run in the dtype of their inputs with float32
accumulation.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax.losses.common import FLOOR
from kdjax.losses.exponentials import exp, taken_once
from kdjax.tree import vary_as
from kdjax.types import Array, FactoredLogits

_BLOCK = 2**20  # Logits in a block, 4 MB: measured best on CPUs with 2 MB of L2 a core.
_WHOLE = 16384  # Up to so many items, a block holds the whole catalogue.
_TOKENS = 256  # Tokens in a block otherwise.
_ALIGNED = 64  # Rows of a block of a table: products of odd widths are slower by a fifth.
# Of larger catalogues, so many tokens have the exponentials of all items kept: as many as products
# want that read a table once. Less than an eighth of all tokens, and at most so many numbers.
_KEPT_TOKENS = 128
_KEPT = 2**24
_KEPT_BLOCK = 2**19  # Logits in a block of theirs.
_KEPT_WIDTH = 48  # Of narrower tables, logits cost less to compute again than to keep.
# On GPUs and TPUs, by the cycles that a TPU v5e's compiler expects (`benchmarks.accelerators`); no
# accelerator was timed, and GPUs are taken to be alike. Small catalogues are met whole, each block
# of tokens adding to the gradients of all rows. Others are cut into parts that all tokens meet,
# unless the table is so wide that logits are dear to find twice.
_DEVICE_BLOCK, _DEVICE_WIDE_BLOCK = 2**24, 2**27  # Logits in a block, 64 MB; of wide tables, 512.
_DEVICE_FEWEST, _DEVICE_WIDE_FEWEST = 512, 1024  # Tokens that meet a whole catalogue in a block.
_DEVICE_WIDTH = 1024  # Columns of a wide table.
_DEVICE_TOKENS, _DEVICE_ITEMS = 16384, 1024  # At most and at least in a block of a part.

Stats = tuple[Array, Array]  # Of logits [T, v]: the maximum, the sum of exp(z - maximum); [T, 1].
Sums = tuple[Array, Array | None]  # Gradients of table [V, d] and bias [V] so far.


class Blocks(NamedTuple):
  """How many tokens and items a block of logits covers, and where the other items are.

  Attributes:
    tokens: of a block.
    items: of a block.
    axis: the mesh axis over which the rows of the tables are split, or None. Every device then
      sweeps over its own, and what is summed over items is summed over the axis.
    keep: exponentials of all blocks of items until the log-normaliser is known, if dear.
    direct: the gradients of a row of the table come whole from one block, which holds all tokens:
      they need not be summed in float32, and labels are counted in the block.
  """

  tokens: int
  items: int
  axis: str | None = None
  keep: bool = False
  direct: bool = False

  def total(self, values: Any) -> Any:
    """Sums over items, of the items of all devices."""
    return values if self.axis is None else jax.lax.psum(values, self.axis)

  def joined(self, stats: dict[str, Stats]) -> dict[str, Stats]:
    """`Stats` of the items of all devices."""
    if self.axis is None:
      return stats
    found = {}
    for name, (top, total) in stats.items():
      # Nothing is learned through a maximum, but its gradient would have to be known.
      highest = jax.lax.pmax(jax.lax.stop_gradient(top), self.axis)
      found[name] = (highest, jax.lax.psum(total * jnp.exp(top - highest), self.axis))
    return found

  def own(self, ids: Array, num_items: int) -> Array:
    """Ids of all items as places among the `num_items` of this device, `num_items` elsewhere."""
    if self.axis is None:
      return ids
    places = ids - jax.lax.axis_index(self.axis) * num_items
    return jnp.where((places < 0) | (places >= num_items), num_items, places)


class Gradients(NamedTuple):
  """Of the weighted sum of the losses, in float32; the table's as `Blocks.direct` has it."""

  query: Array
  table: Array
  bias: Array | None

  def like(self, student: FactoredLogits) -> FactoredLogits:
    """As cotangents of the student must be: of its type, in its dtypes."""
    return jax.tree.map(lambda g, x: g.astype(x.dtype), FactoredLogits(*self), student)


def choose_blocks(
  num_tokens: int,
  num_items: int,
  block: int | None,
  axis: str | None = None,
  dear: bool = False,
  width: int = 0,
) -> Blocks:
  """Block sizes from the shapes, those of one device; `block` fixes how many items.

  `dear` says that exponentials are worth keeping where there is room, and `width` is that of the
  widest table.
  """
  host = jax.default_backend() == "cpu"
  most, whole = _BLOCK, _WHOLE
  if not host:
    wide = width >= _DEVICE_WIDTH
    most = _DEVICE_WIDE_BLOCK if wide else _DEVICE_BLOCK
    whole = most // (_DEVICE_WIDE_FEWEST if wide else _DEVICE_FEWEST)
  kept = min(_KEPT_TOKENS, num_tokens // 8, _KEPT // max(num_items, 1)) // 8 * 8
  keep = dear and host and num_items > whole and kept >= _KEPT_TOKENS // 2
  if block is not None:
    items = block
  elif num_items <= whole:
    items = num_items
  elif keep:
    items = _KEPT_BLOCK // kept
  elif host:
    items = _BLOCK // min(max(num_tokens, 1), _TOKENS)
  else:
    items = max(_DEVICE_ITEMS, _DEVICE_BLOCK // max(num_tokens, 1))
  items = max(1, min(items, num_items))
  items = -(-num_items // -(-num_items // items))  # Even blocks, so that the last one is not small.
  if block is None and items < num_items:
    items = min(num_items, -(-items // _ALIGNED) * _ALIGNED)
  tokens = kept if keep else max(64, most // items)
  if not host and items < num_items:
    tokens = min(_DEVICE_TOKENS, max(64, _DEVICE_WIDE_BLOCK // items))
  steps = max(1, -(-num_tokens // tokens))
  tokens = -(-num_tokens // (8 * steps)) * 8
  return Blocks(tokens, items, axis, keep, direct=steps == 1 and not host)


def over_tokens(
  step: Callable[[Any, Any], tuple[Any, Any]], blocks: Blocks, tokens: Any, weight: Array, sums: Any
) -> tuple[Any, Any]:
  """Runs `step(sums, (tokens, weight)) -> (sums, outs)` over blocks of tokens.

  Args:
    step: what is done with some of the tokens.
    blocks: how many at a time.
    tokens: a tree of `[T, ...]`; the last one is repeated where a block needs more.
    weight: float32 `[T]`, and 0 for such repetitions.
    sums: what the blocks add to.

  Returns:
    The sums, and the tree of outs `[T, ...]`.
  """
  num_tokens = len(weight)
  steps = max(1, -(-num_tokens // max(1, blocks.tokens)))
  padding = steps * blocks.tokens - num_tokens

  def cut(x, mode):
    # Tokens of one block lie far apart, so that a batch sharded over devices stays so in a block.
    x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1), mode=mode)
    return jnp.swapaxes(x.reshape(blocks.tokens, steps, *x.shape[1:]), 0, 1)

  def join(x):
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])[:num_tokens]

  mode = "edge" if num_tokens else "constant"
  xs = (jax.tree.map(lambda x: cut(x, mode), tokens), cut(weight, "constant"))
  if steps == 1:
    sums, outs = step(sums, jax.tree.map(lambda x: x[0], xs))
    outs = jax.tree.map(lambda x: x[None], outs)
  else:
    sums, outs = jax.lax.scan(step, sums, xs)
  return sums, jax.tree.map(join, outs)


def over_items(
  step: Callable[[Any, Array, Array], Any], num_items: int, size: int, carry: Any
) -> Any:
  """Runs `step(carry, start, fresh) -> carry` over blocks of items, as `scan_items` does."""

  def block(carry, begin, fresh, x):
    del x
    return step(carry, begin, fresh), None

  return scan_items(block, num_items, size, carry)[0]


def scan_items(
  step: Callable[..., tuple[Any, Any]], num_items: int, size: int, carry: Any, xs: Any = None
) -> tuple[Any, Any]:
  """Runs `step(carry, start, fresh, x) -> (carry, y)` over blocks of items.

  The last block reaches back into the one before, so that all have one size; `fresh` bool
  `[1, size]` says which of its items have not been seen, and is True where blocks fit exactly. `xs`
  and what comes back beside the carry are trees of an entry a block.
  """
  if size == num_items:
    carry, y = step(carry, 0, True, jax.tree.map(lambda x: x[0], xs))
    return carry, jax.tree.map(lambda x: x[None], y)

  def block(carry, x):
    start, x = x
    if num_items % size == 0:
      return step(carry, start, True, x)
    begin = jnp.minimum(start, num_items - size)
    fresh = (begin + jnp.arange(size) >= start)[None, :]
    return step(carry, begin, fresh, x)

  return jax.lax.scan(block, carry, (jnp.arange(0, num_items, size), xs))


def block_logits(model: FactoredLogits, start: Array | int, size: int) -> Array:
  """Logits of the items `start` to `start + size`, float32 `[T, size]`."""
  query, table, bias = model
  if hasattr(table, "rdot") and size == model.num_items:
    logits = table.rdot(query).astype(jnp.float32)
  else:
    if hasattr(table, "rdot"):
      rows = table.take(start + jnp.arange(size))
    else:
      rows = jax.lax.dynamic_slice_in_dim(table, start, size)
    logits = matmul("td,vd->tv", query, rows)
  if bias is None:
    return logits
  return logits + jax.lax.dynamic_slice_in_dim(bias, start, size).astype(jnp.float32)[None, :]


def worth_keeping(model: FactoredLogits) -> bool:
  """Whether exponentials of its logits cost less to keep than to find again."""
  return model.query.shape[-1] >= _KEPT_WIDTH


def without(logits: Array, skip: Array | None, start: Array | int) -> Array:
  """Logits `[T, size]` of a block that begins at `start`, `FLOOR` for the items `skip [T, k]`."""
  if skip is None:
    return logits
  columns = skip - start
  columns = jnp.where(columns < 0, logits.shape[1], columns)  # Negative ones would wrap around.
  rows = jnp.arange(len(columns))[:, None]
  return logits.at[rows, columns].set(FLOOR, mode="drop")


def no_stats(zeros: Array) -> Stats:
  """Those of no logits at all; `zeros [T]` varies between devices as they will."""
  return zeros[:, None] + FLOOR, zeros[:, None]


def add_stats(stats: Stats, logits: Array, fresh: Array | bool = True) -> Stats:
  """Online log-sum-exp: the running maximum, and the sum relative to it.

  Logits that are not fresh are in the maximum already, and add nothing to the sum.
  """
  top, total = stats
  new_top = jnp.maximum(top, jnp.max(logits, axis=-1, keepdims=True))
  total = total * jnp.exp(top - new_top)
  powers = jnp.where(fresh, exp(logits - new_top), 0.0)
  return new_top, total + jnp.sum(powers, axis=-1, keepdims=True)


def log_normalizer(stats: Stats) -> Array:
  """log sum exp of the logits, `[T, 1]`."""
  return stats[0] + jnp.log(stats[1])


def whole_stats(
  logits: dict[str, Array], blocks: Blocks
) -> tuple[dict[str, Array], dict[str, Stats]]:
  """Of logits of all items at once: exp(z - maximum), and the `Stats`."""
  tops = jax.tree.map(lambda z: jnp.max(z, axis=-1, keepdims=True), logits)
  powers = taken_once(jax.tree.map(lambda z, top: exp(z - top), logits, tops))
  own = {name: (tops[name], jnp.sum(p, axis=-1, keepdims=True)) for name, p in powers.items()}
  stats = blocks.joined(own)
  if blocks.axis is not None:
    powers = {name: p * jnp.exp(tops[name] - stats[name][0]) for name, p in powers.items()}
  return powers, stats


def measure(
  logits: Callable[[Array, Array], dict[str, Array]],
  names: Iterable[str],
  num_items: int,
  blocks: Blocks,
  zeros: Array,
) -> dict[str, Stats]:
  """The `Stats` of the named logits that `logits(start, fresh)` makes a block at a time.

  What is not fresh must be `FLOOR` there.
  """

  def step(stats, start, fresh):
    found = logits(start, fresh)
    return {name: add_stats(stats[name], z) for name, z in found.items()}

  start = dict.fromkeys(names, no_stats(zeros))
  return blocks.joined(over_items(step, num_items, blocks.items, start))


def no_sums(table: Array, bias: Array | None, blocks: Blocks, *like: Any) -> Sums:
  """The gradients that blocks add to, as yet 0."""
  d_bias = None if bias is None else jnp.zeros(bias.shape, jnp.float32)
  dtype = table.dtype if blocks.direct else jnp.float32
  return vary_as((jnp.zeros(table.shape, dtype), d_bias), table, bias, *like)


def add_gradients(
  d_query: Array, sums: Sums, student: FactoredLogits, start: Array | int, residual: Array
) -> tuple[Array, Sums]:
  """Adds what a block gives whose loss has the gradient `residual [T, v]` by its logits."""
  return add_found(d_query, sums, start, block_gradients(student, start, residual))


def block_gradients(student: FactoredLogits, start: Array | int, residual: Array) -> Gradients:
  """Of a block whose loss has the gradient `residual [T, v]` by its logits: its rows alone."""
  residual = residual.astype(student.query.dtype)
  rows = jax.lax.dynamic_slice_in_dim(student.table, start, residual.shape[1])
  if jax.default_backend() == "cpu":
    # This way round it transposes its small result, and not the block.
    d_rows = jax.lax.optimization_barrier(matmul("td,tv->dv", student.query, residual)).T
  else:
    d_rows = matmul("tv,td->vd", residual, student.query)
  d_bias = None if student.bias is None else jnp.sum(residual, axis=0, dtype=jnp.float32)
  return Gradients(matmul("tv,vd->td", residual, rows), d_rows, d_bias)


def add_found(
  d_query: Array, sums: Sums, start: Array | int, found: Gradients
) -> tuple[Array, Sums]:
  """Adds the gradients of a block that begins at `start`."""

  def add(total, part):
    old = jax.lax.dynamic_slice_in_dim(total, start, len(part))
    return jax.lax.dynamic_update_slice_in_dim(total, (old + part).astype(total.dtype), start, 0)

  d_table, d_bias = sums
  d_bias = None if d_bias is None else add(d_bias, found.bias)
  return d_query + found.query, (add(d_table, found.table), d_bias)


def matmul(subscripts: str, a: Array, b: Array) -> Array:
  """A product in the dtype of its inputs that adds up in float32."""
  return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)
