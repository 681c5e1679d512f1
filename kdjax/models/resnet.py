"""Image classification: a pre-activation ResNet whose norms look at one pixel's channels."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.layers import Conv, Dense, Dropout, LayerNorm
from kdjax.models.linen import Sizes, collapse, from_linen, per_layer, sizes_of
from kdjax.types import Array, Batch, Model, Outputs, Params


class ResNet(nn.Module):
  r"""Blocks $x \leftarrow S(x) + C_2\,\mathrm{relu}(N_2\,C_1\,\mathrm{relu}(N_1\,x))$ in stages.

  Reads `image` float `[B, H, W, C]`; gives logits float32 `[B, num_classes]`. A 3 x 3 stem, then
  `blocks` blocks a stage; from the second stage on the first block halves height and width, and its
  shortcut S is a 1 x 1 convolution of $\mathrm{relu}(N_1 x)$ (the identity elsewhere). N are layer
  norms over channels: they keep no state, and any unit may be removed. Mean over pixels, then a
  linear layer.

  Features: `stem`, `stage_0`, ... `[B, h w, width]`, pixels as positions; `pooled` `[B, width]`.

  Attributes:
    num_classes: of the logits.
    dims: width of every stage.
    blocks: of every stage.
    inner_dim: width inside of blocks, one for all or one each; None for that of their stage.
    dropout: rate before the linear layer.
    norm_widths: what the norms divide by, of every stage; None for `dims`.
    inner_norm_widths: likewise inside of blocks; None for `inner_dim`.
    dtype: of the computation.

  Reference:
    K. He et al., Identity Mappings in Deep Residual Networks, ECCV 2016, arXiv:1603.05027 (there
    with batch norm).
  """

  num_classes: int
  dims: Sequence[int] = (32, 64, 128)
  blocks: int = 1
  inner_dim: int | Sequence[int] | None = None
  dropout: float = 0.0
  norm_widths: Sequence[int] | None = None
  inner_norm_widths: int | Sequence[int] | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, batch: Batch) -> Outputs:
    inner = inner_dims(self)
    widths = self.norm_widths or self.dims
    norms = per_layer(self.inner_norm_widths or inner, len(inner))
    features: dict[str, Array] = {}

    def conv(size: int, window: int, name: str, strides: int = 1) -> Conv:
      return Conv(size, (window, window), strides, use_bias=False, dtype=self.dtype, name=name)

    def active(x: Array, width: int, name: str) -> Array:
      return nn.relu(LayerNorm(width=width, dtype=self.dtype, name=name)(x))

    x = conv(self.dims[0], 3, "stem")(batch["image"].astype(self.dtype))
    features["stem"] = _pixels(x)
    width = widths[0]
    for s, dim in enumerate(self.dims):
      for b in range(self.blocks):
        name, number = f"stage_{s}_block_{b}", s * self.blocks + b
        strides = 2 if s and not b else 1
        y = active(x, width, f"{name}_norm_1")
        if s and not b:
          x = conv(dim, 1, f"{name}_shortcut", strides)(y)
        width = widths[s]
        y = conv(inner[number], 3, f"{name}_conv_1", strides)(y)
        y = active(y, norms[number], f"{name}_norm_2")
        x = x + conv(dim, 3, f"{name}_conv_2")(y)
      features[f"stage_{s}"] = _pixels(x)
    x = active(x, width, "norm").mean(axis=(1, 2))
    features["pooled"] = x
    x = Dropout(self.dropout, name="dropout")(x)
    logits = Dense(self.num_classes, dtype=self.dtype, name="out")(x)
    return Outputs(logits.astype(jnp.float32), features)


def make_resnet(**sizes: Any) -> Model:
  """A ResNet as a pair of pure functions.

  Args:
    sizes: the fields of `ResNet`; only `num_classes` has no default.

  Returns:
    Model on image batches; `apply` gives float32 logits `[B, num_classes]`.

  Raises:
    TypeError: if a size has another name. ValueError: by `init`, if there are more or fewer inner
      sizes than blocks.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> model = make_resnet(num_classes=10, dims=(4, 8))
    >>> batch = {"image": jnp.ones([2, 8, 8, 1])}
    >>> params = model.init(jax.random.key(0), batch)
    >>> model.apply(params, batch).logits.shape
    (2, 10)
  """
  return from_linen(ResNet(**sizes))


def resnet_axes(sizes: Sizes) -> Params:
  """Names the axes of its params: `dim_0`, ... of the stages, `stage_0_block_0/inner`, ..."""
  module = ResNet(**sizes)
  spatial = (None, None)
  axes: dict[str, Any] = {"stem": {"kernel": (*spatial, None, "dim_0")}}
  for s in range(len(module.dims)):
    for b in range(module.blocks):
      name, own = f"stage_{s}_block_{b}", f"dim_{s}"
      before = f"dim_{s - 1}" if s and not b else own
      inner = f"{name}/inner"
      axes |= {
        f"{name}_norm_1": {"scale": (before,), "bias": (before,)},
        f"{name}_conv_1": {"kernel": (*spatial, before, inner)},
        f"{name}_norm_2": {"scale": (inner,), "bias": (inner,)},
        f"{name}_conv_2": {"kernel": (*spatial, inner, own)},
      }
      if s and not b:
        axes[f"{name}_shortcut"] = {"kernel": (*spatial, before, own)}
  last = f"dim_{len(module.dims) - 1}"
  return axes | {
    "norm": {"scale": (last,), "bias": (last,)},
    "out": {"kernel": (last, None), "bias": (None,)},
  }


def resnet_sizes(params: Mapping[str, Any], sizes: Sizes) -> Sizes:
  """The sizes with which `make_resnet` takes `params` that were shrunk from `sizes`."""
  module = ResNet(**sizes)
  names = [f"stage_{s}_block_{b}" for s in range(len(module.dims)) for b in range(module.blocks)]
  inner = [params[f"{name}_conv_1"]["kernel"].shape[-1] for name in names]
  dims = [params[f"stage_{s}_block_0_conv_2"]["kernel"].shape[-1] for s in range(len(module.dims))]
  return sizes_of(module) | {
    "dims": tuple(dims),
    "inner_dim": collapse(inner),
    "norm_widths": tuple(module.norm_widths or module.dims),
    "inner_norm_widths": module.inner_norm_widths or collapse(inner_dims(module)),
  }


def inner_dims(module: ResNet) -> tuple[int, ...]:
  """Width inside of every block."""
  each = [dim for dim in module.dims for _ in range(module.blocks)]
  return per_layer(module.inner_dim or tuple(each), len(each))


def _pixels(x: Array) -> Array:
  """`[B, H, W, C]` to `[B, H W, C]`."""
  return x.reshape(x.shape[0], -1, x.shape[-1])
