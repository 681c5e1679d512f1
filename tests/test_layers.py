import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from kdjax import layers
from kdjax.layers import Attention, Dense, Embed, LayerNorm, dropout, segment_mask
from kdjax.quant import quantize
from kdjax.types import MASK, PAD

KEY = jax.random.key(0)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_stated_share_and_the_mean(rate):
  y = np.asarray(dropout(jnp.ones([64, 500, 8]), rate, KEY))
  kept = y > 0
  assert abs(kept.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / y.size)
  np.testing.assert_allclose(y[kept], 1 / (1 - rate), rtol=1e-6)


def test_dropout_bits_look_independent():
  # Along every axis, between neighbouring keys, and in runs: chi-square on pairs of entries.
  masks = [np.asarray(dropout(jnp.ones([100, 300]), 0.5, key) > 0) for key in _keys(4)]
  pairs = [(m[:, :-1], m[:, 1:]) for m in masks] + [(m[:-1], m[1:]) for m in masks]
  pairs += [(m[:, :-2], m[:, 2:]) for m in masks]
  pairs += [(a, b) for i, a in enumerate(masks) for b in masks[i + 1 :]]
  for a, b in pairs:
    counts = [[np.sum(a & b), np.sum(a & ~b)], [np.sum(~a & b), np.sum(~a & ~b)]]
    assert stats.chi2_contingency(counts).pvalue > 1e-5


def test_dropout_key_words_both_count():
  data = jnp.array([[1, 2], [1, 3], [2, 2]], jnp.uint32)
  masks = [np.asarray(dropout(jnp.ones([4096]), 0.5, jax.random.wrap_key_data(d))) for d in data]
  assert len({m.tobytes() for m in masks}) == 3
  for d in data:  # A raw key is the same key.
    same = dropout(jnp.ones([4096]), 0.5, d)
    assert any(np.array_equal(same, m) for m in masks)


def _keys(n):
  return [jax.random.fold_in(KEY, i) for i in range(n)]


def test_dropout_does_not_depend_on_sharding():
  x = jax.random.normal(KEY, (16, 40))
  mesh = jax.make_mesh((8,), ("data",))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  one = jax.jit(dropout, static_argnums=1)(x, 0.3, KEY)
  many = jax.jit(dropout, static_argnums=1)(jax.device_put(x, sharding), 0.3, KEY)
  np.testing.assert_array_equal(one, many)


def test_dropout_rate_is_checked():
  x = jnp.ones([3])
  assert dropout(x, 0.0, KEY) is x
  for rate in (-0.1, 1.0):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
      dropout(x, rate, KEY)


@pytest.mark.parametrize("shape", [(7, 12), (2, 3, 12)])
def test_layers_equal_linen(shape):
  x = jax.random.normal(KEY, shape)
  ours, theirs = Dense(5), nn.Dense(5)
  params = theirs.init(KEY, x)
  np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), atol=1e-6)
  assert jax.tree.all(jax.tree.map(jnp.array_equal, ours.init(KEY, x), params))

  norm = nn.LayerNorm().init(KEY, x)
  norm = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(KEY, p.shape), norm)
  np.testing.assert_allclose(LayerNorm().apply(norm, x), nn.LayerNorm().apply(norm, x), atol=1e-5)


def test_layer_norm_of_some_entries_as_if_the_rest_were_zero():
  x = jax.random.normal(KEY, (4, 6)) + 0.5
  keep = jnp.array([0, 2, 5])
  x = jnp.zeros([4, 6]).at[:, keep].set(x[:, keep])
  params = {"params": {"scale": jnp.arange(1.0, 7.0), "bias": jnp.arange(6.0)}}
  small = {"params": {k: v[keep] for k, v in params["params"].items()}}
  full = LayerNorm().apply(params, x)[:, keep]
  np.testing.assert_allclose(LayerNorm(width=6).apply(small, x[:, keep]), full, atol=1e-6)
  assert np.abs(LayerNorm().apply(small, x[:, keep]) - full).max() > 0.1


def test_embed_negative_ids_are_zero_and_strange_ids_visible():
  embed = Embed(5, 3)
  params = embed.init(KEY, jnp.array([0]))
  ids = jnp.array([[2, PAD], [MASK, 4]])
  rows = embed.apply(params, ids)
  table = params["params"]["embedding"]
  np.testing.assert_array_equal(rows[0, 0], table[2])
  np.testing.assert_array_equal(rows[1, 1], table[4])
  assert not rows[0, 1].any()
  assert not rows[1, 0].any()
  assert jnp.isnan(embed.apply(params, jnp.array([5]))).all()
  grads = jax.grad(lambda p: embed.apply(p, ids).sum())(params)["params"]["embedding"]
  np.testing.assert_array_equal(grads.sum(1), [0, 0, 3, 0, 3])


def test_embed_and_dense_take_int8():
  ids, x = jnp.array([[2, PAD]]), jax.random.normal(KEY, (4, 8))
  embed, dense = Embed(5, 8), Dense(6)
  table = embed.init(KEY, ids)["params"]["embedding"]
  params = {"params": {"embedding": quantize(table, axis=-1)}}
  rows = embed.apply(params, ids)
  np.testing.assert_allclose(rows[0, 0], table[2], atol=float(jnp.abs(table[2]).max()) / 254 + 1e-7)
  assert not rows[0, 1].any()

  params = dense.init(KEY, x)
  small = {"params": {**params["params"], "kernel": quantize(params["params"]["kernel"], axis=0)}}
  np.testing.assert_allclose(dense.apply(small, x), dense.apply(params, x), atol=0.05)


def test_segment_mask_golden():
  segments = jnp.array([[1, 1, 2, 0, 0]])
  causal = [
    [1, 0, 0, 0, 0],
    [1, 1, 0, 0, 0],
    [0, 0, 1, 0, 0],
    [0, 0, 0, 1, 0],
    [0, 0, 0, 1, 1],
  ]
  np.testing.assert_array_equal(segment_mask(segments, causal=True)[0], np.array(causal, bool))
  both = np.array(causal, bool) | np.array(causal, bool).T
  np.testing.assert_array_equal(segment_mask(segments, causal=False)[0], both)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("num_heads", [1, 3])
def test_attention_against_a_loop_in_float64(monkeypatch, causal, num_heads):
  monkeypatch.setattr(layers, "_chunks", lambda length, *, causal: [(0, 3), (3, 4), (4, length)])
  x = np.asarray(jax.random.normal(KEY, (2, 7, 8)))
  segments = np.array([[1, 1, 1, 2, 2, 2, 0], [1, 2, 2, 2, 2, 3, 3]])
  layer = Attention(num_heads, 4, causal)
  params = jax.jit(layer.init)(KEY, x, segments)
  params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(KEY, p.shape), params)
  y, parts = jax.jit(layer.apply)(params, x, segments)
  weights = parts["attention"]
  assert weights.shape == (2, num_heads, 7, 7)

  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])
  project = lambda name, v: v @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
  for b in range(2):
    q, k, v = (project(name, x[b].astype(np.float64)) for name in ("query", "key", "value"))
    for name, expected in (("queries", q), ("keys", k), ("values", v)):
      np.testing.assert_allclose(parts[name][b], expected, atol=1e-5)
    out = np.zeros([7, 4 * num_heads])
    for h in range(num_heads):
      cols = slice(4 * h, 4 * h + 4)
      for i in range(7):
        seen = [j for j in range(7) if segments[b, j] == segments[b, i] and (j <= i or not causal)]
        e = np.exp([q[i, cols] @ k[j, cols] / 2 for j in seen])
        expected = np.zeros(7)
        expected[seen] = e / e.sum()
        np.testing.assert_allclose(weights[b, h, i], expected, atol=1e-6)
        out[i, cols] = expected @ v[:, cols]
    np.testing.assert_allclose(y[b], project("out", out), atol=1e-5)


@pytest.mark.parametrize(("length", "count"), [(1, 1), (50, 1), (100, 2), (200, 4), (203, 4)])
def test_causal_chunks_cover_every_query_once(length, count):
  chunks = layers._chunks(length, causal=True)
  assert [i for a, b in chunks for i in range(a, b)] == list(range(length))
  assert len(chunks) == count
  assert layers._chunks(length, causal=False) == [(0, length)]
