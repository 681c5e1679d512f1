"""Where floats are faster, as measured, and that the compiled product follows the plan."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.quant import (
  QTensor,
  dequantize,
  dot,
  dot_plan,
  quantize,
  quantize_params,
  widen_params,
)
from kdjax.quant.integer import LIMITS


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
  ("shape", "integer", "reason"),
  [
    ((1, 32, 16), False, "for 512 weights"),
    ((1, 256, 1024), False, "for 262144 weights"),
    ((1, 1024, 1024), True, "padded to 2"),
    ((1, 64, 23_715), True, "padded to 2"),
    ((16, 64, 256), False, "for 16384 weights"),
    ((16, 48, 3416), True, "integer"),
    ((16, 1024, 1024), True, "integer"),
    ((256, 64, 23_715), False, "contraction of 64"),
    ((256, 48, 3416), False, "contraction of 48"),
    ((2048, 64, 256), False, "contraction of 64"),
    ((256, 1024, 1024), True, "integer"),
    ((2048, 1024, 1024), True, "integer"),
  ],
)
def test_the_plan_is_what_was_measured(shape, integer, reason):
  plan = dot_plan(shape, backend="cpu")
  assert plan.integer is integer
  assert reason in plan.reason
  assert "measured" in plan.reason
  unmeasured = dot_plan(shape, backend="tpu")
  assert unmeasured.integer
  assert "not measured on tpu" in unmeasured.reason


@pytest.mark.parametrize("rows", [1, LIMITS["cpu"].few, LIMITS["cpu"].few + 1])
def test_products_follow_the_plan(rows):
  x, w = normal(rows, 64), quantize(normal(64, 48, seed=1), axis=0)
  program = jax.jit(dot).lower(x, w).as_text()
  assert ("xi32>" in program) == dot_plan((rows, 64, 48)).integer
  np.testing.assert_allclose(dot(x, w), x @ dequantize(w), rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(dot(x[0], w), dot(x[:1], w)[0])


@pytest.mark.parametrize("rows", [1, 2, 16])
@pytest.mark.parametrize("table", [False, True])
def test_compiled_program_multiplies_s8_by_s8_into_s32(rows, table):
  x, w = normal(rows, 1024), normal(1024, 1024, seed=1)
  if table:
    lowered = jax.jit(lambda x, t: t.rdot(x)).lower(x, quantize(w, axis=-1))
  else:
    lowered = jax.jit(dot).lower(x, quantize(w, axis=0))
  assert re.search(
    r"dot_general .*: \(tensor<\d+x1024xi8>, tensor<1024x1024xi8>\) -> tensor<\d+x1024xi32>",
    lowered.as_text(),
  )
  optimised = lowered.compile().as_text()
  products = re.findall(r"(\w+)\[[\d,]*\]\S* dot\(%?([\w.-]+), %?([\w.-]+)\)", optimised)
  assert len(products) == 1, optimised
  result, *operands = products[0]
  assert result == "s32"
  for name in operands:
    (dtype,) = set(re.findall(rf"%?{re.escape(name)}(?: = |: )(\w+)\[", optimised))
    assert dtype == "s8", f"{name} was widened to {dtype} before the product"


def test_what_floats_multiply_is_widened_once():
  params = {"small": normal(64, 48), "large": normal(1024, 1024), "kernel": normal(3, 3, 4, 8)}
  params = {**quantize_params(params), "grouped": quantize(normal(64, 8), axis=0, group=8)}
  wide = widen_params(params, rows=1, backend="cpu")
  assert [name for name, leaf in wide.items() if isinstance(leaf, QTensor)] == ["large"]
  for name, rows in (("small", 1), ("grouped", 1), ("large", 1)):
    x = normal(rows, params[name].shape[0], seed=2)
    np.testing.assert_allclose(dot(x, wide[name]), dot(x, params[name]), rtol=1e-5, atol=1e-5)
  assert "s8[" not in jax.jit(dot).lower(normal(1, 64), wide["small"]).compile().as_text()
  on_tpu = widen_params(params, rows=1, backend="tpu")
  assert [name for name in on_tpu if not isinstance(on_tpu[name], QTensor)] == ["grouped"]
