"""From scores to masks, and from masks to zeros. A mask is True where a weight stays."""

import jax
import jax.numpy as jnp

from kdjax.prune.distributions import Distribution, uniform
from kdjax.prune.patterns import Pattern, unstructured
from kdjax.tree import is_matrix, leaves_with_path
from kdjax.types import Array, Params, Select


def make_masks(
  scores: Params,
  *,
  sparsity: float | Array,
  select: Select = is_matrix,
  pattern: Pattern = unstructured,
  distribution: Distribution = uniform,
) -> Params:
  """Masks that remove the lowest scores.

  Args:
    scores: float arrays of the structure and shapes of the params, see `kdjax.prune.criteria`.
    sparsity: the fraction of the selected weights to remove, in [0, 1]; a float or a traced
      float32 scalar. Exactly `round(sparsity * size)` are removed, of each leaf or of all
      together, as the distribution says.
    select: which leaves take part; the others get an all-True mask.
    pattern: where weights may be removed: `unstructured` (the default) or `n_m(2, 4)`.
    distribution: how the sparsity spreads over leaves: `uniform`, `global_sparsity` or
      `erdos_renyi_kernel`.

  Returns:
    bool arrays of exactly the structure of `scores`, True where a weight stays.

  Raises:
    ValueError: if `sparsity` lies outside [0, 1], or a pattern cannot remove that many.

  Example:
    >>> import jax.numpy as jnp
    >>> scores = {"kernel": jnp.array([[3.0, 1.0], [2.0, 1.0]]), "bias": jnp.zeros([2])}
    >>> masks = make_masks(scores, sparsity=0.25)
    >>> masks["kernel"].tolist(), masks["bias"].tolist()
    ([[True, True], [True, False]], [True, True])
  """
  if isinstance(sparsity, int | float) and not 0 <= sparsity <= 1:
    raise ValueError(f"sparsity must lie in [0, 1], got {sparsity}")
  found = leaves_with_path(scores)
  chosen = [select(path, leaf) for path, leaf in found]
  selected = [leaf for (_, leaf), keep in zip(found, chosen, strict=True) if keep]
  counts = iter(distribution(selected, sparsity) if selected else [])
  masks = [
    pattern(leaf, next(counts)) if keep else jnp.ones(jnp.shape(leaf), bool)
    for (_, leaf), keep in zip(found, chosen, strict=True)
  ]
  return jax.tree.unflatten(jax.tree.structure(scores), masks)


def apply_masks(params: Params, masks: Params) -> Params:
  """`params` with exactly 0 where the mask is False.

  Args:
    params: any pytree of arrays.
    masks: bool, the same structure and shapes.

  Returns:
    The same structure, shapes and dtypes as `params`.

  Example:
    >>> import jax.numpy as jnp
    >>> apply_masks({"w": jnp.array([2.0, 3.0])}, {"w": jnp.array([True, False])})["w"].tolist()
    [2.0, 0.0]
  """
  return jax.tree.map(lambda w, m: jnp.where(m, w, jnp.zeros([], w.dtype)), params, masks)


def measure_sparsity(masks: Params, *, select: Select = is_matrix) -> float:
  """The fraction of the selected weights that masks remove (host side).

  Example:
    >>> import jax.numpy as jnp
    >>> measure_sparsity({"w": jnp.array([[True, False]]), "b": jnp.ones([2], bool)})
    0.5
  """
  chosen = [leaf for path, leaf in leaves_with_path(masks) if select(path, leaf)]
  removed = sum(leaf.size - int(jnp.sum(leaf)) for leaf in chosen)
  return removed / max(sum(leaf.size for leaf in chosen), 1)
