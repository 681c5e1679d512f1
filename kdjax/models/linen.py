"""The one adapter from Flax Linen modules to `Model`."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from kdjax.types import Array, Batch, Model, Outputs, Params

Sizes = dict[str, Any]  # The arguments of a `make_<name>`.


def from_linen(module: nn.Module) -> Model:
  """A Linen module as a pair of pure functions.

  Args:
    module: its `__call__(batch)` returns `Outputs`; it keeps all its state in `params`, and reads
      randomness from the `dropout` stream only where `has_rng("dropout")`.

  Returns:
    Model. `init` gives plain nested dicts; `apply` gives the module the key, if any, as `dropout`.

  Raises:
    ValueError: by `init`, if the module keeps state outside `params` (batch statistics).

  Example:
    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> class Linear(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, batch):
    ...     return Outputs(nn.Dense(2)(batch["x"]), {})
    >>> model = from_linen(Linear())
    >>> params = model.init(jax.random.key(0), {"x": jnp.ones([1, 3])})
    >>> model.apply(params, {"x": jnp.ones([5, 3])}).logits.shape
    (5, 2)
  """

  def init(key: Array, batch: Batch) -> Params:
    variables = jax.jit(module.init)({"params": key}, batch)
    if set(variables) - {"params"}:
      raise ValueError(f"{type(module).__name__} keeps state outside params: {sorted(variables)}")
    return variables.get("params", {})

  def apply(params: Params, batch: Batch, *, key: Array | None = None) -> Outputs:
    rngs = None if key is None else {"dropout": key}
    outputs: Any = module.apply({"params": params}, batch, rngs=rngs)
    return outputs

  return Model(init, apply)


def sizes_of(module: nn.Module) -> Sizes:
  """A module's fields but `dtype`: what its `make_<name>` takes to build it again, fit for JSON."""
  own = [f.name for f in dataclasses.fields(module) if f.name not in ("parent", "name", "dtype")]
  return {name: getattr(module, name) for name in own}


def per_layer(sizes: Any, num_layers: int) -> tuple[Any, ...]:
  """One size a layer, from one for all or a sequence with one each.

  Raises:
    ValueError: if there are more or fewer than `num_layers`.

  Example:
    >>> per_layer(4, 2), per_layer([4, 3], 2)
    ((4, 4), (4, 3))
  """
  each = tuple(sizes) if isinstance(sizes, Sequence) else (sizes,) * num_layers
  if len(each) != num_layers:
    raise ValueError(f"{len(each)} sizes given for {num_layers} layers: {each}")
  return each


def collapse(sizes: Sequence[Any]) -> Any:
  """The inverse of `per_layer`: one number where all layers agree."""
  return sizes[0] if len(set(sizes)) == 1 else tuple(sizes)
