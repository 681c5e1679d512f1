"""Which axes of which params shrink together, found by following them through any function.

The function is traced once; `find_axes` names the groups, `resize` runs the same function on
smaller params, even where it has its sizes written into it (a stock Linen module has).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax.prune.criteria import magnitude
from kdjax.prune.extents import Extent, atoms, fix, size_kept, unit_of_entries
from kdjax.prune.flow import flow, free_atoms
from kdjax.prune.loops import LOOPS, Fills
from kdjax.prune.program import Program, Value, build, new_value, trace
from kdjax.prune.replay import run
from kdjax.prune.rules import RULES
from kdjax.prune.shrink import Keep, Units, axis_scores, choose, take_axes
from kdjax.tree import leaves_with_path, path_of
from kdjax.types import Params

Apply = Callable[..., Any]


class Shrunk(NamedTuple):
  """What `shrink` gives.

  Attributes:
    params: smaller, of the same structure.
    apply: the same function, for these params.
    keep: which units stayed, by axis name.
  """

  params: Params
  apply: Apply
  keep: Keep


class _Graph(NamedTuple):
  """A function with its axes tied.

  Attributes:
    program: of the function.
    leaves: path and value of every param.
    names: of the groups that can shrink, in the order of first use.
    fills: what stands where units are masked, by value and atom.
    outputs: structure of what the function returns.
  """

  program: Program
  leaves: list[tuple[str, Value]]
  names: dict[Extent, str]
  fills: Fills
  outputs: Any


def find_axes(apply_fn: Apply, params: Params, *example: Any) -> Params:
  """Names the axes of params that can lose units, for `kdjax.prune.shrink`'s functions.

  Two axes get one name if the function forces them to shrink together: the columns of a layer, its
  bias, and the rows of the next; all arrays that write to or read from a residual stream; the
  queries and keys of attention, by heads and by columns of heads. A group is called
  `path:axis` after the first kernel that makes it, such as `mlp/up/kernel:1`.

  An axis stays whole (None) if removing units there is not the same as masking them with 0: axes of
  outputs and of the example, what a softmax or a maximum runs over, sums over activations that are
  not 0 when masked, lookups by index. Return only what must be preserved: hidden activations among
  the outputs fix their axes.

  Args:
    apply_fn: `apply_fn(params, *example)`, any function that JAX can trace, deterministic.
    params: any pytree of float arrays.
    example: further arguments, such as a batch; its sizes do not matter beyond the tracing.

  Returns:
    The tree of params with a tuple in place of every array: for each axis a tuple of `Units`, or
    None.

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"up": jnp.ones([3, 8]), "down": jnp.ones([8, 2])}
    >>> apply_fn = lambda params, x: jnp.maximum(x @ params["up"], 0) @ params["down"]
    >>> axes = find_axes(apply_fn, params, jnp.ones([1, 3]))
    >>> axes["up"][0], axes["up"][1][0].name, axes["down"][0][0].name, axes["down"][1]
    (None, 'up:1', 'up:1', None)

  Reference:
    G. Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, arXiv:2301.12900 (groups by
    a graph of layers; here by axes of single operations, so that no layer need be known).
  """
  graph = _follow(apply_fn, params, example)
  return _axes_of(graph, params)


def shrink(
  apply_fn: Apply,
  params: Params,
  *example: Any,
  keep: Mapping[str, int | float] | float,
  criterion: Callable[[Params], Params] = magnitude,
) -> Shrunk:
  """Smaller params for the same function: whole units leave the arrays (host side).

  Args:
    apply_fn: as in `find_axes`.
    params: as in `find_axes`.
    example: as in `find_axes`.
    keep: how many units stay, or which share of them (a float in (0, 1]), for axes by name: that of
      the group or of any `path:axis` in it, or the last parts of either (`up/kernel:1` stands for
      that axis in every layer). A single number is for all groups.
    criterion: `params -> scores`; the units with the lowest sums of scores go.

  Returns:
    Shrunk. `apply` equals `apply_fn` on the masked params; it also takes further arguments of other
    sizes than the example's, as far as `apply_fn` does.

  Raises:
    ValueError: if `keep` names no axis, or one that cannot shrink: the error says which operation
      stands in the way. If a count is out of range.

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"up": jnp.array([[1.0, 9.0, 5.0]]), "down": jnp.ones([3, 2])}
    >>> apply_fn = lambda params, x: jnp.maximum(x @ params["up"], 0) @ params["down"]
    >>> small = shrink(apply_fn, params, jnp.ones([1, 1]), keep={"up:1": 2})
    >>> small.params["up"].tolist(), small.apply(small.params, jnp.ones([1, 1])).tolist()
    ([[9.0, 5.0]], [[14.0, 14.0]])

  Reference:
    G. Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, arXiv:2301.12900.
  """
  graph = _follow(apply_fn, params, example)
  axes = _axes_of(graph, params)
  scores = axis_scores(params, axes, criterion(params))
  sizes = {name: len(values) for name, values in scores.items()}
  kept = choose(scores, _counts(graph, sizes, keep))
  return Shrunk(take_axes(params, axes, kept), resize(apply_fn, params, kept), kept)


def resize(apply_fn: Apply, params: Params, keep: Keep) -> Apply:
  """The same function for the params that `take_axes` left of `params`.

  Some functions fit already: those that read their sizes off the params. Others hold them: a Linen
  module refuses a kernel of another shape, a reshape names its numbers. Here the function is traced
  with the old shapes, and run with the new ones in their place. Everything happens while tracing:
  under `jit` it costs nothing. Gradients are those of the operations themselves: where the function
  defines its own (`custom_vjp`), they are lost.

  Args:
    apply_fn: as in `find_axes`.
    params: those from before, or their `jax.ShapeDtypeStruct`s.
    keep: which units stayed, as given to `take_axes` with the axes of `find_axes`.

  Returns:
    `(params, *args) -> outputs`.

  Raises:
    ValueError: when called, if `keep` names no axis of the function.
  """
  before = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)

  def apply(smaller: Params, *args: Any) -> Any:
    graph = _follow(apply_fn, before, args)
    found = {name: atom for atom, name in graph.names.items()}
    unknown = sorted(set(keep) - set(found))
    if unknown:
      raise ValueError(f"no axis is called {unknown}; there are {sorted(found)}")
    kept = {found[name]: len(units) for name, units in keep.items()}
    flat = jax.tree.leaves((smaller, args))
    for (path, value), leaf in zip(graph.leaves, flat, strict=False):
      expected = tuple(size_kept(axis, kept) for axis in value.axes)
      if leaf.shape != expected:
        raise ValueError(f"{path} has shape {leaf.shape}, expected {expected} of {value.shape}")
    outs = run(graph.program, flat, lambda extent: size_kept(extent, kept), graph.fills)
    return jax.tree.unflatten(jax.tree.structure(graph.outputs), outs)

  return apply


def _follow(apply_fn: Apply, params: Params, example: tuple[Any, ...]) -> _Graph:
  """Ties all axes, and fixes those that must stay whole."""
  closed, outputs = trace(apply_fn, params, *example)
  ins = [new_value(var.aval) for var in closed.jaxpr.invars]
  ties = {name: rule.tie for name, rule in RULES.items()}
  ties |= {name: functools.partial(tied, ties=ties) for name, tied in LOOPS.items()}
  program = build(closed, ties, ins)
  leaves = ["/".join(path) for path, _ in leaves_with_path(params)]
  for value in ins[len(leaves) :]:
    for axis in value.axes:
      fix(axis, "an axis of the example")
  for (key_path, _), value in zip(
    jax.tree_util.tree_leaves_with_path(outputs), program.outs, strict=True
  ):
    name = "/".join(path_of(key_path))
    for axis in value.axes:
      fix(axis, f"an axis of the output {name}".rstrip())
  params_in = list(zip(leaves, ins, strict=False))
  for _, value in params_in:
    for axis in value.axes:
      for atom in _repeated(axis):
        fix(atom, "squared within one axis")
  fills: Fills = {
    value: {atom: np.zeros([], value.dtype)[()] for atom in free_atoms(value)}
    for _, value in params_in
  }
  flow(program, fills, check=True)
  return _Graph(program, params_in, _names(program, params_in), fills, outputs)


def _repeated(extent: Extent) -> list[Extent]:
  """Atoms that stand more than once within a product."""
  extent = extent.resolve()
  if extent.operation == "product":
    inner = [atom for part in extent.parts for atom in set(atoms(part))]
    return [atom for atom in set(inner) if inner.count(atom) > 1]
  return [atom for part in extent.parts for atom in _repeated(part)]


def _names(program: Program, leaves: list[tuple[str, Value]]) -> dict[Extent, str]:
  """Each group by the first kernel that makes it, else by its first array at all."""
  paths = {value: path for path, value in leaves}
  # A loop has many operands at once: kernels before biases.
  operands = (sorted(op.ins, key=lambda v: -len(v.shape)) for op in program.operations)
  used = list(dict.fromkeys(v for ins in operands for v in ins if v in paths))
  places = [(value, i) for value in used for i in range(len(value.axes))]
  makes = [(value, i) for value, i in places if i == len(value.axes) - 1 > 0]
  names: dict[Extent, str] = {}
  for value, i in makes + places:
    for atom in atoms(value.axes[i]):
      if atom.reason is None and atom.size > 1:
        names.setdefault(atom, f"{paths[value]}:{i}")
  # Two atoms of one axis: heads, and the columns of a head.
  seen: dict[str, int] = {}
  for atom, name in names.items():
    seen[name] = seen.get(name, 0) + 1
    if seen[name] > 1:
      names[atom] = f"{name}.{seen[name] - 1}"
  return names


def _axes_of(graph: _Graph, params: Params) -> Params:
  """The tree that `kdjax.prune.shrink` reads."""

  def units(axis: Extent) -> tuple[Units, ...] | None:
    inside = [atom for atom in graph.names if atom in set(atoms(axis))]
    return tuple(Units(graph.names[a], unit_of_entries(axis, a)) for a in inside) or None

  specs = [tuple(units(axis) for axis in value.axes) for _, value in graph.leaves]
  return jax.tree.unflatten(jax.tree.structure(params), specs)


def _counts(
  graph: _Graph, sizes: Mapping[str, int], keep: Mapping[str, int | float] | float
) -> dict[str, int]:
  """Units to keep by the names of groups; refuses what cannot shrink, and says why."""

  def count(name: str, wanted: int | float) -> int:
    if isinstance(wanted, float):
      if not 0 < wanted <= 1:
        raise ValueError(f"keep[{name!r}] must be a share in (0, 1] or a count, got {wanted}")
      return max(1, round(wanted * sizes[name]))
    return wanted

  members: dict[str, set[str]] = {}
  reasons: dict[str, str] = {}
  for path, value in graph.leaves:
    for i, axis in enumerate(value.axes):
      member = f"{path}:{i}"
      for atom in atoms(axis):
        if atom in graph.names:
          members.setdefault(member, set()).add(graph.names[atom])
        else:
          reasons[member] = atom.reason or "of one unit"
  if isinstance(keep, int | float):
    if not sizes:
      raise ValueError(f"no axis can shrink: {_listed(reasons)}")
    return {name: count(name, keep) for name in sizes}
  counts: dict[str, int] = {}
  for key, wanted in keep.items():
    named = {name for name in sizes if name == key} or {
      name
      for member, names in members.items()
      if member == key or member.endswith("/" + key)
      for name in names
    }
    if not named:
      fixed = {m: why for m, why in reasons.items() if m == key or m.endswith("/" + key)}
      if fixed:
        raise ValueError(f"{key!r} cannot shrink: {_listed(fixed)}")
      raise ValueError(f"no axis is called {key!r}; those that can shrink: {sorted(sizes)}")
    counts |= {name: count(name, wanted) for name in named}
  return counts


def _listed(reasons: Mapping[str, str]) -> str:
  return "; ".join(f"{member}: {reason}" for member, reason in sorted(reasons.items()))
