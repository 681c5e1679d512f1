"""Rules of the primitives that read and write by index: gather and scatter."""

from typing import Any

from kdjax.traced.extents import Extent, atoms, fix, tie
from kdjax.traced.program import Operation, Value
from kdjax.traced.rule import At, Rule, Size, agreed, is_zero


def _tie_gather(op: Operation) -> None:
  (table, indices), (out,) = op.ins, op.outs
  numbers, sizes = op.params["dimension_numbers"], op.params["slice_sizes"]
  batching = tuple(numbers.operand_batching_dims)
  gone = set(numbers.collapsed_slice_dims) | set(batching)
  window = [d for d in range(len(table.axes)) if d not in gone]
  for place, d in zip(numbers.offset_dims, window, strict=True):
    if sizes[d] == table.shape[d]:
      tie(out.axes[place], table.axes[d])
    else:
      fix(out.axes[place], "addressed by number (gather)")
  for d, axis in enumerate(table.axes):
    if d in numbers.collapsed_slice_dims or (d in window and sizes[d] != table.shape[d]):
      fix(axis, "looked up by index (gather)")
  rest = [i for i in range(len(out.axes)) if i not in numbers.offset_dims]
  for place, axis in zip(rest, indices.axes[:-1], strict=True):
    tie(out.axes[place], axis)
  for d, i in zip(batching, numbers.start_indices_batching_dims, strict=True):
    tie(table.axes[d], indices.axes[i])
  fix(indices.axes[-1], "coordinates of a lookup (gather)")


def _fill_gather(op: Operation, at: At, atom: Extent, out: Value) -> Any:
  numbers = op.params["dimension_numbers"]
  own = all(i in numbers.offset_dims for i, axis in enumerate(out.axes) if atom in set(atoms(axis)))
  return at(op.ins[0], atom) if own else op.ins[0].uniform


def _tie_scatter(op: Operation) -> None:
  (operand, indices, updates), (out,) = op.ins, op.outs
  numbers = op.params["dimension_numbers"]
  for axis, other in zip(out.axes, operand.axes, strict=True):
    tie(axis, other)
  gone = set(numbers.inserted_window_dims) | set(numbers.operand_batching_dims)
  window = [d for d in range(len(operand.axes)) if d not in gone]
  for place, d in zip(numbers.update_window_dims, window, strict=True):
    if updates.shape[place] == operand.shape[d]:
      tie(updates.axes[place], operand.axes[d])
    else:
      fix(updates.axes[place], f"written by index ({op.name})")
      fix(operand.axes[d], f"written by index ({op.name})")
  for d in gone:
    fix(operand.axes[d], f"written by index ({op.name})")
  for i, axis in enumerate(updates.axes):
    if i not in numbers.update_window_dims:
      fix(axis, f"written one by one ({op.name})")
  for axis in indices.axes:
    fix(axis, f"places to write to ({op.name})")


def _fill_scatter(op: Operation, at: At, atom: Extent, out: Value) -> Any:
  """Two numbers that agree stay, but for sums of anything but 0."""
  del out
  number = agreed([at(op.ins[0], atom), at(op.ins[2], atom)])
  return number if op.name == "scatter" or is_zero(number) else None


def _resize_gather(op: Operation, size: Size) -> dict[str, Any]:
  table = op.ins[0]
  return {
    "slice_sizes": tuple(
      size(axis) if n == axis.size else n
      for n, axis in zip(op.params["slice_sizes"], table.axes, strict=True)
    )
  }


LOOKUPS: dict[str, Rule] = {
  "gather": Rule(_tie_gather, _fill_gather, _resize_gather),
  **{name: Rule(_tie_scatter, _fill_scatter) for name in ("scatter", "scatter-add", "scatter_add")},
}
