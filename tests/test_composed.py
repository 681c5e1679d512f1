"""Tables made of smaller ones: closed forms, codes, gradients, integers, products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.composed import ComposedEmbed, ComposedTable, Composition
from kdjax.losses import catalog_kl_loss, cross_entropy_loss
from kdjax.losses.catalog import catalog_cross_entropy_loss
from kdjax.quant import quantize_params
from kdjax.types import PAD, FactoredLogits

V, D = 23, 6
IDS = jnp.arange(V)
WAYS = {
  "hashed": Composition("hashed", 7, 3),
  "sum": Composition("quotient_remainder", 5),
  "product": Composition("quotient_remainder", 5, product=True),
}


def table_of(way, seed=0):
  composition = WAYS[way]
  keys = jax.random.split(jax.random.key(seed), 2)
  sizes = composition.num_parts(V)
  parts = tuple(jax.random.normal(k, (n, D)) for k, n in zip(keys, sizes, strict=False))
  return ComposedTable(parts, V, composition)


def whole(table):
  """The table by the formula, row by row."""
  parts = [np.asarray(jnp.asarray(part)) for part in table.parts]
  if table.composition.method == "hashed":
    codes = np.asarray(table.composition.codes(IDS, V))
    return sum(parts[0][code] for code in codes)
  rows = [(parts[0][i // 5], parts[1][i % 5]) for i in range(V)]
  return np.array([q * r if table.composition.product else q + r for q, r in rows])


@pytest.mark.parametrize("way", WAYS)
def test_rows_and_products_are_those_of_the_formula(way):
  table, query = table_of(way), jax.random.normal(jax.random.key(3), (2, 4, D))
  expected = whole(table)
  assert (table.shape, table.ndim, table.dtype) == ((V, D), 2, jnp.float32)
  at = jnp.array([[0, 22], [7, 7]])
  np.testing.assert_allclose(table.take(at), expected[at], rtol=1e-6)
  np.testing.assert_allclose(table[at], expected[at], rtol=1e-6)
  np.testing.assert_allclose(jnp.asarray(table), expected, rtol=1e-6)
  logits = FactoredLogits(query, table)
  np.testing.assert_allclose(logits.dense(), query @ expected.T, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(table.rdot(query[0, 0]), expected @ query[0, 0], rtol=1e-5, atol=1e-5)
  assert table.astype(jnp.bfloat16).take(at).dtype == jnp.bfloat16


@pytest.mark.parametrize("rows", [2, 5, 31, 32, 700])
def test_quotient_and_remainder_are_a_pair_for_each_id(rows):
  composition = Composition("quotient_remainder", rows)
  codes = np.stack(composition.codes(jnp.arange(1000), 1000))
  sizes = np.array(composition.num_parts(1000))
  assert len(np.unique(codes, axis=1).T) == 1000
  assert (codes.max(axis=1) < sizes).all()


def test_hashes_are_even_and_independent():
  codes = np.stack(Composition("hashed", 64, 2).codes(jnp.arange(64 * 500), 64 * 500))
  for code in codes:
    counts = np.bincount(code, minlength=64)
    assert np.sum((counts - 500) ** 2 / 500) < 120  # Chi-square of 63 degrees: p < 1e-5.
  both = np.bincount(codes[0] * 64 + codes[1], minlength=64**2)
  mean = 64 * 500 / 64**2
  assert abs(np.sum((both - mean) ** 2 / mean) - 4095) < 5 * np.sqrt(2 * 4095)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_the_small_tables(way):
  table, query = table_of(way), jax.random.normal(jax.random.key(3), (4, D))
  labels = jnp.array([1, 22, 0, 7])

  def through(parts):
    own = ComposedTable(parts, V, table.composition)
    blocked = catalog_cross_entropy_loss(FactoredLogits(query, own), labels)
    return blocked + jnp.sum(FactoredLogits(query, own).at(labels[:, None]) ** 2)

  def densely(parts):
    own = jnp.asarray(ComposedTable(parts, V, table.composition))
    logits = query @ own.T
    chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)
    return cross_entropy_loss(logits, labels) + jnp.sum(chosen**2)

  found, expected = (jax.value_and_grad(fn)(table.parts) for fn in (through, densely))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.parametrize("way", WAYS)
def test_teaches_and_learns_over_the_whole_catalogue(way):
  query = jax.random.normal(jax.random.key(3), (4, D))
  pair = [FactoredLogits(query, table_of(way, seed)) for seed in (0, 1)]
  dense = [FactoredLogits(query, jnp.asarray(x.table)) for x in pair]
  np.testing.assert_allclose(
    catalog_kl_loss(*pair, block=6), catalog_kl_loss(*dense, block=6), rtol=1e-5
  )


@pytest.mark.parametrize("way", WAYS)
def test_starts_with_the_variance_of_rows_of_their_own(way):
  composition = WAYS[way]._replace(rows=100, hashes=2)
  embed = ComposedEmbed(4000, 64, composition)
  variables = embed.init(jax.random.key(0), IDS)
  rows = np.asarray(embed.apply(variables, jnp.arange(4000)))
  assert abs(rows.std() / 0.02 - 1) < 0.05
  assert sum(x.size for x in jax.tree.leaves(variables)) == 64 * sum(composition.num_parts(4000))
  padded = embed.apply(variables, jnp.array([PAD, 4000]))
  assert (padded[0] == 0).all()
  assert np.isnan(padded[1]).all()


@pytest.mark.parametrize("way", WAYS)
def test_small_tables_serve_as_integers(way):
  embed = ComposedEmbed(V, D, WAYS[way])
  variables = embed.init(jax.random.key(0), IDS)
  small = {"params": quantize_params(variables["params"])}
  exact, table = (embed.apply(v, method="table") for v in (variables, small))
  query = jax.random.normal(jax.random.key(3), (4, D))
  expected = exact.rdot(query)
  assert np.abs(table.rdot(query) - expected).max() < 0.05 * np.abs(expected).max()
  assert np.abs(table.take(IDS) - exact.take(IDS)).max() < 0.02 * np.abs(exact.take(IDS)).max()


@pytest.mark.parametrize(
  ("composition", "message"),
  [
    (Composition("hashed", 23), "save nothing of 23"),
    (Composition("quotient_remainder", 0), "save nothing"),
    (Composition("quotient_remainder", 22), "tables of 2 and 22 rows"),
    (Composition("hashed", 5, 0), "one hash or more"),
    (Composition("hashed", 5, product=True), "are summed"),
    (Composition("folded"), "not 'folded'"),
  ],
)
def test_what_composes_nothing_is_refused(composition, message):
  with pytest.raises(ValueError, match=message):
    composition.num_parts(V)
