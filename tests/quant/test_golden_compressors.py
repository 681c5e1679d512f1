"""Against llmcompressor and torchao (golden values, see tests/golden/compressors.py)."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import prune
from kdjax.quant import dequantize, gptq, quantize
from kdjax.traced import observe_inputs

GOLDEN = dict(
  np.load(pathlib.Path(__file__).parents[1] / "golden" / "compressors.npz", allow_pickle=False)
)
PARAMS = {"kernel": jnp.asarray(GOLDEN["weights"])}
OBSERVED = observe_inputs(lambda p, x: x @ p["kernel"], PARAMS, jnp.asarray(GOLDEN["x"]))
DAMPING = 0.05


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("half", {"sparsity": 0.5}),
    ("half_blocks", {"sparsity": 0.5, "block": 8}),
    ("two_of_four", {"sparsity": 0.0, "groups": (2, 4), "block": 16}),
  ],
)
def test_sparse_gpt_equals_llmcompressor(name, options):
  found, masks = prune.sparse_gpt(PARAMS, OBSERVED, damping=DAMPING, **options)
  expected = GOLDEN[f"value_sparsegpt_{name}"]
  np.testing.assert_array_equal(masks["kernel"], expected != 0)
  np.testing.assert_allclose(found["kernel"], expected, atol=1e-4)


@pytest.mark.parametrize(
  ("name", "pattern"), [("half", prune.each_output()), ("two_of_four", prune.n_m(2, 4))]
)
def test_wanda_equals_llmcompressor(name, pattern):
  scores = prune.wanda(PARAMS, OBSERVED)
  masks = prune.make_masks(scores, sparsity=0.5, pattern=pattern)
  found = prune.apply_masks(PARAMS, masks)["kernel"]
  np.testing.assert_array_equal(found, GOLDEN[f"value_wanda_{name}"])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("ordered", [False, True])
def test_gptq_equals_llmcompressor(bits, ordered):
  found = gptq(PARAMS, OBSERVED, bits=bits, ordered=ordered, block=16, damping=DAMPING)["kernel"]
  expected = GOLDEN[f"value_gptq_{bits}{'_ordered' if ordered else ''}"]
  away = np.abs(np.asarray(dequantize(found)) - expected) / np.asarray(found.scale)
  # A half that float32 rounds the other way moves what follows by a step.
  assert np.mean(away < 1e-3) > 0.97
  assert away.max() < 3


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [8, 24])
def test_affine_equals_torchao_exactly(bits, group):
  q = quantize(jnp.asarray(GOLDEN["off_centre"]), axis=1, bits=bits, group=group, affine=True)
  golden = {
    part: GOLDEN[f"value_affine_{bits}_{group}_{part}"]
    for part in ("scale", "zero", "values", "back")
  }
  np.testing.assert_array_equal(q.scale, golden["scale"])
  np.testing.assert_array_equal(q.zero, golden["zero"])
  np.testing.assert_array_equal(np.asarray(q.values, np.int8), golden["values"])
  np.testing.assert_array_equal(dequantize(q), golden["back"])
