"""A bi-encoder: one encoder for queries and documents, which meet in a dot product alone."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from kdjax.models.bert import bert_axes, bert_sizes, make_bert
from kdjax.models.linen import Sizes
from kdjax.models.static import make_static, static_axes, static_sizes
from kdjax.models.text_cnn import make_text_cnn, text_cnn_axes, text_cnn_sizes
from kdjax.models.text_gru import make_text_gru, text_gru_axes, text_gru_sizes
from kdjax.models.text_head import known
from kdjax.types import Array, Batch, Model, Outputs, Params

SCALE = 20.0
_ENCODERS = {
  "bert": (make_bert, bert_axes, bert_sizes),
  "static": (make_static, static_axes, static_sizes),
  "text_cnn": (make_text_cnn, text_cnn_axes, text_cnn_sizes),
  "text_gru": (make_text_gru, text_gru_axes, text_gru_sizes),
}


def text_rows(tokens: Array) -> dict[str, Array]:
  """What encoders read of int `[B, L]` tokens, -1 where a text has ended."""
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
  return {"tokens": tokens, "segments": (tokens >= 0).astype(jnp.int32), "positions": positions}


def make_bi_encoder(*, encoder: str = "bert", scale: float = SCALE, **sizes: Any) -> Model:
  r"""An encoder that scores documents for queries (Siamese), as a pair of pure functions.

  $$s(q, d) = \text{scale} \cdot e(q)^\top e(d)$$

  Reads int `query_tokens` `[B, Q]` and `tokens` `[B, C, L]`, C documents a query, -1 where a text
  has ended, and gives `logits` float32 `[B, C]`. Features: `query` `[B, d]`, the embedding times
  `scale`, and `documents` `[B, C, d]`, so that the product of any two is their score.

  A batch without `query_tokens` is one of texts, `[B, L]`, and is given to the encoder as it is:
  its `logits` are embeddings, from which an index is made. The params are the encoder's own.

  Args:
    encoder: "bert", "static", "text_cnn" or "text_gru".
    scale: of the scores; with embeddings of length 1 (the encoders' default) scores lie in
      [-scale, scale], and 1 / scale is the temperature of their softmax.
    sizes: of the encoder's `make_`, whose head stays `pool`.

  Returns:
    Model.

  Raises:
    ValueError: if there is no such encoder, or another head. TypeError: if a size has another name.

  Example:
    >>> import jax
    >>> model = make_bi_encoder(encoder="static", vocab_size=9, dim=4)
    >>> batch = {"query_tokens": jnp.array([[1, 2]]), "tokens": jnp.array([[[1, 2], [3, -1]]])}
    >>> params = model.init(jax.random.key(0), batch)
    >>> round(float(model.apply(params, batch).logits[0, 0]), 3)  # A query of the same words.
    20.0

  Reference:
    N. Reimers, I. Gurevych, Sentence-BERT, EMNLP 2019, arXiv:1908.10084.
  """
  if sizes.get("head", "pool") != "pool":
    raise ValueError(f"head={sizes['head']!r}: a bi-encoder's is pool")
  own = known("encoder", encoder, _ENCODERS)[0](**sizes)

  def init(key: Array, batch: Batch) -> Params:
    texts = text_rows(batch["query_tokens"]) if "query_tokens" in batch else batch
    return own.init(key, texts)

  def apply(params: Params, batch: Batch, *, key: Array | None = None) -> Outputs:
    if "query_tokens" not in batch:
      return own.apply(params, batch, key=key)
    tokens = batch["tokens"]
    rows = text_rows(tokens.reshape(-1, tokens.shape[-1]))
    query = own.apply(params, text_rows(batch["query_tokens"]), key=key).features["query"]
    documents = own.apply(params, rows, key=key).features["query"]
    query = query * jnp.asarray(scale, query.dtype)
    documents = documents.reshape(*tokens.shape[:2], -1)
    scores = jnp.einsum("bd,bcd->bc", query, documents, preferred_element_type=jnp.float32)
    return Outputs(scores.astype(jnp.float32), {"query": query, "documents": documents})

  return Model(init, apply)


def bi_encoder_axes(sizes: Sizes) -> Params:
  """Names the axes of its params, for `kdjax.prune.shrink`: those of its encoder."""
  own = _ENCODERS[sizes.get("encoder", "bert")]
  return own[1](_of_encoder(sizes))


def bi_encoder_sizes(params: Mapping[str, Any], sizes: Sizes) -> Sizes:
  """The sizes with which `make_bi_encoder` takes `params` that were shrunk from `sizes`."""
  kept = {"encoder": sizes.get("encoder", "bert"), "scale": sizes.get("scale", SCALE)}
  return kept | _ENCODERS[kept["encoder"]][2](params, _of_encoder(sizes))


def _of_encoder(sizes: Sizes) -> Sizes:
  return {name: size for name, size in sizes.items() if name not in ("encoder", "scale")}
