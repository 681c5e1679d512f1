"""Static token embeddings, pooled: the smallest encoder of text, a table and a mean."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from kdjax.layers import Embed
from kdjax.models.linen import Sizes, from_linen, sizes_of
from kdjax.models.text_head import embedding_or_labels, pool
from kdjax.types import Array, Batch, Model, Outputs, Params


class Static(nn.Module):
  r"""The mean of the rows $E[\text{tokens}]$: as fast as a lookup, blind to the order of tokens.

  Reads int `[B, L]`: `tokens`, and `segments`, 0 where there is no token. With the head `labels` it
  is a linear classifier of bags of tokens (fastText).

  - `pool`: an embedding of the text, float32 `[B, dim]` (or `[B, out_dim]`).
  - `labels`: float32 `[B, num_labels]`.

  Features: `embedding` `[B, L, dim]`, `query` (what the head multiplies, or the embedding).

  Attributes:
    vocab_size: V, rows of the token table.
    dim: width of the table.
    head: "pool" or "labels".
    out_dim: of a linear layer after the mean, for `pool`; None for none.
    pooling: "mean", "max", "first" or "last" over the tokens.
    normalize: whether `pool` scales embeddings to length 1.
    num_labels: of the head `labels`.
    dropout: rate before the classifier.
    dtype: of the computation.

  Raises:
    ValueError: if `head` or `pooling` is none of these.

  Reference:
    A. Joulin et al., Bag of Tricks for Efficient Text Classification, EACL 2017, arXiv:1607.01759.
    S. Tulkens, T. van Dongen, Model2Vec, 2024 (static tables distilled from sentence encoders).
  """

  vocab_size: int
  dim: int = 256
  head: str = "pool"
  out_dim: int | None = None
  pooling: str = "mean"
  normalize: bool = True
  num_labels: int = 2
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, batch: Batch) -> Outputs:
    tokens = Embed(self.vocab_size, self.dim, dtype=self.dtype, name="token_embedding")
    x = tokens(batch["tokens"])
    query = pool(x, batch["segments"], how=self.pooling).astype(self.dtype)
    return embedding_or_labels(self, query, {"embedding": x})


def make_static(**sizes: Any) -> Model:
  """Pooled static embeddings as a pair of pure functions.

  Args:
    sizes: the fields of `Static`; only `vocab_size` has no default.

  Returns:
    Model; its `apply` gives what the head says, see `Static`.

  Raises:
    TypeError: if a size has another name. ValueError: by `init`, if a name is unknown.
  """
  return from_linen(Static(**sizes))


def static_axes(sizes: Sizes) -> Params:
  """Names the axes of its params, for `kdjax.prune.shrink`: `dim`."""
  module = Static(**sizes)
  axes: dict[str, Any] = {"token_embedding": {"embedding": (None, "dim")}}
  if module.head == "labels":
    axes["classifier"] = {"kernel": ("dim", None), "bias": (None,)}
  elif module.out_dim is not None:
    axes["out"] = {"kernel": ("dim", None), "bias": (None,)}
  return axes


def static_sizes(params: Mapping[str, Any], sizes: Sizes) -> Sizes:
  """The sizes with which `make_static` takes `params` that were shrunk from `sizes`."""
  return sizes_of(Static(**sizes)) | {"dim": params["token_embedding"]["embedding"].shape[1]}


def distill_table(
  embeddings: Array | np.ndarray,
  counts: Array | np.ndarray,
  *,
  dim: int,
  smoothing: float = 1e-3,
) -> np.ndarray:
  r"""A token table from a teacher's embedding of every token alone (host side).

  Rows are centred at their mean, brought to `dim` by their principal components (PCA), and weighed
  by $w_i = a / (a + p_i)$ with $p_i$ the share of token i in a corpus: frequent tokens say little.

  Args:
    embeddings: float `[V, D]`, what the teacher makes of each token as a text of its own.
    counts: `[V]`, how often each token occurs in the corpus, at least 0.
    dim: at most V and D.
    smoothing: a, positive.

  Returns:
    float32 `[V, dim]`, for `Static`'s `token_embedding/embedding`.

  Raises:
    ValueError: if shapes or numbers do not fit, or no token was counted.

  Example:
    >>> table = distill_table(np.eye(4, 3), np.array([5, 1, 0, 0]), dim=2)
    >>> table.shape, table.dtype.name
    ((4, 2), 'float32')

  Reference:
    S. Arora et al., A Simple but Tough-to-Beat Baseline for Sentence Embeddings, ICLR 2017 (the
    weights). S. Tulkens, T. van Dongen, Model2Vec, 2024 (tokens alone, PCA).
  """
  rows, counts = np.asarray(embeddings, np.float64), np.asarray(counts, np.float64)
  if rows.ndim != 2 or counts.shape != rows.shape[:1] or not 1 <= dim <= min(rows.shape):
    raise ValueError(
      f"embeddings {rows.shape}, counts {counts.shape}, dim={dim}: [V, D], [V] and 1 to min(V, D)"
    )
  if smoothing <= 0 or counts.min() < 0 or counts.sum() == 0:
    raise ValueError(f"smoothing={smoothing} is positive, counts at least 0 and not all 0")
  rows = rows - rows.mean(axis=0)
  _, directions = np.linalg.eigh(rows.T @ rows)
  rows = rows @ directions[:, ::-1][:, :dim]
  weights = smoothing / (smoothing + counts / counts.sum())
  return (rows * weights[:, None]).astype(np.float32)
