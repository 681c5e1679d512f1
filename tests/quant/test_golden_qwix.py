"""Against qwix (golden values, see tests/golden/qwix_quant.py)."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import quant
from kdjax.traced import observe_inputs

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
GOLDEN = dict(np.load(FOLDER / "qwix_quant.npz", allow_pickle=False))
INPUTS = dict(np.load(FOLDER / "compressors.npz", allow_pickle=False))
X, PARAMS = jnp.asarray(INPUTS["x"]), {"kernel": jnp.asarray(INPUTS["weights"])}


def product(params, x):
  return x @ params["kernel"]


def output_error(weights):
  return np.sum((X @ (np.asarray(weights) - PARAMS["kernel"])) ** 2)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [None, 8])
def test_nearest_equals_qwix(bits, group):
  q = quant.quantize(PARAMS["kernel"], axis=0, bits=bits, group=group)
  np.testing.assert_array_equal(
    np.asarray(q.values, np.int8), GOLDEN[f"value_nearest_{bits}_{group}"]
  )
  np.testing.assert_allclose(q.scale, GOLDEN[f"value_scale_{bits}_{group}"], rtol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [None, 8])
def test_gptq_equals_qwix(bits, group):
  seen = observe_inputs(product, PARAMS, X)
  q = quant.gptq(PARAMS, seen, bits=bits, group=group, ordered=False, damping=0.05)["kernel"]
  expected = GOLDEN[f"value_gptq_{bits}_{group}"]
  step = np.repeat(np.asarray(q.scale), len(expected) // len(q.scale), axis=0)
  away = np.abs(np.asarray(quant.dequantize(q)) - expected) / step
  # A half that float32 rounds the other way moves what follows by a step.
  assert np.mean(away < 1e-3) > 0.97
  assert away.max() < 3


def test_awq_loses_no_more_than_qwix():
  # They search by mean sizes of inputs taken apart, we by the error of the outputs.
  ours = quant.dequantize(quant.awq(PARAMS, observe_inputs(product, PARAMS, X), bits=4)["kernel"])
  nearest = quant.dequantize(quant.quantize(PARAMS["kernel"], axis=0, bits=4))
  assert output_error(ours) <= output_error(GOLDEN["value_awq"])
  assert output_error(GOLDEN["value_awq"]) < output_error(nearest)


def test_smooth_quant_equals_qwix():
  seen = observe_inputs(product, PARAMS, X, statistic=lambda rows: quant.absmax(rows, axis=0))
  q = quant.smooth_quant(PARAMS, seen)["kernel"]
  np.testing.assert_allclose(1 / q.input_factor.reshape(-1), GOLDEN["value_smooth"], rtol=1e-5)


@pytest.mark.usefixtures("integers_everywhere")
def test_dot_equals_qwix():
  q = quant.quantize(PARAMS["kernel"], axis=0)
  np.testing.assert_allclose(quant.dot(X, q), GOLDEN["value_dot"], rtol=1e-5, atol=1e-5)
