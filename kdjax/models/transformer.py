"""The pre-norm transformer blocks that the sequence models share, and their axes as data."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.layers import Attention, Dense, Dropout, LayerNorm
from kdjax.models.linen import Sizes, collapse, per_layer
from kdjax.prune.shrink import Axis
from kdjax.types import Array, Params


class Block(nn.Module):
  """`x += drop(attention(norm_1(x)))`, then `x += drop(down(drop(activation(up(norm_2(x))))))`.

  Features of its own it names none: the model that holds it does.
  """

  num_heads: int
  head_dim: int
  mlp_dim: int
  causal: bool
  activation: Callable[[Array], Array]
  dropout: float
  norm_width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, segments: Array) -> tuple[Array, dict[str, Array]]:
    """`x` float `[B, L, dim]` to the same, and what `Attention` names."""

    def norm(name: str) -> LayerNorm:
      return LayerNorm(width=self.norm_width, dtype=self.dtype, name=name)

    drop = self.dropout
    attention = Attention(
      self.num_heads, self.head_dim, self.causal, drop, dtype=self.dtype, name="attention"
    )
    y, parts = attention(norm("norm_1")(x), segments)
    x = x + Dropout(drop, name="dropout_1")(y)
    y = Dense(self.mlp_dim, dtype=self.dtype, name="up")(norm("norm_2")(x))
    y = Dropout(drop, name="dropout_2")(self.activation(y))
    y = Dense(x.shape[-1], dtype=self.dtype, name="down")(y)
    return x + Dropout(drop, name="dropout_3")(y), parts


def block_axes(name: str, head_dim: int) -> Params:
  """The axes of a `Block` called `name`: `dim`, `<name>/heads` (grouped by head), `<name>/mlp`."""
  heads, mlp = Axis(f"{name}/heads", group=head_dim), f"{name}/mlp"
  into_heads = {"kernel": ("dim", heads), "bias": (heads,)}
  return {
    "norm_1": norm_axes(),
    "attention": {
      "query": into_heads,
      "key": into_heads,
      "value": into_heads,
      "out": {"kernel": (heads, "dim"), "bias": ("dim",)},
    },
    "norm_2": norm_axes(),
    "up": {"kernel": ("dim", mlp), "bias": (mlp,)},
    "down": {"kernel": (mlp, "dim"), "bias": ("dim",)},
  }


def width_of_head(module: Any) -> int:
  """Columns of a head: a transformer module's `head_dim`, or what it is when not given."""
  heads = per_layer(module.num_heads, module.num_layers)
  return module.head_dim or module.dim // max(heads, default=1)


def scale_of_embedding(module: Any) -> float:
  """What item rows are multiplied by: `embedding_scale`, or what it is when not given."""
  return module.dim**0.5 if module.embedding_scale is None else module.embedding_scale


def norm_axes() -> Params:
  """The axes of a `LayerNorm` on the residual stream."""
  return {"scale": ("dim",), "bias": ("dim",)}


def transformer_sizes(
  params: Mapping[str, Any], module: Any, *, table: str = "item_embedding"
) -> Sizes:
  """The sizes that shrinking changes, read off the shapes of `params`.

  Args:
    params: of a model with `item_embedding` (or another `table`) and blocks `block_0`, ...
    module: that model before shrinking: its `dim`, `head_dim` and norm width are kept.
    table: of which embeddings are rows.

  Returns:
    `dim`, `num_layers`, `num_heads`, `head_dim`, `mlp_dim`, `norm_width`.
  """
  num_layers = sum(name.startswith("block_") for name in params)
  blocks = [params[f"block_{i}"] for i in range(num_layers)]
  head_dim = width_of_head(module)
  heads = [b["attention"]["query"]["kernel"].shape[1] // head_dim for b in blocks]
  return {
    "dim": params[table]["embedding"].shape[1],
    "num_layers": num_layers,
    "num_heads": collapse(heads),
    "head_dim": head_dim,
    "mlp_dim": collapse([b["up"]["kernel"].shape[1] for b in blocks]),
    "norm_width": module.norm_width or module.dim,
  }
