"""Low-rank adapters (LoRA) of any params: few numbers to train, merged into the weights they serve.

The loss is taken at `merge(params, adapters)` and its gradient with respect to `adapters` alone:
any model takes part unchanged, and nothing of it remains when training is over.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.quant.params import AxisRule, contraction_axes, is_embedding, is_weight
from kdjax.quant.qtensor import QTensor, dequantize, is_qtensor
from kdjax.tree import leaves_with_path, map_with_path
from kdjax.types import Array, Params, Path, Select


def is_kernel(path: Path, leaf: object) -> bool:
  """Selects weights that are multiplied, float or `QTensor`: no tables, biases or norms."""
  return not is_embedding(path, leaf) and (is_qtensor(leaf) or is_weight(path, leaf))


def init(
  params: Params,
  key: Array,
  *,
  rank: int = 8,
  select: Select = is_kernel,
  axis_rule: AxisRule = contraction_axes,
) -> Params:
  r"""Adapters that change nothing yet.

  For every selected weight, $A$ `[inputs, rank]` is uniform in
  $\pm 1 / \sqrt{\text{inputs}}$ and $B$ `[rank, outputs]` is 0.

  Args:
    params: any pytree of arrays or `QTensor`s.
    key: a PRNG key; every leaf draws from one of its own.
    rank: inner width, at least 1 and at most as many as the smaller side of every weight.
    select: which leaves.
    axis_rule: `(path, leaf) -> axes` that are inputs; the others are outputs. Their sizes stay
      apart: a kernel `[in, heads, width]` has `a` `[in, rank]` and `b` `[rank, heads, width]`.

  Returns:
    Nested dicts by the keys of the params' paths, in a selected leaf's place
    `{"a": float32 [*inputs, rank], "b": float32 [rank, *outputs]}`.

  Raises:
    ValueError: if no leaf is selected, or one is too small for the rank.

  Example:
    >>> params = {"kernel": jnp.ones([4, 3]), "bias": jnp.zeros([3])}
    >>> adapters = init(params, jax.random.key(0), rank=2)
    >>> jax.tree.map(jnp.shape, adapters)
    {'kernel': {'a': (4, 2), 'b': (2, 3)}}
    >>> bool(jnp.array_equal(merge(params, adapters)["kernel"], params["kernel"]))
    True

  Reference:
    E. Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, arXiv:2106.09685;
    A as in their code.
  """
  adapters: dict[str, Any] = {}
  for index, (path, leaf) in enumerate(leaves_with_path(params, is_leaf=is_qtensor)):
    if not select(path, leaf):
      continue
    ins, outs = _sides(path, leaf, axis_rule)
    least = min(math.prod(ins), math.prod(outs))
    if not 1 <= rank <= least:
      raise ValueError(f"rank={rank} does not fit {'/'.join(path)}: at least 1, at most {least}")
    bound = math.prod(ins) ** -0.5
    a = jax.random.uniform(
      jax.random.fold_in(key, index), (*ins, rank), jnp.float32, minval=-bound, maxval=bound
    )
    at = adapters
    for name in path:
      at = at.setdefault(name, {})
    at |= {"a": a, "b": jnp.zeros([rank, *outs], jnp.float32)}
  if not adapters:
    raise ValueError("no leaf was selected")
  return adapters


def merge(
  params: Params,
  adapters: Params,
  *,
  scale: float = 1.0,
  axis_rule: AxisRule = contraction_axes,
) -> Params:
  r"""The params with their adapters added: $W + \mathrm{scale} \cdot A B$.

  Args:
    params: what `init` was given. A `QTensor` becomes float: its rounding stays in the sum.
    adapters: from `init`, trained or not.
    scale: alpha / rank in the paper.
    axis_rule: as in `init`.

  Returns:
    A tree like `params`; every leaf keeps its dtype. Gradients reach both trees.

  Raises:
    ValueError: if an adapter has no leaf, or one of another shape.

  Example:
    >>> params = {"kernel": jnp.zeros([2, 2])}
    >>> adapters = {"kernel": {"a": jnp.array([[1.0], [2.0]]), "b": jnp.array([[3.0, 4.0]])}}
    >>> merge(params, adapters, scale=0.5)["kernel"].tolist()
    [[1.5, 2.0], [3.0, 4.0]]

  Reference:
    As `init`. With `QTensor`s: T. Dettmers et al., QLoRA, NeurIPS 2023, arXiv:2305.14314.
  """
  factors = dict(leaves_with_path(adapters))
  paths = {path for path, _ in leaves_with_path(params, is_leaf=is_qtensor)}
  if strange := sorted({"/".join(path[:-1]) for path in factors if path[:-1] not in paths}):
    raise ValueError(f"adapters of no leaf: {', '.join(strange)}")

  def add(path: Path, leaf: Array | QTensor) -> Array | QTensor:
    if (*path, "a") not in factors:
      return leaf
    ins, outs = _sides(path, leaf, axis_rule)
    a, b = (factors[*path, name] for name in "ab")
    if a.shape[:-1] != ins or b.shape != (a.shape[-1], *outs):
      raise ValueError(
        f"{'/'.join(path)}: a {a.shape} and b {b.shape} do not fit inputs {ins}, outputs {outs}"
      )
    axes = _axes(path, leaf, axis_rule)
    change = jnp.moveaxis(jnp.tensordot(a, b, axes=1), range(len(axes)), axes)
    weight = dequantize(leaf) if isinstance(leaf, QTensor) else leaf
    return (weight.astype(jnp.float32) + scale * change).astype(weight.dtype)

  return map_with_path(add, params, is_leaf=is_qtensor)


def _axes(path: Path, leaf: Array | QTensor, axis_rule: AxisRule) -> tuple[int, ...]:
  axes = axis_rule(path, leaf)
  return (axes,) if isinstance(axes, int) else tuple(axes)


def _sides(
  path: Path, leaf: Array | QTensor, axis_rule: AxisRule
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Sizes of inputs and of outputs."""
  axes = {axis % leaf.ndim for axis in _axes(path, leaf, axis_rule)}
  ins = tuple(leaf.shape[axis] for axis in sorted(axes))
  return ins, tuple(size for axis, size in enumerate(leaf.shape) if axis not in axes)
