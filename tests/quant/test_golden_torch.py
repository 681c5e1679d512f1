"""Agreement with torch, onnxruntime and Torch-Pruning (tests/golden/torch_compress.py)."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import prune, quant

PATH = pathlib.Path(__file__).parent.parent / "golden" / "torch_compress.npz"


@pytest.fixture(scope="module")
def golden():
  with np.load(PATH) as file:
    return {name: file[name] for name in file.files}


def merged(statistic, batches):
  first, *rest = (statistic(jnp.asarray(batch)) for batch in batches)
  for other in rest:
    first = first.merge(other)
  return first


def test_absmax_is_torchs_min_max_observer(golden):
  seen = merged(lambda x: quant.absmax(x, axis=None), golden["x"])
  np.testing.assert_allclose(seen.scale().reshape(1), golden["min_max_scale"], rtol=1e-6)
  columns = quant.absmax(jnp.asarray(golden["w"]), axis=0)
  np.testing.assert_allclose(columns.scale()[0], golden["per_channel_scale"], rtol=1e-6)


def test_mse_scale_loses_no_more_than_torchs_histogram_observer(golden):
  x = jnp.asarray(golden["x"].reshape(-1))

  def error(scale):
    return float(jnp.mean((quant.fake_quant(x, axis=None, scale=scale) - x) ** 2))

  ours = quant.mse_scale(merged(quant.histogram, golden["x"]))
  assert error(ours) <= 1.001 * error(jnp.asarray(golden["histogram_scale"][0]))


@pytest.mark.parametrize("percentile", [99.0, 99.9])
def test_percentile_is_that_of_onnxruntime(golden, percentile):
  seen = merged(quant.histogram, golden["x"])
  limit = 127 * float(quant.percentile_scale(seen, percentile=percentile))
  # Bins of 16 / 2048 here, of 10.8 / 1024 there.
  assert limit == pytest.approx(float(golden[f"percentile_{percentile}"]), abs=0.02)


def test_entropy_is_near_that_of_onnxruntime(golden):
  u = (np.arange(2**20) + 0.5) / 2**20 - 0.5
  x = (-np.sign(u) * np.log1p(-2 * np.abs(u))).astype(np.float32)
  limit = 127 * float(quant.entropy_scale(quant.histogram(jnp.asarray(x))))
  assert limit == pytest.approx(float(golden["entropy"]), rel=0.05)


@pytest.mark.parametrize("bits", [8, 4])
def test_learned_scales_are_torchs(golden, bits):
  w, scale = jnp.asarray(golden["w"]), jnp.asarray(golden["scale"])[None]

  def rounded(w, scale):
    return quant.dequantize(quant.straight_through(w, axis=0, scale=scale, bits=bits))

  y, pull = jax.vjp(rounded, w, scale)
  dw, dscale = pull(jnp.asarray(golden["cotangent"]))
  np.testing.assert_allclose(y, golden[f"learned_{bits}"], atol=1e-6)
  np.testing.assert_allclose(dw, golden[f"learned_{bits}_dw"], atol=1e-6)
  np.testing.assert_allclose(dscale[0], golden[f"learned_{bits}_dscale"], rtol=1e-3, atol=1e-5)


def test_shrink_leaves_what_torch_pruning_leaves(golden):
  params: dict = {}
  for name in golden:
    if name.startswith("net/"):
      layer, part = name.removeprefix("net/").split(".")
      params.setdefault(layer, {})[part] = jnp.asarray(golden[name])

  def conv(p, x, groups=1):
    same = "SAME" if p["weight"].shape[-1] > 1 else "VALID"
    y = jax.lax.conv_general_dilated(x, p["weight"], (1, 1), same, feature_group_count=groups)
    return y + p["bias"][None, :, None, None]

  def apply_fn(params, x):
    y = jax.nn.relu(conv(params["stem"], x))
    y = jax.nn.relu(y + conv(params["two"], jax.nn.relu(conv(params["one"], y))))
    y = jax.nn.relu(conv(params["deep"], y, groups=8))
    y = jnp.concatenate([y, jax.nn.relu(conv(params["side"], x))], axis=1)
    return y.mean((2, 3)) @ params["head"]["weight"].T + params["head"]["bias"][None]

  image = jnp.asarray(golden["image"])
  np.testing.assert_allclose(apply_fn(params, image), golden["before"], rtol=1e-4, atol=1e-4)
  # Importance as there: of the kernels that make the units.
  makers = {"stem", "one", "two", "deep", "side"}
  criterion = lambda params: {  # noqa: E731
    layer: {
      part: jnp.square(array) if layer in makers and part == "weight" else jnp.zeros_like(array)
      for part, array in parts.items()
    }
    for layer, parts in params.items()
  }
  small = prune.shrink(apply_fn, params, image, keep=0.5, criterion=criterion)
  for name in golden:
    if name.startswith("shrunk/"):
      layer, part = name.removeprefix("shrunk/").split(".")
      np.testing.assert_array_equal(small.params[layer][part], golden[name], err_msg=name)
  np.testing.assert_allclose(
    small.apply(small.params, image), golden["after"], rtol=1e-4, atol=1e-4
  )
