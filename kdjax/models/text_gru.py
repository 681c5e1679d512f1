"""A recurrent encoder of text: GRU or LSTM."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.layers import Embed
from kdjax.models.linen import Sizes, collapse, from_linen, per_layer, sizes_of
from kdjax.models.recurrent import recurrent_axes, recurrent_layers, recurrent_widths
from kdjax.models.text_head import embedding_or_labels, pool
from kdjax.types import Array, Batch, Model, Outputs, Params


class TextGRU(nn.Module):
  """Recurrent layers over tokens, in both directions or one, then pooled.

  Reads int `[B, L]`: `tokens`, and `segments`, 0 where there is no token; one text a row.

  - `pool`: an embedding of the text, float32 `[B, H]` (or `[B, out_dim]`), H of the last layer.
  - `labels`: float32 `[B, num_labels]`.

  Features: `embedding` `[B, L, dim]`, `layer_0`, ... `[B, L, hidden_dim]` (twice that in both
  directions), `query` (what the head multiplies, or the embedding).

  Attributes:
    vocab_size: V, rows of the token table.
    dim: width of the table.
    hidden_dim: width of every layer's state, or one number a layer; None for `dim`.
    num_layers: recurrent layers.
    cell: what they are: "gru" or "lstm".
    bidirectional: whether every layer also reads from the end, its states beside the others.
    head: "pool" or "labels".
    out_dim: of a linear layer after pooling, for `pool`; None for none.
    pooling: "mean", "max", "first" or "last" over the tokens.
    normalize: whether `pool` scales embeddings to length 1.
    num_labels: of the head `labels`.
    dropout: rate on embeddings, every layer's output and before the classifier.
    dtype: of the computation; gates and states stay float32.

  Raises:
    ValueError: if `cell`, `head` or `pooling` is none of these.

  Reference:
    K. Cho et al., EMNLP 2014, arXiv:1406.1078 (see `GRU`, and `LSTM` beside it). A. Conneau et al.,
    Supervised Learning of Universal Sentence Representations from Natural Language Inference Data,
    EMNLP 2017, arXiv:1705.02364 (both directions, the maximum over tokens).
  """

  vocab_size: int
  dim: int = 128
  hidden_dim: int | Sequence[int] | None = None
  num_layers: int = 1
  cell: str = "gru"
  bidirectional: bool = True
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
    features: dict[str, Array] = {"embedding": x}
    x = recurrent_layers(
      x,
      segments,
      per_layer(self.hidden_dim or self.dim, self.num_layers),
      bidirectional=self.bidirectional,
      dropout=self.dropout,
      features=features,
      cell=self.cell,
    )
    query = pool(x, segments, how=self.pooling).astype(self.dtype)
    return embedding_or_labels(self, query, features)


def make_text_gru(**sizes: Any) -> Model:
  """A recurrent encoder of text as a pair of pure functions.

  Args:
    sizes: the fields of `TextGRU`; only `vocab_size` has no default.

  Returns:
    Model; its `apply` gives what the head says, see `TextGRU`.

  Raises:
    TypeError: if a size has another name. ValueError: by `init`, if a name is unknown, or there are
      more or fewer sizes than layers.
  """
  return from_linen(TextGRU(**sizes))


def text_gru_axes(sizes: Sizes) -> Params:
  """Names the axes of its params, for `kdjax.prune.shrink`: `dim` and `layer_0/hidden`, ...

  Both directions of a layer lose the same units, so that their states stay of one width.
  """
  module = TextGRU(**sizes)
  axes, below = recurrent_axes(
    module.num_layers, "dim", bidirectional=module.bidirectional, cell=module.cell
  )
  axes["token_embedding"] = {"embedding": (None, "dim")}
  name = "classifier" if module.head == "labels" else "out"
  if module.head == "labels" or module.out_dim is not None:
    axes[name] = {"kernel": (below, None), "bias": (None,)}
  return axes


def text_gru_sizes(params: Mapping[str, Any], sizes: Sizes) -> Sizes:
  """The sizes with which `make_text_gru` takes `params` that were shrunk from `sizes`."""
  hidden = recurrent_widths(params)
  dim = params["token_embedding"]["embedding"].shape[1]
  new = {"dim": dim, "hidden_dim": collapse(hidden), "num_layers": len(hidden)}
  return sizes_of(TextGRU(**sizes)) | new
