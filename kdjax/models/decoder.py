"""Causal language models (GPT-2, Llama, Mistral, Qwen, Gemma), whole or token by token."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.layers import Dropout, Embed
from kdjax.models.decoder_block import BlockSizes, DecoderBlock, norm_of
from kdjax.models.linen import Sizes, collapse, from_linen, per_layer, sizes_of
from kdjax.models.rotary import rotary_frequencies
from kdjax.models.text_head import ACTIVATIONS, embedding, known
from kdjax.models.transformer import norm_axes, scale_of_embedding, transformer_sizes, width_of_head
from kdjax.prune.shrink import Axis
from kdjax.types import Array, Batch, FactoredLogits, Model, Outputs, Params

HEADS = ("pool", "tokens")


class Cache(NamedTuple):
  """What a decoder remembers of the positions it has read.

  Attributes:
    keys: of every block, float `[B, kv heads, S, head_dim]`, S the most positions it can hold.
    values: as `keys`.
    segments: int32 `[B, S]`, 0 where there is no token.
    length: int32 `[]`, how many positions have been read.
  """

  keys: tuple[Array, ...]
  values: tuple[Array, ...]
  segments: Array
  length: Array


class Cached(NamedTuple):
  """A language model that reads on where it stopped, as two pure functions.

  Attributes:
    init: `init(batch_size, length, dtype=float32) -> Cache`, empty, for `length` positions.
    extend: `extend(params, batch, cache) -> (Outputs, Cache)`: the outputs of new positions, which
      see those in the cache that are of their segment, and the cache with them.
  """

  init: Callable[..., Any]
  extend: Callable[[Params, Batch, Any], tuple[Outputs, Any]]


class Decoder(nn.Module):
  r"""A pre-norm causal transformer over tokens; its sizes say of which kind.

  $x_0 = s E[\text{tokens}]$ (plus $P[\text{positions}]$ without rotary positions); every block adds
  attention of its norm and a feed-forward part of its norm, each normed again with `post_norms`:
  `down(f(gate(y)) * up(y))`, or `down(f(up(y)))` where not `gated`; a norm ends it. Reads int
  `[B, L]`: `tokens`; `segments`, 0 where there is no token; `positions`. Rows may hold several
  texts of segments 1, 2, ...; `pool` reads one a row.

  - `tokens`: `FactoredLogits` over the vocabulary at every position, of the token that follows;
    with a `logit_cap` float32 `[B, L, V]`.
  - `pool`: an embedding of the text, the pooled last layer, float32 `[B, dim]`.

  Features: `embedding`, `block_0`, `block_1`, ... `[B, L, dim]`, `query` (what the head
  multiplies), and of every block those of `Attention`: queries and keys before norms and rotation.

  Attributes:
    vocab_size: V, rows of the token table.
    max_length: rows of the position table; with rotary positions a remark only.
    dim: width of the residual stream.
    num_layers: blocks.
    num_heads: query heads of every block, or one number a block.
    num_kv_heads: heads of keys and values, a divisor of `num_heads`; None for as many.
    head_dim: columns of a head; None for `dim // num_heads`.
    mlp_dim: hidden width of the feed-forward parts, or one a block; None for 4 dim.
    rms_norm: `RMSNorm`; else `LayerNorm`.
    norm_offset: of every `RMSNorm`.
    epsilon: of the norms.
    post_norms: norms of what attention and feed-forward add, too.
    head_norms: an `RMSNorm` of queries and keys, a head at a time.
    gated: whether feed-forward parts have a gate.
    activation: f: "silu", "gelu" (exact), "gelu_tanh", "relu" or "tanh".
    attention_bias: of queries, keys and values.
    out_bias: of attention's output.
    mlp_bias: of feed-forward parts.
    rope_theta: base of rotary positions, or one a block; None for a position table.
    rope_factor: stretches positions, or one a block; see `rotary_frequencies`.
    rope_bands: for all blocks; see `rotary_frequencies`.
    window: how many positions a query sees, itself among them, or one a block; None for all.
    query_scale: of queries; None for `head_dim ** -0.5`.
    attention_cap: c of `attend`; None for none.
    logit_cap: logits become `cap tanh(logits / cap)`; None for none.
    embedding_scale: s; None for `dim ** 0.5`.
    tied: logits multiply the token table; else one of their own.
    dropout: rate on embeddings, attention weights and both residual branches.
    head: "tokens" or "pool".
    pooling: "last", "mean", "first" or "max" over the tokens, of the head `pool`.
    normalize: whether `pool` scales embeddings to length 1.
    norm_width: what norms divide their statistics by, None for `dim`; see `LayerNorm`.
    dtype: of the computation.

  Raises:
    ValueError: if a name is none of these, or `num_heads` is no multiple of `num_kv_heads`.

  Reference:
    A. Radford et al., Language Models are Unsupervised Multitask Learners, 2019 (GPT-2). H. Touvron
    et al., LLaMA, 2023, arXiv:2302.13971. J. Ainslie et al., GQA, EMNLP 2023, arXiv:2305.13245. N.
    Shazeer, GLU Variants Improve Transformer, 2020, arXiv:2002.05202. A. Jiang et al., Mistral 7B,
    2023, arXiv:2310.06825. Qwen Team, Qwen2 and Qwen3 Technical Reports, arXiv:2407.10671,
    arXiv:2505.09388. Gemma Team, Gemma 1 to 3, arXiv:2403.08295, arXiv:2408.00118,
    arXiv:2503.19786.
  """

  vocab_size: int
  max_length: int = 1024
  dim: int = 256
  num_layers: int = 4
  num_heads: int | Sequence[int] = 4
  num_kv_heads: int | Sequence[int] | None = None
  head_dim: int | None = None
  mlp_dim: int | Sequence[int] | None = None
  rms_norm: bool = True
  norm_offset: float = 0.0
  epsilon: float = 1e-6
  post_norms: bool = False
  head_norms: bool = False
  gated: bool = True
  activation: str = "silu"
  attention_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  rope_theta: float | Sequence[float] | None = 10000.0
  rope_factor: float | Sequence[float] = 1.0
  rope_bands: tuple[float, float, float] | None = None
  window: int | Sequence[int | None] | None = None
  query_scale: float | None = None
  attention_cap: float | None = None
  logit_cap: float | None = None
  embedding_scale: float | None = 1.0
  tied: bool = True
  dropout: float = 0.0
  head: str = "tokens"
  pooling: str = "last"
  normalize: bool = True
  norm_width: int | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, batch: Batch, cache: Cache | None = None) -> Any:
    """Outputs; with a cache `(Outputs, Cache)`."""
    if self.head not in HEADS:
      raise ValueError(f"head={self.head!r}: there are {', '.join(HEADS)}")
    known("activation", self.activation, ACTIVATIONS)
    segments, positions = batch["segments"], batch["positions"]
    tokens = Embed(self.vocab_size, self.dim, dtype=self.dtype, name="token_embedding")
    x = tokens(batch["tokens"]) * jnp.asarray(scale_of_embedding(self), self.dtype)
    if self.rope_theta is None:
      table = Embed(self.max_length, self.dim, dtype=self.dtype, name="position_embedding")
      x += table(positions)
    features: dict[str, Array] = {"embedding": x}
    x = Dropout(self.dropout, name="dropout")(x)
    seen: Any = None
    if cache is not None:
      new = segments.astype(cache.segments.dtype)
      seen = jax.lax.dynamic_update_slice_in_dim(cache.segments, new, cache.length, 1)
    remembered = []
    for i in range(self.num_layers):
      memory = None if cache is None else (cache.keys[i], cache.values[i], seen, cache.length)
      block = DecoderBlock(self.of_block(i), name=f"block_{i}")
      x, parts, kept = block(x, segments, positions, memory)
      remembered.append(kept)
      features[f"block_{i}"] = x
      features |= {f"block_{i}_{name}": value for name, value in parts.items()}
    x = norm_of(self, "norm")(x)
    outputs = self.outputs(x, tokens, segments, features)
    if cache is None:
      return outputs
    keys, values = (tuple(kept) for kept in zip(*remembered, strict=True))
    return outputs, Cache(keys, values, seen, cache.length + segments.shape[1])

  def outputs(
    self, x: Array, tokens: Embed, segments: Array, features: dict[str, Array]
  ) -> Outputs:
    """What the head makes of the normed last layer."""
    if self.head == "pool":
      return embedding(self, x, segments, features)
    if not self.tied:
      tokens = Embed(self.vocab_size, self.dim, dtype=self.dtype, name="output_embedding")
    logits: Any = FactoredLogits(x, tokens.table())
    if self.logit_cap is not None:
      logits = self.logit_cap * jnp.tanh(logits.dense() / self.logit_cap)
    return Outputs(logits, features | {"query": x})

  def of_block(self, i: int) -> BlockSizes:
    """What block `i` is made with."""
    each = lambda sizes: per_layer(sizes, self.num_layers)[i]  # noqa: E731
    heads, theta, width = each(self.num_heads), each(self.rope_theta), width_of_head(self)
    kv_heads = heads if self.num_kv_heads is None else each(self.num_kv_heads)
    if heads % kv_heads:
      raise ValueError(f"num_heads={heads} is no multiple of num_kv_heads={kv_heads}")
    frequencies = None
    if theta is not None:
      factor = each(self.rope_factor)
      frequencies = rotary_frequencies(width, theta, factor=factor, bands=self.rope_bands)
    same = {name: getattr(self, name) for name in BlockSizes._fields if hasattr(self, name)}
    return BlockSizes(
      **same
      | {
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": width,
        "mlp_dim": each(self.mlp_dim or 4 * self.dim),
        "frequencies": frequencies,
        "window": each(self.window),
        "query_scale": width**-0.5 if self.query_scale is None else self.query_scale,
      }
    )


def make_decoder(**sizes: Any) -> Model:
  """A causal language model as a pair of pure functions.

  Args:
    sizes: the fields of `Decoder`; only `vocab_size` has no default.

  Returns:
    Model; its `apply` gives what the head says, see `Decoder`.

  Raises:
    TypeError: if a size has another name. ValueError: by `init`, see `Decoder`.

  Example:
    >>> model = make_decoder(vocab_size=9, dim=8, num_layers=1, num_heads=4, num_kv_heads=2)
    >>> tokens = jnp.array([[2, 5, 3, -1]])
    >>> batch = {"tokens": tokens, "segments": (tokens >= 0) * 1, "positions": jnp.arange(4)[None]}
    >>> model.apply(model.init(jax.random.key(0), batch), batch).logits.dense().shape
    (1, 4, 9)
  """
  return from_linen(Decoder(**sizes))


def make_cached(**sizes: Any) -> Cached:
  """The same model as `make_decoder(**sizes)`, reading on from a cache.

  Rows must not hold padding between their tokens: pad on the left, see
  `kdjax.models.generate.generate`.

  Args:
    sizes: the fields of `Decoder`, `head` "tokens".

  Returns:
    Cached; its functions may be compiled. A cache of S positions must not be given more than S.

  Raises:
    ValueError: for the head `pool`; by `init`, if the position table has fewer rows than `length`.

  Example:
    >>> sizes = dict(vocab_size=9, dim=8, num_layers=1, num_heads=2)
    >>> one = jnp.ones([1, 1], jnp.int32)
    >>> batch = {"tokens": one, "segments": one, "positions": 0 * one}
    >>> params = make_decoder(**sizes).init(jax.random.key(0), batch)
    >>> cached = make_cached(**sizes)
    >>> outputs, cache = cached.extend(params, batch, cached.init(1, 5))
    >>> int(cache.length), cache.keys[0].shape
    (1, (1, 2, 5, 4))
  """
  module = Decoder(**sizes)
  if module.head != "tokens":
    raise ValueError(f"head={module.head!r} reads whole texts; only 'tokens' reads on")

  def init(batch_size: int, length: int, dtype: Any = None) -> Cache:
    if module.rope_theta is None and length > module.max_length:
      raise ValueError(f"{length} positions, but the position table has {module.max_length} rows")
    kept = []
    for i in range(module.num_layers):
      block = module.of_block(i)
      shape = (batch_size, block.num_kv_heads, length, block.head_dim)
      kept.append(jnp.zeros(shape, dtype or module.dtype))
    empty = jnp.zeros([batch_size, length], jnp.int32)
    return Cache(tuple(kept), tuple(jnp.zeros_like(x) for x in kept), empty, jnp.int32(0))

  def extend(params: Params, batch: Batch, cache: Cache) -> tuple[Outputs, Cache]:
    new: Any = module.apply({"params": params}, batch, cache)
    return new

  return Cached(init, extend)


def decoder_axes(sizes: Sizes) -> Params:
  """Names the axes of its params, for `kdjax.prune.shrink`.

  `dim`, `block_0/heads` (heads of keys and values, each with its queries), `block_0/mlp`, ...
  """
  module = Decoder(**sizes)
  axes: dict[str, Any] = {"token_embedding": {"embedding": (None, "dim")}}
  if module.rope_theta is None:
    axes["position_embedding"] = {"embedding": (None, "dim")}
  if module.head == "tokens" and not module.tied:
    axes["output_embedding"] = {"embedding": (None, "dim")}
  norm = norm_axes() if not module.rms_norm else {"scale": ("dim",)}
  axes["norm"] = norm
  for i in range(module.num_layers):
    block, mlp = module.of_block(i), f"block_{i}/mlp"
    width = block.head_dim
    kv = Axis(f"block_{i}/heads", group=width)
    query = Axis(f"block_{i}/heads", group=width * (block.num_heads // block.num_kv_heads))

    def dense(rows: Any, columns: Any, bias: bool) -> Params:
      return {"kernel": (rows, columns)} | ({"bias": (columns,)} if bias else {})

    attention = {
      "query": dense("dim", query, module.attention_bias),
      "key": dense("dim", kv, module.attention_bias),
      "value": dense("dim", kv, module.attention_bias),
      "out": dense(query, "dim", module.out_bias),
    }
    if module.head_norms:
      attention |= {"query_norm": {"scale": (None,)}, "key_norm": {"scale": (None,)}}
    axes[f"block_{i}"] = {
      "norm_1": norm,
      "attention": attention,
      "norm_2": norm,
      "up": dense("dim", mlp, module.mlp_bias),
      "down": dense(mlp, "dim", module.mlp_bias),
    }
    if module.gated:
      axes[f"block_{i}"]["gate"] = dense("dim", mlp, module.mlp_bias)
    if module.post_norms:
      axes[f"block_{i}"] |= {"post_norm_1": norm, "post_norm_2": norm}
  return axes


def decoder_sizes(params: Mapping[str, Any], sizes: Sizes) -> Sizes:
  """The sizes with which `make_decoder` takes `params` that were shrunk from `sizes`."""
  module = Decoder(**sizes)
  new = transformer_sizes(params, module, table="token_embedding")
  attention = [params[f"block_{i}"]["attention"] for i in range(module.num_layers)]
  kv_heads = [part["key"]["kernel"].shape[1] // new["head_dim"] for part in attention]
  if module.num_kv_heads is not None:
    new["num_kv_heads"] = collapse(kv_heads)
  return sizes_of(module) | new | {"embedding_scale": scale_of_embedding(module)}
