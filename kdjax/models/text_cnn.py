"""A convolutional encoder of text."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.layers import Conv, Dropout, Embed
from kdjax.models.linen import Sizes, collapse, from_linen, per_layer, sizes_of
from kdjax.models.text_head import embedding_or_labels, pool
from kdjax.prune.shrink import Axis
from kdjax.types import Array, Batch, Model, Outputs, Params


class TextCNN(nn.Module):
  r"""Convolutions of several widths over tokens, each pooled, side by side.

  $\text{query} = [\max_t \mathrm{relu}(K_w * E)_t]_w$: what of each pattern is in the text.
  Reads int `[B, L]`: `tokens`, and `segments`, 0 where there is no token; one text a row.

  - `pool`: an embedding of the text, float32 `[B, sum of widths]` (or `[B, out_dim]`).
  - `labels`: float32 `[B, num_labels]`.

  Features: `embedding` `[B, L, dim]`, `conv_0`, ... `[B, L, channels]` of each width, `query` (what
  the head multiplies, or the embedding).

  Attributes:
    vocab_size: V, rows of the token table.
    dim: width of the table.
    widths: tokens that each convolution sees.
    channels: of every convolution, or one number each; None for `dim`.
    head: "pool" or "labels".
    out_dim: of a linear layer after pooling, for `pool`; None for none.
    pooling: "max", "mean", "first" or "last" over the tokens.
    normalize: whether `pool` scales embeddings to length 1.
    num_labels: of the head `labels`.
    dropout: rate on embeddings and before the classifier.
    dtype: of the computation.

  Raises:
    ValueError: if `head` or `pooling` is none of these.

  Reference:
    Y. Kim, Convolutional Neural Networks for Sentence Classification, EMNLP 2014, arXiv:1408.5882.
    Deviation: texts are padded at both ends, so that each position is the middle of one window.
  """

  vocab_size: int
  dim: int = 128
  widths: Sequence[int] = (3, 4, 5)
  channels: int | Sequence[int] | None = None
  head: str = "pool"
  out_dim: int | None = None
  pooling: str = "max"
  normalize: bool = True
  num_labels: int = 2
  dropout: float = 0.1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, batch: Batch) -> Outputs:
    segments = batch["segments"]
    x = Embed(self.vocab_size, self.dim, dtype=self.dtype, name="token_embedding")(batch["tokens"])
    # Padding is 0, as it is beyond the ends: whatever stands there, a text is read the same.
    x = x * (segments != 0).astype(x.dtype)[..., None]
    features: dict[str, Array] = {"embedding": x}
    x = Dropout(self.dropout, name="dropout")(x)
    found = []
    channels = per_layer(self.channels or self.dim, len(self.widths))
    for i, (width, size) in enumerate(zip(self.widths, channels, strict=True)):
      y = nn.relu(Conv(size, (width,), dtype=self.dtype, name=f"conv_{i}")(x))
      features[f"conv_{i}"] = y
      found.append(pool(y, segments, how=self.pooling))
    query = jnp.concatenate(found, axis=-1).astype(self.dtype)
    return embedding_or_labels(self, query, features)


def make_text_cnn(**sizes: Any) -> Model:
  """A convolutional encoder of text as a pair of pure functions.

  Args:
    sizes: the fields of `TextCNN`; only `vocab_size` has no default.

  Returns:
    Model; its `apply` gives what the head says, see `TextCNN`.

  Raises:
    TypeError: if a size has another name. ValueError: by `init`, if a name is unknown, or there are
      more or fewer channels than widths.
  """
  return from_linen(TextCNN(**sizes))


def text_cnn_axes(sizes: Sizes) -> Params:
  """Names the axes of its params, for `kdjax.prune.shrink`: `dim` and `channels`.

  All widths lose the same channels, which stand side by side in the head.
  """
  module = TextCNN(**sizes)
  count = len(module.widths)
  if len(set(per_layer(module.channels or module.dim, count))) > 1:
    raise ValueError(f"channels={module.channels} must be one number to shrink")
  axes: dict[str, Any] = {"token_embedding": {"embedding": (None, "dim")}}
  for i in range(count):
    axes[f"conv_{i}"] = {"kernel": (None, "dim", "channels"), "bias": ("channels",)}
  name = "classifier" if module.head == "labels" else "out"
  if module.head == "labels" or module.out_dim is not None:
    axes[name] = {"kernel": (Axis("channels", repeat=count), None), "bias": (None,)}
  return axes


def text_cnn_sizes(params: Mapping[str, Any], sizes: Sizes) -> Sizes:
  """The sizes with which `make_text_cnn` takes `params` that were shrunk from `sizes`."""
  module = TextCNN(**sizes)
  channels = [params[f"conv_{i}"]["kernel"].shape[-1] for i in range(len(module.widths))]
  dim = params["token_embedding"]["embedding"].shape[1]
  return sizes_of(module) | {"dim": dim, "channels": collapse(channels)}
