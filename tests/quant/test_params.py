"""Trees in int8: which leaves, which axes, and a summary that tells the truth."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.quant.calibrate import absmax
from kdjax.quant.params import (
  dequantize_params,
  format_quantized,
  is_embedding,
  quantize_params,
  summarize_quantized,
)
from kdjax.quant.qtensor import QTensor, dequantize, is_qtensor, quantize
from kdjax.tree import count_bytes


def make_params():
  key = jax.random.key(0)
  return {
    "item": {"embedding": jax.random.normal(key, [50, 8])},
    "dense": {"kernel": jax.random.normal(key, [8, 16]), "bias": jnp.ones([16])},
    "conv": {"kernel": jax.random.normal(key, [3, 3, 4, 6])},
    "steps": jnp.arange(4).reshape(2, 2),
  }


def test_scales_follow_the_contraction():
  q = quantize_params(make_params())
  assert q["item"]["embedding"].scale.shape == (50, 1)
  assert q["dense"]["kernel"].scale.shape == (1, 16)
  assert q["conv"]["kernel"].scale.shape == (1, 1, 1, 6)
  assert q["dense"]["bias"].dtype == jnp.float32
  assert q["steps"].dtype == jnp.int32
  np.testing.assert_array_equal(
    q["dense"]["kernel"].values, quantize(make_params()["dense"]["kernel"], axis=0).values
  )


def test_quantised_twice_is_quantised_once_and_dequantises():
  q = quantize_params(make_params())
  twice = quantize_params(q)
  assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), q, twice))
  back = dequantize_params(q)
  assert jax.tree.structure(back) == jax.tree.structure(make_params())
  np.testing.assert_array_equal(back["item"]["embedding"], dequantize(q["item"]["embedding"]))


def test_select_keeps_a_leaf_in_float_and_refuses_integers():
  q = quantize_params(make_params(), select=is_embedding)
  assert isinstance(q["item"]["embedding"], QTensor)
  assert isinstance(q["dense"]["kernel"], jax.Array)
  with pytest.raises(ValueError, match="cannot quantise steps"):
    quantize_params(make_params(), select=lambda path, leaf: path == ("steps",))


def test_summary_says_what_why_and_how_many_bytes():
  params = make_params()
  q = quantize_params(
    params, select=lambda path, leaf: path[0] in ("item", "dense") and leaf.ndim > 1
  )
  rows = {row.path: row for row in summarize_quantized(q, rows=(1,), backend="cpu")}
  assert {path for path, row in rows.items() if row.quantized} == {"item/embedding", "dense/kernel"}
  assert rows["dense/bias"].reason == "fewer than two axes"
  assert rows["steps"].reason == "int32 is no float"
  assert rows["conv/kernel"].reason == "not selected"
  assert rows["dense/kernel"].product.startswith("float is faster")
  assert rows["item/embedding"].bytes_after == 50 * 8 + 50 * 4
  assert sum(row.bytes_before for row in rows.values()) == count_bytes(params)
  assert sum(row.bytes_after for row in rows.values()) == count_bytes(q)
  text = format_quantized(list(rows.values()))
  assert (
    text.splitlines()[-1]
    == f"total: 2 of 5 leaves integer, {count_bytes(params)} -> {count_bytes(q)} B"
  )
  assert len(text.splitlines()) == 6


def test_the_rest_may_be_halved():
  q = quantize_params(
    {"kernel": jnp.ones([4, 2]), "bias": jnp.ones([2]), "step": 3}, rest_dtype="float16"
  )
  assert is_qtensor(q["kernel"])
  assert q["kernel"].scale.dtype == jnp.float32
  assert q["bias"].dtype == jnp.float16
  assert q["step"] == 3


def test_a_stock_linen_model_runs_on_quantised_params():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, ids):
      x = nn.LayerNorm()(nn.Embed(30, 16)(ids).mean(axis=1))
      return nn.Dense(5)(nn.relu(nn.Dense(32)(x)))

  ids = jax.random.randint(jax.random.key(1), [7, 4], 0, 30)
  # Linen's own bias addition broadcasts ranks.
  params = Net().init(jax.random.key(0), ids)
  q = quantize_params(params)
  assert sum(row.quantized for row in summarize_quantized(q)) == 3
  got, exact = jax.jit(Net().apply)(q, ids), Net().apply(dequantize_params(q), ids)
  np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)


def test_absmax_merges_as_one_pass():
  x = jax.random.normal(jax.random.key(0), [12, 5])
  merged = absmax(x[:4], axis=0).merge(absmax(x[4:], axis=0))
  np.testing.assert_array_equal(merged.value, absmax(x, axis=0).value)
  np.testing.assert_array_equal(merged.scale(), quantize(x, axis=0).scale)
  assert float(absmax(jnp.zeros([0, 3]), axis=0).value[0, 0]) == 0.0
