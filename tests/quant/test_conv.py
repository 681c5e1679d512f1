"""The integer convolution: exact integers, the compiled program, the plan, the gradients."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import layers, quant


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def float_conv(x, w, letters, **options):
  layout = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
  return jax.lax.conv_general_dilated(
    x, w, dimension_numbers=layout, precision="highest", **options
  )


def rounded(x):
  axes = tuple(range(1, x.ndim))
  return quant.fake_quant(x, axis=axes)


CASES = {
  "same": ((2, 9, 9, 32), (3, 3, 32, 8), {}, {"window_strides": (1, 1), "padding": "SAME"}),
  "strides": (
    (2, 9, 8, 32), (3, 2, 32, 8), {"strides": (2, 1)},
    {"window_strides": (2, 1), "padding": "SAME"},
  ),
  "valid": (
    (2, 9, 9, 1), (3, 3, 1, 8), {"padding": "VALID"},
    {"window_strides": (1, 1), "padding": "VALID"},
  ),
  "pads_and_dilation": (
    (2, 12, 9, 32), (3, 3, 32, 8), {"padding": ((2, 0), (1, 3)), "dilation": 2, "strides": 3},
    {"window_strides": (3, 3), "padding": ((2, 0), (1, 3)), "rhs_dilation": (2, 2)},
  ),
  "one_axis": (
    (3, 17, 32), (5, 32, 8), {"strides": 2}, {"window_strides": (2,), "padding": "SAME"}
  ),
  "three_axes": (
    (1, 4, 5, 6, 32), (2, 3, 2, 32, 4), {}, {"window_strides": (1, 1, 1), "padding": "SAME"}
  ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", [{}, {"affine": True}, {"bits": 4}])
@pytest.mark.usefixtures("integers_everywhere")
def test_equals_the_float_convolution_of_what_was_rounded(case, options):
  x_shape, w_shape, ours, theirs = CASES[case]
  x, w = normal(*x_shape), normal(*w_shape, seed=1) + 0.3
  q = quant.quantize(w, axis=tuple(range(w.ndim - 1)), **options)
  letters = "DHW"[-(x.ndim - 2) :]
  expected = float_conv(rounded(x), quant.dequantize(q), letters, **theirs)
  np.testing.assert_allclose(quant.conv(x, q, **ours), expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    quant.conv(x, w, **ours), float_conv(x, w, letters, **theirs), rtol=1e-4, atol=1e-4
  )


@pytest.mark.usefixtures("integers_everywhere")
def test_gradients_are_those_of_rounded_floats():
  x, w, g = normal(2, 7, 7, 32), normal(3, 3, 32, 4, seed=1), normal(2, 4, 4, 4, seed=2)
  axis = (0, 1, 2)

  def trained(x, w):
    return quant.conv(x, quant.straight_through(w, axis=axis), strides=2)

  def simulated(x, w):
    fake = quant.fake_quant(w, axis=axis)
    return float_conv(rounded(x), fake, "HW", window_strides=(2, 2), padding="SAME")

  got = jax.jit(jax.grad(lambda x, w: jnp.sum(g * trained(x, w)), (0, 1)))(x, w)
  expected = jax.grad(lambda x, w: jnp.sum(g * simulated(x, w)), (0, 1))(x, w)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)


@pytest.mark.usefixtures("integers_everywhere")
def test_static_scales_factors_and_nan():
  x, q = normal(3, 5, 5, 32), quant.quantize(normal(3, 3, 32, 4, seed=1), axis=(0, 1, 2))
  fixed = quant.conv(x, q.replace(input_scale=jnp.float32(0.01)))
  seen = np.clip(np.round(np.asarray(x) / 0.01), -127, 127) * 0.01
  expected = float_conv(
    jnp.asarray(seen, jnp.float32), quant.dequantize(q), "HW", window_strides=(1, 1), padding="SAME"
  )
  np.testing.assert_allclose(fixed, expected, rtol=1e-4, atol=1e-3)
  factor = jnp.exp(normal(32, seed=3)).reshape(1, 1, 32, 1)
  np.testing.assert_allclose(
    quant.conv(x, q.replace(input_factor=factor)),
    quant.conv(x * factor.reshape(1, 1, 1, 32), q),
    rtol=1e-5,
  )
  with pytest.raises(ValueError, match="one for each channel"):
    quant.conv(x, q.replace(input_factor=jnp.ones([3, 1, 1, 1])))
  for kernel in (q, q.replace(input_scale=jnp.float32(0.05))):
    y = quant.conv(x.at[1, 2, 2, 0].set(jnp.nan), kernel)
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[jnp.array([0, 2])]).all()


@pytest.mark.usefixtures("integers_everywhere")
def test_compiled_program_multiplies_s8_by_s8_into_s32():
  x, q = normal(2, 8, 8, 32), quant.quantize(normal(3, 3, 32, 16, seed=1), axis=(0, 1, 2))
  lowered = jax.jit(quant.conv).lower(x, q)
  assert re.search(
    r"stablehlo\.dot_general .*: \(tensor<2x8x8x288xi8>, tensor<288x16xi8>\) -> "
    r"tensor<2x8x8x16xi32>",
    lowered.as_text(),
  )
  optimised = lowered.compile().as_text()
  products = re.findall(r"(\w+)\[[\d,]*\]\S* dot\(%?([\w.-]+), %?([\w.-]+)\)", optimised)
  assert [result for result, *_ in products] == ["s32"], optimised
  for name in products[0][1:]:
    assert set(re.findall(rf"%?{re.escape(name)}(?: = |: )(\w+)\[", optimised)) == {"s8"}


def test_few_channels_and_groups_are_float_and_say_so():
  assert "16 channels (measured)" in quant.conv_plan((3, 3, 16, 8), backend="cpu").reason
  reasons = [quant.conv_plan((3, 3, 32, 32), n, backend="cpu").reason for n in (196, 1024, None)]
  assert reasons == [
    "float is faster with 32 channels at 196 windows (measured)",
    *["integer (measured)"] * 2,
  ]
  assert "not measured on tpu" in quant.conv_plan((3, 3, 16, 8), backend="tpu").reason
  with pytest.raises(ValueError, match="overflow"):
    quant.conv_plan((3, 3, 20_000, 8), backend="cpu")
  x, w = normal(2, 5, 5, 16), normal(3, 3, 1, 16, seed=1)
  q = quant.quantize(w, axis=(0, 1, 2))
  got = quant.conv(x, q, groups=16)
  expected = float_conv(
    x, quant.dequantize(q), "HW", window_strides=(1, 1), padding="SAME", feature_group_count=16
  )
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
  with pytest.raises(ValueError, match="cannot convolve"):
    quant.conv(x, w)


def test_the_layer_is_linens_and_takes_int8():
  x = normal(2, 8, 8, 32)
  ours = layers.Conv(16, (3, 3), strides=2)
  theirs = nn.Conv(16, (3, 3), strides=2)
  params = theirs.init(jax.random.key(0), x)
  np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), rtol=1e-5, atol=1e-5)
  same = jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x))
  assert same == jax.tree.map(jnp.shape, params)
  int8 = quant.quantize_params(params)
  assert quant.is_qtensor(int8["params"]["kernel"])
  np.testing.assert_allclose(ours.apply(int8, x), ours.apply(params, x), atol=0.1)
  rows = {row.path: row for row in quant.summarize_quantized(int8, backend="cpu")}
  assert rows["params/kernel"].product == "integer (measured)"


@pytest.mark.parametrize("examples", [1, 8])
def test_the_number_of_windows_decides(examples):
  x, q = normal(examples, 14, 14, 32), quant.quantize(normal(3, 3, 32, 8), axis=(0, 1, 2))
  program = jax.jit(quant.conv).lower(x, q).as_text()
  assert ("xi32>" in program) == quant.conv_plan((3, 3, 32, 8), 196 * examples).integer
