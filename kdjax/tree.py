"""Helpers on pytrees: paths, selection, counting, bytes."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from kdjax.types import Params, Path, Select


def path_of(key_path: tuple[Any, ...]) -> Path:
  """A JAX key path as a tuple of strings.

  Example:
    >>> import jax
    >>> [path_of(p) for p, _ in jax.tree_util.tree_leaves_with_path({"a": [0, 1]})]
    [('a', '0'), ('a', '1')]
  """
  return tuple(jax.tree_util.keystr((key,), simple=True) for key in key_path)


def map_with_path(fn: Callable[..., Any], tree: Params, *rest: Params, is_leaf=None) -> Params:
  """`jax.tree.map` whose function takes the leaf's path first: `fn(path, leaf, *leaves)`."""
  return jax.tree_util.tree_map_with_path(
    lambda key_path, *leaves: fn(path_of(key_path), *leaves), tree, *rest, is_leaf=is_leaf
  )


def leaves_with_path(tree: Params, *, is_leaf=None) -> list[tuple[Path, Any]]:
  """All leaves with their paths, in the tree's own order."""
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
  return [(path_of(key_path), leaf) for key_path, leaf in leaves]


def is_matrix(path: Path, leaf: Any) -> bool:
  """Selects leaves with two axes or more: kernels and embedding tables, no biases or norms."""
  del path
  return jnp.ndim(leaf) >= 2


def under(*prefix: str, select: Select = lambda path, leaf: True) -> Select:
  """Selects what `select` selects below `prefix`; `select` sees the path after it.

  Example:
    >>> student = under("student", select=lambda path, leaf: path[-1] == "kernel")
    >>> student(("student", "dense", "kernel"), None), student(("helpers", "kernel"), None)
    (True, False)
  """

  def selected(path: Path, leaf: Any) -> bool:
    return path[: len(prefix)] == prefix and select(path[len(prefix) :], leaf)

  return selected


def vary_as(tree: Params, *like: Params, but: str | None = None) -> Params:
  """The same values, typed to differ between devices as those of `like` do.

  Inside `jax.shard_map` an array has a type that says over which axes of the mesh it varies, and
  what a loop carries must keep its type: constants that a loop starts from must vary as what it
  adds to them. Elsewhere this changes nothing.

  Args:
    tree: arrays that a loop starts from.
    like: what the loop reads.
    but: an axis that is left as it is.

  Example:
    >>> import jax.numpy as jnp
    >>> vary_as(jnp.zeros([2]), jnp.ones([3])).tolist()
    [0.0, 0.0]
  """
  axes = frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(like)))

  def cast(x: Any) -> Any:
    missing = tuple(sorted(axes - {but} - jax.typeof(x).manual_axis_type.varying))
    return jax.lax.pcast(x, missing, to="varying") if missing else x

  return jax.tree.map(cast, tree)


def count_params(tree: Params) -> int:
  """How many numbers the tree holds."""
  return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


def count_nonzero(tree: Params) -> int:
  """How many numbers of the tree are not 0."""
  return sum(int(jnp.count_nonzero(leaf)) for leaf in jax.tree.leaves(tree))


def count_bytes(tree: Params) -> int:
  """Bytes the tree's arrays take; two int4 to a byte, as they are stored."""

  def bits(dtype: Any) -> int:
    return jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else 8 * dtype.itemsize

  leaves = jax.tree.leaves(tree)
  return sum(-(-math.prod(jnp.shape(leaf)) * bits(leaf.dtype) // 8) for leaf in leaves)


def to_host(tree: Params) -> Params:
  """Whole arrays on the host, on every process; where several hold parts of one, all must call it.

  Example:
    >>> import jax.numpy as jnp
    >>> to_host({"a": jnp.ones([2])})
    {'a': array([1., 1.], dtype=float32)}
  """

  def one(x: Any) -> Any:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return multihost_utils.process_allgather(x, tiled=True)
    return jax.device_get(x)

  return jax.tree.map(one, tree)
