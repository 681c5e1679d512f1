"""Structured shrinking: whole heads, hidden units and dimensions leave the arrays.

A model is described by data: `axes`, a tree of the structure of its params that names every axis
of every array (None where an axis stays). Axes of one name, in whichever arrays, lose the same
entries. The model writes it down, or `kdjax.prune.find_axes` finds it out by following the axes of
any function. From there on shrinking is four pure functions on trees, run on the host:

  scores = axis_scores(params, axes, magnitude(params))
  keep = choose(scores, {"mlp": 64, "heads": 1})
  smaller = take_axes(params, axes, keep)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.tree import leaves_with_path
from kdjax.types import Array, Params

Keep = Mapping[str, np.ndarray]  # Sorted indices of the units that stay, by axis name.


class Axis(NamedTuple):
  """An array axis laid out as `[repeat, units, group]`; a plain string stands for one of 1 and 1.

  Attributes:
    name: which units: `dim`, `block_0/mlp`, `block_0/heads`, ... Equal names shrink together.
    repeat: how often all units follow each other: 3 for the gates of a GRU side by side.
    group: adjacent entries of one unit: `head_dim` for attention heads.
  """

  name: str
  repeat: int = 1
  group: int = 1


class Units(NamedTuple):
  """Units in any layout; an array axis may have several of these, such as heads and their columns.

  Attributes:
    name: which units.
    of: int `[n]`, the unit of every entry of the axis, -1 for entries of none.
  """

  name: str
  of: np.ndarray


class _Place(NamedTuple):
  """One name on one axis of one array."""

  leaf: int
  path: str
  axis: int
  name: str
  of: np.ndarray

  @property
  def units(self) -> int:
    """How many."""
    return int(self.of.max()) + 1


def axis_sizes(params: Params, axes: Params) -> dict[str, int]:
  """How many units every named axis has.

  Args:
    params: float arrays.
    axes: the same tree with a tuple in place of every array: for each of its axes an `Axis`, a
      str, a tuple of `Units`, or None.

  Returns:
    Units by name.

  Raises:
    ValueError: if `axes` has another structure or rank than `params`, an axis is no whole number of
      units, or two arrays disagree on the units of a name; naming the leaf.
    TypeError: if a leaf is quantised: shrink first.

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"up": jnp.ones([4, 6]), "down": jnp.ones([6, 4])}
    >>> sizes = axis_sizes(params, {"up": ("dim", "mlp"), "down": ("mlp", "dim")})
    >>> sizes["dim"], sizes["mlp"]
    (4, 6)
  """
  sizes: dict[str, int] = {}
  for place in _places(params, axes):
    if sizes.setdefault(place.name, place.units) != place.units:
      raise ValueError(
        f"{place.path} has {place.units} units of {place.name!r} along axis {place.axis}, "
        f"other arrays {sizes[place.name]}"
      )
  return sizes


def axis_scores(
  params: Params,
  axes: Params,
  scores: Params,
  *,
  reduce_fn: Callable[..., Array] = jnp.sum,
) -> dict[str, Array]:
  r"""The importance of every unit of every named axis.

  $s_u = \sum_{a} \sum_{i \in u} \mathrm{score}(a_i)$ over all arrays a that hold entries of unit u.

  Args:
    params: float arrays.
    axes: as in `axis_sizes`.
    scores: what a criterion made of `params`: `magnitude` (L1), `saliency` or `fisher` (Taylor of
      first and second order), `wanda` (activations).
    reduce_fn: how the sums of the arrays, float32 `[arrays, units]`, become one: `jnp.sum`; or
      `jnp.prod`, which looks ahead: a unit counts by what goes in times what goes out of it.
      Called with `axis=0`.

  Returns:
    float32 `[units]` by name.

  Raises:
    ValueError: as `axis_sizes`, or if `scores` has other shapes than `params`.

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"up": jnp.array([[1.0, 2.0]]), "down": jnp.array([[0.5], [3.0]])}
    >>> axes = {"up": (None, "mlp"), "down": ("mlp", None)}
    >>> axis_scores(params, axes, params)["mlp"].tolist()
    [1.5, 5.0]

  Reference:
    H. Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv:1608.08710 (with
    magnitudes), summed over all coupled arrays as in G. Fang et al., DepGraph, CVPR 2023,
    arXiv:2301.12900; S. Park et al., Lookahead: A Far-Sighted Alternative of Magnitude-based
    Pruning, ICLR 2020, arXiv:2002.04809 (the product, of single weights there).
  """
  sizes = axis_sizes(params, axes)
  values = jax.tree.leaves(scores)
  if [jnp.shape(v) for v in values] != [jnp.shape(p) for p in jax.tree.leaves(params)]:
    raise ValueError("scores must have the shapes of params")
  totals: dict[str, list[Array]] = {name: [] for name in sizes}
  for place in _places(params, axes):
    value = jnp.moveaxis(jnp.asarray(values[place.leaf], jnp.float32), place.axis, 0)
    value = value.reshape(value.shape[0], -1).sum(axis=1)
    # What belongs to none goes to one unit more, which is left out.
    of = np.where(place.of < 0, place.units, place.of)
    totals[place.name].append(jax.ops.segment_sum(value, of, place.units + 1)[:-1])
  return {name: reduce_fn(jnp.stack(parts), axis=0) for name, parts in totals.items()}


def choose(scores: Mapping[str, Array], keep: Mapping[str, int]) -> dict[str, np.ndarray]:
  """The highest-scoring units of the axes to shrink; of equals, the first.

  Args:
    scores: float `[units]` by axis name.
    keep: how many units stay, by axis name, or by the last part of several: `mlp` stands for
      `block_0/mlp`, `block_1/mlp`, ... A whole name goes before a last part.

  Returns:
    Sorted int64 indices by axis name, for the axes that `keep` speaks of.

  Raises:
    ValueError: if a name fits no axis, or a count is not in [1, units].

  Example:
    >>> import jax.numpy as jnp
    >>> scores = {"block_0/mlp": jnp.array([1.0, 5.0, 5.0]), "dim": jnp.array([1.0, 2.0])}
    >>> {name: kept.tolist() for name, kept in choose(scores, {"mlp": 2}).items()}
    {'block_0/mlp': [1, 2]}
  """
  unknown = [key for key in keep if not any(_names(key, name) for name in scores)]
  if unknown:
    raise ValueError(f"no axis is called {unknown}; there are {sorted(scores)}")
  chosen = {}
  for name, values in scores.items():
    counts = [count for key, count in keep.items() if key == name]
    counts = counts or [count for key, count in keep.items() if _names(key, name)]
    if not counts:
      continue
    if not 1 <= counts[0] <= len(values):
      raise ValueError(f"cannot keep {counts[0]} of the {len(values)} units of {name!r}")
    order = np.argsort(-np.asarray(values, np.float64), kind="stable")
    chosen[name] = np.sort(order[: counts[0]])
  return chosen


def take_axes(params: Params, axes: Params, keep: Keep) -> Params:
  """Smaller arrays: only the kept units of every named axis.

  Args:
    params: float arrays.
    axes: as in `axis_sizes`.
    keep: from `choose`; axes it does not speak of stay whole.

  Returns:
    The same tree with smaller arrays.

  Raises:
    ValueError: as `axis_sizes`, or if `keep` names no axis or a unit that is not there.
  """
  leaves, structure = jax.tree.flatten(params)
  for (leaf, axis), kept in _kept(params, axes, keep).items():
    leaves[leaf] = jnp.take(leaves[leaf], np.flatnonzero(kept), axis=axis)
  return jax.tree.unflatten(structure, leaves)


def mask_axes(params: Params, axes: Params, keep: Keep) -> Params:
  """What `take_axes` keeps, as masks: bool, True where every axis of the entry is kept.

  `apply_masks(params, mask_axes(params, axes, keep))` has the outputs of the shrunk model.

  Args:
    params: float arrays.
    axes: as in `axis_sizes`.
    keep: from `choose`.

  Returns:
    bool arrays of the structure and shapes of `params`.

  Raises:
    ValueError: as `take_axes`.
  """
  leaves, structure = jax.tree.flatten(params)
  masks = [np.ones(jnp.shape(leaf), bool) for leaf in leaves]
  for (leaf, axis), kept in _kept(params, axes, keep).items():
    masks[leaf] &= np.expand_dims(kept, [a for a in range(masks[leaf].ndim) if a != axis])
  return jax.tree.unflatten(structure, [jnp.asarray(mask) for mask in masks])


def take_layers(
  params: Mapping[str, Any], layers: Sequence[int], *, prefix: str = "block_"
) -> Params:
  """Keeps some layers, renumbered from 0 in the order given.

  Layer i of the result is layer `layers[i]` of `params`: also how a shallow student starts from a
  deep teacher.

  Args:
    params: a dict with entries `<prefix>0`, `<prefix>1`, ...
    layers: which of them stay.
    prefix: of a layer's name.

  Returns:
    A new dict; what is no layer stays as it is.

  Raises:
    ValueError: if `layers` names one that is not there.

  Example:
    >>> take_layers({"block_0": 1, "block_1": 2, "norm": 3}, [1])
    {'norm': 3, 'block_0': 2}

  Reference:
    V. Sanh et al., DistilBERT, 2019, arXiv:1910.01108 (a student of every other layer).
  """
  found = {
    name for name in params if name[: len(prefix)] == prefix and name[len(prefix) :].isdigit()
  }
  absent = [i for i in layers if f"{prefix}{i}" not in found]
  if absent:
    raise ValueError(f"no layers {absent} among {sorted(found)}")
  rest = {name: value for name, value in params.items() if name not in found}
  return rest | {f"{prefix}{i}": params[f"{prefix}{layer}"] for i, layer in enumerate(layers)}


def spread_layers(teacher: int, student: int) -> tuple[int, ...]:
  r"""Which of the teacher's layers the student's start from: evenly spread, the last among them.

  Layer i starts from $\lfloor (i + 1) T / S \rfloor - 1$.

  Args:
    teacher: T, layers of the teacher.
    student: S, layers of the student, at most T.

  Returns:
    S numbers for `take_layers`.

  Raises:
    ValueError: unless 1 <= S <= T.

  Example:
    >>> spread_layers(12, 4), spread_layers(5, 2)
    ((2, 5, 8, 11), (1, 4))

  Reference:
    S. Sun et al., Patient Knowledge Distillation for BERT Model Compression, EMNLP 2019,
    arXiv:1908.09355 (its map "skip", with the last layer in it).
  """
  if not 1 <= student <= teacher:
    raise ValueError(f"a student of {student} layers cannot start from {teacher}")
  return tuple((i + 1) * teacher // student - 1 for i in range(student))


def named_units(params: Params, axes: Params) -> list[tuple[int, int, str, np.ndarray]]:
  """Every name on every axis of every array, as `(leaf, axis, name, unit of every entry)`.

  Args:
    params: float arrays.
    axes: as in `axis_sizes`.

  Returns:
    The number of the leaf in the order of `jax.tree.leaves`, the axis, the name, and int `[n]`: the
    unit that each entry of the axis belongs to, -1 for none.

  Raises:
    ValueError: as `axis_sizes`.
  """
  axis_sizes(params, axes)
  return [(p.leaf, p.axis, p.name, p.of) for p in _places(params, axes)]


def _names(key: str, name: str) -> bool:
  return key == name or name.endswith("/" + key)


def _kept(params: Params, axes: Params, keep: Keep) -> dict[tuple[int, int], np.ndarray]:
  """Which entries stay, bool `[n]`, by leaf and axis, for those that `keep` shrinks; checked."""
  sizes = axis_sizes(params, axes)
  for name, kept in keep.items():
    if name not in sizes:
      raise ValueError(f"no axis is called {name!r}; there are {sorted(sizes)}")
    if not len(kept) or min(kept) < 0 or max(kept) >= sizes[name]:
      raise ValueError(f"keep[{name!r}] must hold units in [0, {sizes[name]}), at least one")
  found: dict[tuple[int, int], np.ndarray] = {}
  for place in _places(params, axes):
    if place.name in keep:
      stays = (place.of < 0) | np.isin(place.of, np.asarray(keep[place.name]))
      where = (place.leaf, place.axis)
      found[where] = found.get(where, True) & stays
  return found


def _places(params: Params, axes: Params) -> Iterator[_Place]:
  """Every named axis of every array."""

  def is_quantised(x: Any) -> bool:
    return hasattr(x, "rdot")

  leaves = leaves_with_path(params, is_leaf=is_quantised)
  structure: Any = jax.tree.structure(params, is_leaf=is_quantised)
  specs = structure.flatten_up_to(axes)
  for i, ((path, leaf), named) in enumerate(zip(leaves, specs, strict=True)):
    name = "/".join(path)
    if is_quantised(leaf):
      raise TypeError(f"{name} is quantised; shrink first, then quantise")
    if not isinstance(named, tuple) or len(named) != jnp.ndim(leaf):
      raise ValueError(f"{name} has shape {jnp.shape(leaf)} but axes {named}")
    for axis, entry in enumerate(named):
      if entry is None:
        continue
      if isinstance(entry, tuple) and not isinstance(entry, Axis):
        yield from (_Place(i, name, axis, units.name, np.asarray(units.of)) for units in entry)
        continue
      spec = Axis(entry) if isinstance(entry, str) else entry
      units, rest = divmod(jnp.shape(leaf)[axis], spec.repeat * spec.group)
      if rest:
        raise ValueError(f"{name}: axis {axis} of {jnp.shape(leaf)} is no whole number of {spec}")
      of = np.tile(np.repeat(np.arange(units), spec.group), spec.repeat)
      yield _Place(i, name, axis, spec.name, of)
