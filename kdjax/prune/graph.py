"""Which axes of which params shrink together, found by following them through any function.

The function is traced once; `find_axes` names the groups, `resize` runs the same function on
smaller params, even where it has its sizes written into it (a stock Linen module has).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax.prune.criteria import magnitude
from kdjax.prune.shrink import Keep, Units, axis_scores, choose, take_axes
from kdjax.traced import Extent, Traced, atoms, follow, run, size_kept, unit_of_entries
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
  traced = follow(apply_fn, params, example)
  return _axes_of(traced, _names(traced), params)


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
  traced = follow(apply_fn, params, example)
  names = _names(traced)
  axes = _axes_of(traced, names, params)
  scores = axis_scores(params, axes, criterion(params))
  sizes = {name: len(values) for name, values in scores.items()}
  kept = choose(scores, _counts(traced, names, sizes, keep))
  return Shrunk(take_axes(params, axes, kept), resize(apply_fn, params, kept), kept)


def resize(apply_fn: Apply, params: Params, keep: Keep) -> Apply:
  """The same function for the params that `take_axes` left of `params`.

  Some functions fit already: those that read their sizes off the params. Others hold them: a Linen
  module refuses a kernel of another shape, a reshape names its numbers. Here the function is traced
  with the old shapes, and run with the new ones in their place. Everything happens while tracing:
  under `jit` it costs nothing. Gradients are those of the operations themselves: where the function
  defines its own (`custom_vjp`), they are lost. Quantised params are dequantised.

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
    traced = follow(apply_fn, before, args)
    found = {name: atom for atom, name in _names(traced).items()}
    unknown = sorted(set(keep) - set(found))
    if unknown:
      raise ValueError(f"no axis is called {unknown}; there are {sorted(found)}")
    kept = {found[name]: len(units) for name, units in keep.items()}
    # What only stands for an array, as quantised weights do, becomes one.
    stands = lambda x: hasattr(x, "__jax_array__")  # noqa: E731
    smaller = jax.tree.map(lambda x: jnp.asarray(x) if stands(x) else x, smaller, is_leaf=stands)
    flat = jax.tree.leaves((smaller, args))
    for (path, value), leaf in zip(traced.leaves, flat, strict=False):
      expected = tuple(size_kept(axis, kept) for axis in value.axes)
      if leaf.shape != expected:
        raise ValueError(f"{path} has shape {leaf.shape}, expected {expected} of {value.shape}")
    outs = run(traced.program, flat, lambda extent: size_kept(extent, kept), traced.fills)
    return jax.tree.unflatten(jax.tree.structure(traced.outputs), outs)

  return apply


def _names(traced: Traced) -> dict[Extent, str]:
  """Each group by the first kernel that makes it, else by its first array at all."""
  paths = {value: path for path, value in traced.leaves}
  # A loop has many operands at once: kernels before biases.
  operands = (sorted(op.ins, key=lambda v: -len(v.shape)) for op in traced.program.operations)
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


def _axes_of(traced: Traced, names: Mapping[Extent, str], params: Params) -> Params:
  """The tree that `kdjax.prune.shrink` reads."""

  def units(axis: Extent) -> tuple[Units, ...] | None:
    inside = [atom for atom in names if atom in set(atoms(axis))]
    return tuple(Units(names[a], unit_of_entries(axis, a)) for a in inside) or None

  specs = [tuple(units(axis) for axis in value.axes) for _, value in traced.leaves]
  return jax.tree.unflatten(jax.tree.structure(params), specs)


def _counts(
  traced: Traced,
  names: Mapping[Extent, str],
  sizes: Mapping[str, int],
  keep: Mapping[str, int | float] | float,
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
  for path, value in traced.leaves:
    for i, axis in enumerate(value.axes):
      member = f"{path}:{i}"
      for atom in atoms(axis):
        if atom in names:
          members.setdefault(member, set()).add(names[atom])
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
      for member, within in members.items()
      if member == key or member.endswith("/" + key)
      for name in within
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
