"""Embedding tables made of smaller ones: hashed rows that are summed, quotients and remainders."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.layers import Embed, Initializer, take_rows
from kdjax.quant.qtensor import is_qtensor
from kdjax.types import Array, FactoredLogits


class Composition(NamedTuple):
  r"""How the rows of a table of V are made of fewer.

  - `hashed`: $E_i = \sum_{k < K} T_{h_k(i)}$ with one table T of `rows` and K = `hashes` hash
    functions: two items are alike only where all of theirs collide.
  - `quotient_remainder`: $E_i = Q_{\lfloor i / R \rfloor} + S_{i \bmod R}$ with R = `rows`, or with
    `product` $Q_{\lfloor i / R \rfloor} \odot S_{i \bmod R}$: every item has a pair of its own.

  Attributes:
    method: `hashed` or `quotient_remainder`.
    rows: of T, or R; None for an eighth of V, or for the root of V, where both tables are smallest.
    hashes: K.
    product: whether quotient and remainder are multiplied.

  Reference:
    D. T. Svenstrup, J. M. Hansen, O. Winther, Hash Embeddings for Efficient Word Representations,
    NeurIPS 2017, arXiv:1709.03933 (here without learned weights of the summands, which are numbers
    for each of the V); C. Zhang et al., Model Size Reduction Using Frequency Based Double Hashing
    for Recommender Systems, RecSys 2020, arXiv:2007.14523; H.-J. M. Shi et al., Compositional
    Embeddings Using Complementary Partitions for Memory-Efficient Recommendation Systems, KDD 2020,
    arXiv:1909.02107.
  """

  method: Literal["hashed", "quotient_remainder"]
  rows: int | None = None
  hashes: int = 2
  product: bool = False

  def codes(self, ids: Array, num_rows: int) -> tuple[Array, ...]:
    """Which rows of the smaller tables make those at `ids` int `[...]`: int32 `[...]` each.

    Example:
      >>> Composition("quotient_remainder", 4).codes(jnp.array([0, 5, 11]), 12)[1].tolist()
      [0, 1, 3]
    """
    rows = self.num_parts(num_rows)[-1]
    if self.method == "quotient_remainder":
      return ids // rows, ids % rows
    mixed = _mix(ids.astype(jnp.uint32))
    each = (_mix(mixed ^ jnp.uint32(0x9E3779B9 * k % 2**32)) for k in range(self.hashes))
    return tuple((x % jnp.uint32(rows)).astype(jnp.int32) for x in each)

  def num_parts(self, num_rows: int) -> tuple[int, ...]:
    """Rows of each of the smaller tables, of which one of `num_rows` is made.

    Raises:
      ValueError: if they are not fewer, or there is nothing to compose.

    Example:
      >>> Composition("quotient_remainder").num_parts(1000), Composition("hashed").num_parts(1000)
      ((32, 32), (125,))
    """
    if self.method not in ("hashed", "quotient_remainder"):
      raise ValueError(f"a table is hashed or quotient_remainder, not {self.method!r}")
    if self.hashes < 1 or (self.product and self.method == "hashed"):
      raise ValueError(f"{self} needs one hash or more, and hashed rows are summed")
    hashed = self.method == "hashed"
    rows = self.rows
    if rows is None:
      rows = -(-num_rows // 8) if hashed else math.ceil(math.sqrt(num_rows))
    sizes = (rows,) if hashed else (-(-num_rows // max(rows, 1)), rows)
    if rows < 1 or sum(sizes) >= num_rows:
      raise ValueError(
        f"tables of {' and '.join(map(str, sizes))} rows save nothing of {num_rows}; choose rows "
        "that are fewer together, or a row each"
      )
    return sizes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ComposedTable:
  """A table `[V, d]` made of smaller ones: a `Table`, and an array where one is asked for.

  Attributes:
    parts: float `[rows, d]` each, or `QTensor`s; as many as `Composition.num_parts` says.
    num_rows: V.
    composition: how they are composed.

  Example:
    >>> parts = (jnp.array([[0.0], [10.0]]), jnp.array([[1.0], [2.0], [3.0]]))
    >>> table = ComposedTable(parts, 6, Composition("quotient_remainder", 3))
    >>> table.shape, jnp.asarray(table)[:, 0].tolist(), table.rdot(jnp.array([2.0])).tolist()
    ((6, 1), [1.0, 2.0, 3.0, 11.0, 12.0, 13.0], [2.0, 4.0, 6.0, 22.0, 24.0, 26.0])
  """

  parts: tuple[Any, ...]
  num_rows: int = dataclasses.field(metadata={"static": True})
  composition: Composition = dataclasses.field(metadata={"static": True})

  @property
  def shape(self) -> tuple[int, int]:
    """Of the table it stands for."""
    return self.num_rows, self.parts[0].shape[1]

  @property
  def ndim(self) -> int:
    """Of the table it stands for."""
    return 2

  @property
  def dtype(self) -> jnp.dtype:
    """Of its rows."""
    return self.parts[0].dtype

  def take(self, ids: Array) -> Array:
    """Rows at `ids` int `[...]`: `[..., d]`."""
    codes = self.composition.codes(ids, self.num_rows)
    tables = self.parts if len(self.parts) == len(codes) else self.parts * len(codes)
    rows = [FactoredLogits(ids, t).rows(code) for t, code in zip(tables, codes, strict=True)]
    return functools.reduce(jnp.multiply if self.composition.product else jnp.add, rows)

  def __getitem__(self, ids: Array) -> Array:
    return self.take(ids)

  def __jax_array__(self) -> Array:
    return self.take(jax.lax.iota(jnp.int32, self.num_rows))

  def rdot(self, query: Array) -> Array:
    """`query @ table.T`, float32 `[..., V]`, from products with the smaller tables alone."""
    if self.composition.product:
      quotient, remainder = self.parts
      query = query[..., None, :] * _over(jnp.asarray(quotient), query)
      found = FactoredLogits(query, remainder).dense()
    else:
      each = [FactoredLogits(query, part).dense() for part in self.parts]
      if self.composition.method == "hashed":
        codes = self.composition.codes(jax.lax.iota(jnp.int32, self.num_rows), self.num_rows)
        return functools.reduce(jnp.add, [each[0][..., code] for code in codes])
      found = each[0][..., :, None] + each[1][..., None, :]
    return found.reshape(*found.shape[:-2], -1)[..., : self.num_rows]

  def astype(self, dtype: Any) -> "ComposedTable":
    """Its parts in another type, `QTensor`s as they are."""
    parts = tuple(x if is_qtensor(x) else x.astype(dtype) for x in self.parts)
    return dataclasses.replace(self, parts=parts)


class ComposedEmbed(nn.Module):
  """`kdjax.layers.Embed` of a table that is made of smaller ones.

  Parameters are `hashed_embedding`, or `quotient_embedding` and `remainder_embedding`; composed,
  they start with the variance that `embedding_init` gives a table of its own rows.
  """

  num_embeddings: int
  features: int
  composition: Composition
  dtype: Any = jnp.float32
  embedding_init: Initializer = nn.initializers.normal(0.02)

  def setup(self) -> None:
    sizes, product = self.composition.num_parts(self.num_embeddings), self.composition.product
    hashed = self.composition.method == "hashed"
    names = ("hashed",) if hashed else ("quotient", "remainder")
    share = 1.0 if product else (self.composition.hashes if hashed else 2) ** -0.5

    def start(name: str) -> Initializer:
      if product and name == "quotient":
        return nn.initializers.normal(1.0)
      return lambda key, shape: share * self.embedding_init(key, shape)

    self.parts = tuple(
      self.param(f"{name}_embedding", start(name), (size, self.features))
      for name, size in zip(names, sizes, strict=True)
    )

  def __call__(self, ids: Array) -> Array:
    """`ids` int `[...]` to `[..., features]`."""
    return take_rows(self.table(), ids, dtype=self.dtype)

  def table(self) -> ComposedTable:
    """The table for `FactoredLogits`, in `dtype`."""
    parts = tuple(x if is_qtensor(x) else jnp.asarray(x) for x in self.parts)
    return ComposedTable(parts, self.num_embeddings, self.composition).astype(self.dtype)


def make_embed(
  composition: Composition | tuple[Any, ...] | None, num_embeddings: int, features: int, **options
) -> Embed | ComposedEmbed:
  """An `Embed`, or a `ComposedEmbed` where a composition is given (as JSON may have left it)."""
  if composition is None:
    return Embed(num_embeddings, features, **options)
  return ComposedEmbed(num_embeddings, features, Composition(*composition), **options)


def embed_axes(composition: Composition | tuple[Any, ...] | None, dim: str) -> dict[str, Any]:
  """Names the axes of the params of `make_embed`, for `kdjax.prune.shrink`."""
  names: tuple[str, ...] = ("embedding",)
  if composition is not None:
    hashed = composition[0] == "hashed"
    names = ("hashed_embedding",) if hashed else ("quotient_embedding", "remainder_embedding")
  return dict.fromkeys(names, (None, dim))


def embed_width(params: Mapping[str, Any]) -> int:
  """The width of the table that the params of a `make_embed` make."""
  return next(iter(params.values())).shape[1]


def _mix(x: Array) -> Array:
  """A permutation of uint32 whose bits look independent: the finalizer of A. Appleby's Murmur3."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def _over(table: Array, query: Array) -> Array:
  """A table `[Q, d]`, shaped to multiply `query[..., None, :]`."""
  return table.reshape((1,) * (query.ndim - 1) + table.shape)
