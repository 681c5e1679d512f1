"""Whole parameter trees in int8, and a summary that says what was quantised and why not."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from kdjax.quant.conv import conv_plan
from kdjax.quant.integer import DotPlan, dot_plan
from kdjax.quant.qtensor import QTensor, dequantize, is_qtensor, quantize
from kdjax.tree import leaves_with_path, map_with_path
from kdjax.types import Params, Path, Select

AxisRule = Callable[[Path, Any], int | tuple[int, ...]]


def is_weight(path: Path, leaf: Any) -> bool:
  """Selects float leaves of two axes or more that are not `QTensor`s yet."""
  return _refusal(path, leaf) is None


def is_embedding(path: Path, leaf: Any) -> bool:
  """Whether a leaf is a table of rows: its own name contains "embedding" or "table".

  Example:
    >>> import jax.numpy as jnp
    >>> is_embedding(("item", "embedding"), jnp.ones([9, 4]))
    True
    >>> is_embedding(("embedding_head", "kernel"), jnp.ones([9, 4]))
    False
  """
  del leaf
  return bool(path) and any(word in path[-1].lower() for word in ("embedding", "table"))


def contraction_axes(path: Path, leaf: Any) -> tuple[int, ...]:
  """The axes that share a scale: the last of a table, all but the last of a kernel.

  A kernel `[in, out]` gets a scale per output channel, a convolution `[height, width, in, out]`
  likewise, a table `[V, d]` a scale per row, whether its rows are looked up or contracted.
  """
  if is_embedding(path, leaf):
    return (jnp.ndim(leaf) - 1,)
  return tuple(range(jnp.ndim(leaf) - 1))


def quantize_params(
  params: Params,
  *,
  select: Select = is_weight,
  axis_rule: AxisRule = contraction_axes,
  bits: int = 8,
  group: int | None = None,
  affine: bool = False,
  rest_dtype: Any = None,
) -> Params:
  r"""Post-training int8 or int4 of every selected leaf; the other floats may be halved.

  $w \to (v, s)$ with $s = \max |w| / 127$ over the leaf's contraction axes, see `quantize`.

  Args:
    params: any pytree of arrays. Leaves that are `QTensor`s already are kept.
    select: which leaves; biases, norms and integers are left out by default. Select by name to
      keep a sensitive leaf in float.
    axis_rule: `(path, leaf) -> axes` over which a leaf shares one scale.
    bits: 8 or 4; call it twice with different `select` for some of each.
    group: entries along the contraction that share a scale. Leaves that it does not divide, or that
      are contracted over several axes, keep one scale a channel: the summary tells.
    affine: as in `quantize`.
    rest_dtype: what the other float leaves become, such as `jnp.float16`, whose 11 bits are plenty
      for tables of positions, biases and norms; None leaves them as they are.

  Returns:
    The same tree with `QTensor` leaves. `summarize_quantized` tells what became of each leaf.

  Raises:
    ValueError: if `select` picks a leaf that is no float.

  Example:
    >>> import jax.numpy as jnp
    >>> q = quantize_params({"kernel": jnp.ones([3, 2]), "bias": jnp.ones([2])})
    >>> q["kernel"].scale.shape, q["bias"].dtype.name
    ((1, 2), 'float32')

  Reference:
    Jacob et al., 2018, arXiv:1712.05877, section 3 (weights per channel as in R. Krishnamoorthi,
    Quantizing deep convolutional networks for efficient inference, 2018, arXiv:1806.08342).
  """

  def make(path: Path, leaf: Any, axis: tuple[int, ...], part: int | None) -> QTensor:
    del path
    return quantize(leaf, axis=axis, bits=bits, group=part, affine=affine)

  def rest(leaf: Any) -> Any:
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return leaf if rest_dtype is None or not floating else jnp.asarray(leaf, rest_dtype)

  return convert_params(params, make, select=select, axis_rule=axis_rule, group=group, rest=rest)


def convert_params(
  params: Params,
  make: Callable[..., Any],
  *others: Params,
  select: Select,
  axis_rule: AxisRule,
  group: int | None = None,
  rest: Callable[[Any], Any],
) -> Params:
  """What all transforms of whole trees share: which leaves, over which axes, in which groups.

  Args:
    params: any pytree of arrays; `QTensor` leaves are kept.
    make: `(path, leaf, axes, group, *others) -> leaf` for those selected; the group is None where
      it does not fit the leaf.
    others: trees of the same structure, of which `make` gets the leaves.
    select: as in `quantize_params`.
    axis_rule: as in `quantize_params`.
    group: as in `quantize_params`.
    rest: what becomes of the other leaves.

  Raises:
    ValueError: if `select` picks a leaf that is no float.
  """

  def convert(path: Path, leaf: Any, *parts: Any) -> Any:
    if is_qtensor(leaf):
      return leaf
    if not select(path, leaf):
      return rest(leaf)
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
      raise ValueError(f"cannot quantise {'/'.join(path)}: it is {jnp.result_type(leaf).name}")
    axis = axis_rule(path, leaf)
    axes = (axis,) if isinstance(axis, int) else axis
    divides = group is not None and len(axes) == 1 and leaf.shape[axes[0]] % group == 0
    return make(path, leaf, axes, group if divides else None, *parts)

  return map_with_path(convert, params, *others, is_leaf=is_qtensor)


def dequantize_params(params: Params) -> Params:
  """The tree with every `QTensor` as the float32 array it stands for."""
  return map_with_path(
    lambda path, leaf: dequantize(leaf) if is_qtensor(leaf) else leaf, params, is_leaf=is_qtensor
  )


class LeafSummary(NamedTuple):
  """What became of one leaf.

  Attributes:
    path: names from the root, joined by "/".
    shape: of the weight.
    quantized: whether its values are integers.
    reason: how it was quantised, or why it was not.
    product: how a product with it is computed, and why.
    bytes_before: as float32 (or as it is, if not quantised).
    bytes_after: of values, scales and zeros, as stored.
  """

  path: str
  shape: tuple[int, ...]
  quantized: bool
  reason: str
  product: str
  bytes_before: int
  bytes_after: int


def widen_params(params: Params, *, rows: int = 1, backend: str | None = None) -> Params:
  """The tree as it is served fastest at `rows` rows: what floats multiply is widened once, for all.

  Where `dot_plan` or `conv_plan` says float, every call would widen the weight again, which one row
  of a small weight feels most. The file stays small; memory grows by what is widened.

  Args:
    params: a tree with `QTensor` leaves.
    rows: of activations in one call.
    backend: "cpu", "gpu" or "tpu"; None for the default backend.

  Returns:
    The tree, some `QTensor` leaves replaced by their float32 values; the same outputs.

  Example:
    >>> import jax.numpy as jnp
    >>> q = quantize_params({"small": jnp.ones([64, 64]), "large": jnp.ones([1024, 1024])})
    >>> {name: is_qtensor(w) for name, w in widen_params(q, rows=1, backend="cpu").items()}
    {'large': True, 'small': False}
  """

  def widen(path: Path, leaf: Any) -> Any:
    del path
    plan = _plan(leaf, rows, backend) if is_qtensor(leaf) else None
    return dequantize(leaf) if plan and not plan.integer else leaf

  return map_with_path(widen, params, is_leaf=is_qtensor)


def summarize_quantized(
  params: Params, *, rows: Sequence[int] = (1, 256), backend: str | None = None
) -> list[LeafSummary]:
  """One row a leaf: quantised or not, why, how it is multiplied, bytes before and after.

  Args:
    params: a tree with `QTensor` leaves.
    rows: numbers of rows of activations for which `dot_plan` is asked.
    backend: "cpu", "gpu" or "tpu"; None for the default backend.

  Returns:
    LeafSummary per leaf, in the tree's order.

  Example:
    >>> import jax.numpy as jnp
    >>> q = quantize_params({"kernel": jnp.ones([300, 2]), "bias": jnp.ones([2])})
    >>> for row in summarize_quantized(q, backend="cpu"):
    ...   print(row.path, row.quantized, row.reason, row.bytes_before, row.bytes_after)
    bias False fewer than two axes 8 8
    kernel True int8, 2 scales 2400 608
    >>> summarize_quantized(q, backend="cpu")[1].product
    'rows 1: float is faster for 600 weights (measured), rows 256: integer (measured)'
  """
  found = leaves_with_path(params, is_leaf=is_qtensor)
  return [_summarize(path, leaf, rows, backend) for path, leaf in found]


def format_quantized(rows: list[LeafSummary]) -> str:
  """The summary as text, one line a leaf and a total.

  Example:
    >>> import jax.numpy as jnp
    >>> print(format_quantized(summarize_quantized({"bias": jnp.ones([2])})))
    bias   [2]  float  fewer than two axes           8 ->          8 B
    total: 0 of 1 leaves integer, 8 -> 8 B
  """
  width = max([len(row.path) for row in rows] + [6])
  shapes = [str(list(row.shape)) for row in rows]
  shape_width = max([len(shape) for shape in shapes] + [3])
  notes = [row.reason + (f"; {row.product}" if row.product else "") for row in rows]
  note_width = max([len(note) for note in notes] + [0])
  lines = [
    f"{row.path:<{width}} {shape:<{shape_width}}  {'int  ' if row.quantized else 'float'}  "
    f"{note:<{note_width}}  {row.bytes_before:>10} -> {row.bytes_after:>10} B"
    for row, shape, note in zip(rows, shapes, notes, strict=True)
  ]
  before, after = sum(row.bytes_before for row in rows), sum(row.bytes_after for row in rows)
  count = sum(row.quantized for row in rows)
  return "\n".join([*lines, f"total: {count} of {len(rows)} leaves integer, {before} -> {after} B"])


def _summarize(path: Path, leaf: Any, rows: Sequence[int], backend: str | None) -> LeafSummary:
  name, shape = "/".join(path), tuple(jnp.shape(leaf))
  if not isinstance(leaf, QTensor):
    nbytes = math.prod(shape) * jnp.result_type(leaf).itemsize
    reason = _refusal(path, leaf) or "not selected"
    return LeafSummary(name, shape, False, reason, "", nbytes, nbytes)
  reason = f"int{leaf.bits}, {leaf.scale.size} scales" + ("" if leaf.zero is None else " and zeros")
  return LeafSummary(
    name, shape, True, reason, _product(leaf, rows, backend), 4 * leaf.size, leaf.nbytes
  )


def _product(leaf: QTensor, rows: Sequence[int], backend: str | None) -> str:
  """How `dot`, `rdot` or `conv` multiplies with it; a scale for every entry serves none."""
  plans = [_plan(leaf, number, backend) for number in rows]
  reasons = [plan.reason if plan else "dequantised before the product" for plan in plans]
  if len(set(reasons)) == 1:
    return reasons[0]
  return ", ".join(f"rows {n}: {reason}" for n, reason in zip(rows, reasons, strict=True))


def _plan(leaf: QTensor, rows: int, backend: str | None) -> DotPlan | None:
  affine = leaf.zero is not None
  if leaf.ndim > 2 and leaf.scale.shape == (*(1,) * (leaf.ndim - 1), leaf.shape[-1]):
    return conv_plan(leaf.shape, affine=affine, backend=backend)
  for axis in range(2):
    if leaf.ndim == 2 and leaf.scale.shape[axis] < leaf.shape[axis]:
      shape = (rows, leaf.shape[axis], leaf.shape[1 - axis])
      grouped = leaf.scale.shape[axis] > 1
      return dot_plan(shape, grouped=grouped, affine=affine, backend=backend)
  return None


def _refusal(path: Path, leaf: Any) -> str | None:
  """Why the default selection leaves a leaf in float; None if it does not."""
  del path
  if is_qtensor(leaf):
    return "already quantised"
  if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
    return f"{jnp.result_type(leaf).name} is no float"
  return None if jnp.ndim(leaf) >= 2 else "fewer than two axes"
