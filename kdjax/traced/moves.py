"""Rules of the primitives that move entries: reshapes, slices, concatenations, sorts."""

from collections.abc import Callable
from typing import Any

from kdjax.traced.extents import Extent, atoms, concatenation, fix, product, tie
from kdjax.traced.program import Operation, Value
from kdjax.traced.rule import (
  ALIKE,
  At,
  Rule,
  Size,
  agreed,
  apart,
  fill_first,
  fill_unknown,
  tie_elementwise,
)


def _tie_transpose(op: Operation) -> None:
  for axis, place in zip(op.outs[0].axes, op.params["permutation"], strict=True):
    tie(axis, op.ins[0].axes[place])


def _tie_squeeze(op: Operation) -> None:
  gone = {d % len(op.ins[0].axes) for d in op.params["dimensions"]}
  left = [axis for i, axis in enumerate(op.ins[0].axes) if i not in gone]
  for axis, other in zip(op.outs[0].axes, left, strict=True):
    tie(axis, other)


def _tie_broadcast(op: Operation) -> None:
  for axis, place in zip(op.ins[0].axes, op.params["broadcast_dimensions"], strict=True):
    if axis.size == op.outs[0].shape[place]:
      tie(axis, op.outs[0].axes[place])


def _fill_broadcast(op: Operation, at: At, atom: Extent, out: Value) -> Any:
  value = op.ins[0]
  if value.uniform is not None:
    return value.uniform
  old = {place for place, n in zip(op.params["broadcast_dimensions"], value.shape, strict=True)
         if n == out.shape[place]}  # fmt: skip
  new = any(atom in set(atoms(a)) for i, a in enumerate(out.axes) if i not in old)
  if not new:
    return at(value, atom)
  return ALIKE if apart(value, atom) else None


def _tie_reshape(op: Operation) -> None:
  (value, *_), (out,) = op.ins, op.outs
  if 0 in value.shape:
    _fix_all(op, "of an array without entries")
    return
  left, right = list(value.axes), list(out.axes)
  while left or right:
    ours: list[Extent] = []
    theirs: list[Extent] = []
    small, large = 1, 1
    # The fewest leading axes of either side that hold equally much.
    while not ours or small != large:
      if small <= large and left:
        ours.append(left.pop(0))
        small *= ours[-1].size
      elif right:
        theirs.append(right.pop(0))
        large *= theirs[-1].size
      elif left:
        ours.append(left.pop(0))
        small *= ours[-1].size
      else:
        break
      if not theirs and right:
        theirs.append(right.pop(0))
        large *= theirs[-1].size
    if small > 1:
      tie(product(ours), product(theirs))


def _tie_concatenate(op: Operation) -> None:
  dimension, (out,) = op.params["dimension"], op.outs
  for i, axis in enumerate(out.axes):
    if i != dimension:
      for value in op.ins:
        tie(axis, value.axes[i])
  if out.shape[dimension]:
    tie(out.axes[dimension], concatenation([value.axes[dimension] for value in op.ins]))


def _fill_concatenate(op: Operation, at: At, atom: Extent, out: Value) -> Any:
  dimension = op.params["dimension"]
  across = any(
    atom in set(atoms(axis)) for i, axis in enumerate(out.axes) if i != dimension
  )  # Then it must be known of every part, else of those that have it.
  parts = [v for v in op.ins if across or atom in set(atoms(v.axes[dimension]))]
  return agreed([at(value, atom) for value in parts])


def _tie_slice(op: Operation) -> None:
  (value,), (out,) = op.ins, op.outs
  starts, limits = op.params["start_indices"], op.params["limit_indices"]
  strides = op.params["strides"] or (1,) * len(starts)
  op.notes = []
  for axis, new, start, limit, stride in zip(
    value.axes, out.axes, starts, limits, strides, strict=True
  ):
    before, after = Extent(start), Extent(axis.size - limit)
    op.notes.append((before, axis))
    if stride == 1 and new.size:
      tie(axis, concatenation([before, new, after]))
    else:
      fix(axis, "some of its entries are picked out (slice)")
      fix(new, "picked out (slice)")


def _resize_slice(op: Operation, size: Size) -> dict[str, Any]:
  strides = op.params["strides"] or (1,) * len(op.notes)
  starts = [size(before) for before, _ in op.notes]
  limits = [
    limit if stride != 1 else start + size(new)
    for start, limit, stride, new in zip(
      starts, op.params["limit_indices"], strides, op.outs[0].axes, strict=True
    )
  ]
  return {"start_indices": tuple(starts), "limit_indices": tuple(limits)}


def _tie_split(op: Operation) -> None:
  place, (value,) = op.params["axis"], op.ins
  tie(value.axes[place], concatenation([out.axes[place] for out in op.outs]))
  for out in op.outs:
    for i, axis in enumerate(out.axes):
      if i != place:
        tie(axis, value.axes[i])


def _tie_pad(op: Operation) -> None:
  (value, _), (out,) = op.ins, op.outs
  for axis, new, (low, high, inner) in zip(
    value.axes, out.axes, op.params["padding_config"], strict=True
  ):
    if inner or low < 0 or high < 0 or not axis.size:
      fix(axis, "padded between its entries, or cut (pad)")
      fix(new, "padded between its entries, or cut (pad)")
      continue
    edges = Extent(low), Extent(high)
    for edge in edges:
      fix(edge, "padding")
    tie(new, concatenation([edges[0], axis, edges[1]]))


def _fill_pad(op: Operation, at: At, atom: Extent, out: Value) -> Any:
  value, filler = op.ins
  elsewhere = any(
    (low or high) and atom not in set(atoms(axis))
    for axis, (low, high, _) in zip(value.axes, op.params["padding_config"], strict=True)
  )
  number = at(value, atom)
  return agreed([number, filler.uniform]) if elsewhere else number


def _tie_window(op: Operation) -> None:
  """dynamic_slice and dynamic_update_slice: whole axes pass, others are addressed by number."""
  array = op.ins[0]
  small = op.ins[1] if op.name == "dynamic_update_slice" else op.outs[0]
  for axis, window in zip(array.axes, small.axes, strict=True):
    if axis.size == window.size:
      tie(axis, window)
    else:
      fix(axis, f"addressed by number ({op.name})")
      fix(window, f"addressed by number ({op.name})")
  if small is not op.outs[0]:
    for axis, new in zip(array.axes, op.outs[0].axes, strict=True):
      tie(axis, new)


def _fill_update(op: Operation, at: At, atom: Extent, out: Value) -> Any:
  return agreed([at(op.ins[0], atom), at(op.ins[1], atom)])


def _tie_along(parameter: str) -> Callable[[Operation], None]:
  """Operations that keep the shape and mix entries along one axis."""

  def ties(op: Operation) -> None:
    tie_elementwise(op)
    places = op.params[parameter]
    for place in places if isinstance(places, tuple | list) else (places,):
      for value in op.ins:
        if value.axes:
          fix(value.axes[place], f"{op.name} runs along it")

  return ties


def _tie_top_k(op: Operation) -> None:
  place = op.params.get("axis", len(op.ins[0].axes) - 1)
  fix(op.ins[0].axes[place], "top_k runs along it")
  for out in op.outs:
    for i, axis in enumerate(out.axes):
      if i == place:
        fix(axis, "places of top_k")
      else:
        tie(axis, op.ins[0].axes[i])


def _tie_iota(op: Operation) -> None:
  fix(op.outs[0].axes[op.params["dimension"]], "numbered (iota)")


def _resize_shape(parameter: str) -> Callable[[Operation, Size], dict[str, Any]]:
  return lambda op, size: {parameter: tuple(size(axis) for axis in op.outs[0].axes)}


def _tie_nothing(op: Operation) -> None:
  del op


def _fix_all(op: Operation, reason: str) -> None:
  for value in op.ins + op.outs:
    for axis in value.axes:
      fix(axis, reason)


ALONG = {
  "cumsum": "axis",
  "cumprod": "axis",
  "cummax": "axis",
  "cummin": "axis",
  "cumlogsumexp": "axis",
  "sort": "dimension",
  "rev": "dimensions",
}
MOVES: dict[str, Rule] = {
  **{name: Rule(_tie_along(key), fill_unknown) for name, key in ALONG.items()},
  "transpose": Rule(_tie_transpose, fill_first),
  "squeeze": Rule(_tie_squeeze, fill_first),
  "broadcast_in_dim": Rule(_tie_broadcast, _fill_broadcast, _resize_shape("shape")),
  "reshape": Rule(_tie_reshape, fill_first, _resize_shape("new_sizes")),
  "concatenate": Rule(_tie_concatenate, _fill_concatenate),
  "slice": Rule(_tie_slice, fill_first, _resize_slice),
  "split": Rule(
    _tie_split,
    fill_first,
    lambda op, size: {"sizes": tuple(size(out.axes[op.params["axis"]]) for out in op.outs)},
  ),
  "pad": Rule(_tie_pad, _fill_pad),
  "dynamic_slice": Rule(_tie_window, fill_first, _resize_shape("slice_sizes")),
  "dynamic_update_slice": Rule(_tie_window, _fill_update),
  "top_k": Rule(_tie_top_k, fill_unknown),
  "iota": Rule(_tie_iota, fill_unknown, _resize_shape("shape")),
  "random_bits": Rule(_tie_nothing, fill_unknown, _resize_shape("shape")),
  **{
    name: Rule(_tie_nothing, fill_unknown)
    for name in ("random_seed", "random_wrap", "random_unwrap", "random_fold_in", "random_split")
  },
}
