"""Rules of the primitives that add up: reductions, products, convolutions, pools."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from kdjax.traced.extents import Extent, atoms, fix, product, tie
from kdjax.traced.program import Operation, Value
from kdjax.traced.rule import At, Rule, Size, is_zero


def _tie_reduce(op: Operation) -> None:
  gone = op.params["axes"]
  left = [axis for i, axis in enumerate(op.ins[0].axes) if i not in gone]
  for out in op.outs:
    for axis, other in zip(out.axes, left, strict=True):
      tie(axis, other)
  if op.name != "reduce_sum":
    for place in gone:
      fix(op.ins[0].axes[place], f"{op.name} runs over it")


def _fill_reduce(op: Operation, at: At, atom: Extent, out: Value) -> Any:
  del out
  number = at(op.ins[0], atom)
  return number if is_zero(number) and op.name not in ("argmax", "argmin") else None


def _tie_dot(op: Operation) -> None:
  (left, right), (out,) = op.ins, op.outs
  (left_sum, right_sum), (left_batch, right_batch) = op.params["dimension_numbers"]
  for i, j in [*zip(left_sum, right_sum, strict=True), *zip(left_batch, right_batch, strict=True)]:
    tie(left.axes[i], right.axes[j])
  op.notes = (
    [left.axes[i] for i in left_batch],
    [a for i, a in enumerate(left.axes) if i not in {*left_sum, *left_batch}],
    [a for j, a in enumerate(right.axes) if j not in {*right_sum, *right_batch}],
  )
  for axis, other in zip(out.axes, itertools.chain(*op.notes), strict=True):
    tie(axis, other)


def _sums_dot(op: Operation) -> Iterator[tuple[Extent, list[Value]]]:
  for i in op.params["dimension_numbers"][0][0]:
    yield op.ins[0].axes[i], op.ins


def _fill_dot(op: Operation, at: At, atom: Extent, out: Value) -> Any:
  del out
  shared, *own = ([atom in set(atoms(a)) for a in axes] for axes in op.notes)
  zero = [is_zero(at(value, atom)) for value in op.ins]
  needed = [z for z, has in zip(zero, own, strict=True) if any(has)]
  if any(shared):
    needed.append(any(zero))
  return np.zeros([], op.outs[0].dtype)[()] if needed and all(needed) else None


def _tie_conv(op: Operation) -> None:
  (image, kernel), (out,) = op.ins, op.outs
  numbers, groups = op.params["dimension_numbers"], op.params["feature_group_count"]
  (batch, channels, *space), (outputs, inputs, *window) = numbers.lhs_spec, numbers.rhs_spec
  new_batch, new_channels, *new_space = numbers.out_spec
  tie(image.axes[batch], out.axes[new_batch])
  for place in window:
    fix(kernel.axes[place], "a window (conv_general_dilated)")
  for place, new in zip(space, new_space, strict=True):
    fix(image.axes[place], "space (conv_general_dilated)")
    fix(out.axes[new], "space (conv_general_dilated)")
  tie(kernel.axes[outputs], out.axes[new_channels])
  # A group may go whole; or a channel may, the same one of every group.
  group = op.notes = Extent(groups)
  tie(image.axes[channels], product([group, kernel.axes[inputs]]))
  tie(kernel.axes[outputs], product([group, Extent(kernel.shape[outputs] // groups)]))
  if op.params["batch_group_count"] != 1:
    fix(image.axes[batch], "in groups (conv_general_dilated)")
    fix(kernel.axes[outputs], "in groups (conv_general_dilated)")


def _sums_conv(op: Operation) -> Iterator[tuple[Extent, list[Value]]]:
  yield op.ins[1].axes[op.params["dimension_numbers"].rhs_spec[1]], op.ins


def _fill_conv(op: Operation, at: At, atom: Extent, out: Value) -> Any:
  numbers = op.params["dimension_numbers"]
  own = atom in set(atoms(out.axes[numbers.out_spec[1]]))
  other = atom in set(atoms(out.axes[numbers.out_spec[0]]))
  zero = [not other or is_zero(at(op.ins[0], atom)), not own or is_zero(at(op.ins[1], atom))]
  return np.zeros([], out.dtype)[()] if all(zero) else None


def _resize_conv(op: Operation, size: Size) -> dict[str, Any]:
  return {"feature_group_count": size(op.notes)}


def _tie_pool(op: Operation) -> None:
  """Windows of one entry pass; longer ones mix their axis."""
  (value, *_), (out,) = op.ins, op.outs
  for i, length in enumerate(op.params["window_dimensions"]):
    if length == 1 and value.shape[i] == out.shape[i]:
      tie(value.axes[i], out.axes[i])
    else:
      fix(value.axes[i], f"windows run along it ({op.name})")
      fix(out.axes[i], f"windows run along it ({op.name})")


def _fill_pool(op: Operation, at: At, atom: Extent, out: Value) -> Any:
  del out
  number = at(op.ins[0], atom)
  return number if is_zero(number) or op.name != "reduce_window_sum" else None


REDUCTIONS = {
  "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax",
  "argmin",
}  # fmt: skip

SUMS: dict[str, Rule] = {
  **{name: Rule(_tie_reduce, _fill_reduce) for name in REDUCTIONS},
  **{
    name: Rule(_tie_pool, _fill_pool)
    for name in ("reduce_window_sum", "reduce_window_max", "reduce_window_min")
  },
  "dot_general": Rule(_tie_dot, _fill_dot, sums=_sums_dot),
  "conv_general_dilated": Rule(_tie_conv, _fill_conv, _resize_conv, _sums_conv),
}
