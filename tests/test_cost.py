"""Counted operations against hand counts, and the clock's bookkeeping."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from kdjax import cost
from kdjax.quant.dot import dot
from kdjax.quant.qtensor import quantize


def test_macs_of_a_product_and_of_an_mlp_are_those_counted_by_hand():
  x, w = jnp.ones((3, 5)), jnp.ones((5, 7))
  assert cost.count_macs(lambda x, w: x @ w, x, w) == 3 * 5 * 7

  def mlp(params, x):
    hidden = jax.nn.relu(x @ params["w"] + params["b"][None, :])
    return hidden @ params["v"]

  params = {"w": w, "b": jnp.ones(7), "v": jnp.ones((7, 2))}
  # Adding the bias and the rectifier are an operation an element each: one MAC together.
  assert cost.count_macs(mlp, params, x) == 3 * 5 * 7 + 3 * 7 * 2 + 3 * 7


def test_int8_products_are_counted_like_float_ones():
  x, w = jnp.ones((4, 256), jnp.int8), jnp.ones((256, 512), jnp.int8)
  product = functools.partial(lax.dot, preferred_element_type=jnp.int32)
  assert cost.count_macs(product, x, w) == 4 * 256 * 512
  whole = cost.count_macs(dot, jnp.ones((4, 256)), quantize(jnp.ones((256, 512)), axis=0))
  assert 4 * 256 * 512 <= whole < 1.1 * 4 * 256 * 512


@pytest.mark.parametrize("unroll", [1, 3, 10, 20])
def test_every_step_of_a_loop_counts(unroll):
  w = jnp.ones((64, 64))

  def recurrent(x, w):
    return lax.scan(lambda c, _: (c @ w, None), x, None, length=10, unroll=unroll)[0]

  macs = cost.count_macs(recurrent, jnp.ones((1, 64)), w)
  assert macs == pytest.approx(10 * 64 * 64, rel=1e-3)

  def nested(x, w):
    return lax.fori_loop(0, 4, lambda _, c: jax.jit(recurrent)(c, w), x)

  assert cost.count_macs(nested, jnp.ones((1, 64)), w) == pytest.approx(40 * 64 * 64, rel=1e-2)

  def branch(x, w):
    return lax.cond(x[0, 0] > 0, lambda: recurrent(x, w), lambda: x)

  assert cost.count_macs(branch, jnp.ones((1, 64)), w) == pytest.approx(10 * 64 * 64, rel=1e-3)


def test_work_that_cannot_be_counted_is_an_error():
  def unknown(x):
    return lax.while_loop(lambda c: c[0] < 9, lambda c: c + 1, x)

  with pytest.raises(ValueError, match="cannot count the operations of `while`"):
    cost.count_macs(unknown, jnp.ones(2))

  def outside(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

  with pytest.raises(ValueError, match="pure_callback"):
    cost.count_macs(outside, jnp.ones(2))


def test_measure_reports_params_bytes_and_rates(tmp_path):
  params = {"w": np.array([[1.0, 0.0], [0.0, 2.0]], np.float32), "b": np.zeros(2, np.int8)}
  folder = tmp_path / "model"
  (folder / "part").mkdir(parents=True)
  (folder / "a.bin").write_bytes(b"12345")
  (folder / "part" / "b.bin").write_bytes(b"678")
  seen = []

  def serve(params, x):
    seen.append(x.shape)
    return x @ params["w"]

  measured = cost.measure(
    serve,
    params,
    lambda n: np.ones((n, 2), np.float32),
    path=folder,
    batch=16,
    num_requests=11,
    num_batches=3,
  )
  assert measured[:4] == (6, 2, 8, 4)
  assert 0 < measured.latency_p50_ms <= measured.latency_p99_ms
  assert measured.throughput > 0
  assert set(seen) == {(1, 2), (16, 2)}
  assert cost.disk_bytes(folder / "a.bin") == 5
  with pytest.raises(FileNotFoundError, match="no file or folder"):
    cost.disk_bytes(tmp_path / "none")
  with pytest.raises(ValueError, match="batch must be positive"):
    cost.measure(serve, params, lambda n: np.ones((n, 2), np.float32), batch=0)


def test_calls_take_turns_and_times_are_real():
  order = []

  def call(name, seconds):
    order.append(name)
    time.sleep(seconds)

  times = cost.time_calls(
    {"slow": lambda: call("slow", 0.02), "fast": lambda: call("fast", 0.0)}, num_calls=6, burst=2
  )
  assert {name: len(values) for name, values in times.items()} == {"slow": 6, "fast": 6}
  assert np.median(times["slow"]) >= 0.02 > np.median(times["fast"])
  turns = order[2:]  # Two calls compile; then turns of one untimed and two timed calls.
  assert [len(set(turns[i : i + 3])) for i in range(0, 18, 3)] == [1] * 6
  assert [set(turns[i : i + 6]) for i in range(0, 18, 6)] == [{"slow", "fast"}] * 3
  with pytest.raises(ValueError, match="burst"):
    cost.time_calls({}, num_calls=1, burst=0)
