"""Compressed checkpoints: bit-exact round trips, truthful sizes, and one error for bad files."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from kdjax.prune.criteria import magnitude
from kdjax.prune.masks import apply_masks, make_masks
from kdjax.quant.params import quantize_params
from kdjax.quant.qtensor import QTensor
from kdjax.store import StoreError, load_masks, load_params, predict_bytes, save_params


def make_params(sparsity=0.0):
  key = jax.random.key(0)
  params = {
    "item": {"embedding": jax.random.normal(key, [200, 16])},
    "dense": {"kernel": jax.random.normal(key, [16, 64]), "bias": jnp.arange(64.0)},
    "half": {"kernel": jax.random.normal(key, [8, 8], jnp.bfloat16)},
    "step": jnp.int32(7),
    "empty": {},
  }
  masks = make_masks(magnitude(params), sparsity=sparsity)
  return apply_masks(params, masks), masks


def assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("with_masks", [False, True])
def test_round_trip_is_bit_exact(tmp_path, sparsity, int8, with_masks):
  params, masks = make_params(sparsity)
  params = quantize_params(params) if int8 else params
  path = tmp_path / "model.safetensors"
  metadata = {"model": "sasrec", "note": "naïve ✓"}
  size = save_params(path, params, metadata=metadata, masks=masks if with_masks else None)
  assert size == path.stat().st_size
  assert size == predict_bytes(params, metadata=metadata, masks=masks if with_masks else None)
  loaded, read = load_params(path)
  assert read == metadata
  assert_same_bits(loaded, params)
  assert isinstance(loaded["dense"]["kernel"], QTensor if int8 else jax.Array)
  if with_masks:
    assert_same_bits(load_masks(path), masks)
  else:
    assert load_masks(path) is None


@pytest.mark.parametrize("int8", [False, True])
def test_bytes_on_disk_follow_the_formula(tmp_path, int8):
  w = jax.random.normal(jax.random.key(0), [512, 256])
  masks = make_masks({"w": jnp.abs(w)}, sparsity=0.9)
  params = apply_masks({"w": w}, masks)
  header = 700
  n = w.size
  left = n - round(0.9 * n)
  if int8:
    params = quantize_params(params)
    # A weight that rounds to 0 costs nothing either.
    left = int(jnp.sum(params["w"].values != 0))
  size = save_params(tmp_path / "m.safetensors", params)
  content = n // 8 + left * (1 if int8 else 4) + (256 * 4 if int8 else 0)
  assert content < size <= content + header
  dense = save_params(tmp_path / "d.safetensors", {"w": w})
  assert 4 * n < dense <= 4 * n + header
  assert dense / size > (15 if int8 else 7)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(
  hnp.arrays(
    st.sampled_from([np.float32, np.float16, np.int8, np.uint8, np.bool_, np.int32, np.float64]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
    fill=st.just(0),
  )
)
def test_any_array_comes_back(tmp_path_factory, array):
  path = tmp_path_factory.mktemp("store") / "any.safetensors"
  save_params(path, {"a": {"x": array}})
  assert_same_bits(load_params(path)[0], {"a": {"x": array}})


def test_negative_zero_and_nan_payloads_survive(tmp_path):
  array = np.zeros(64, np.float32)
  array[3], array[5] = -0.0, np.frombuffer(b"\x01\x00\xc0\x7f", np.float32)[0]
  bf16 = np.zeros(64, ml_dtypes.bfloat16)
  bf16[9] = -0.0
  params = {"f": jnp.asarray(array), "b": jnp.asarray(bf16)}
  save_params(tmp_path / "m", params)
  assert_same_bits(load_params(tmp_path / "m")[0], params)


def test_file_is_plain_safetensors(tmp_path):
  params, _ = make_params()
  save_params(tmp_path / "m.safetensors", quantize_params(params))
  plain = safetensors.numpy.load_file(tmp_path / "m.safetensors")
  assert plain["dense/kernel.values"].dtype == np.int8
  assert plain["dense/kernel.scale"].shape == (1, 64)
  assert "dense/bias.values" not in plain


def test_every_truncation_is_one_clear_error(tmp_path):
  params, masks = make_params(0.9)
  path = tmp_path / "model.safetensors"
  save_params(path, quantize_params(params), masks=masks)
  data = path.read_bytes()
  for length in [*range(0, 40), *range(40, len(data), 97), len(data) - 1]:
    path.write_bytes(data[:length])
    with pytest.raises(StoreError, match=r"model\.safetensors"):
      load_params(path)
  path.write_bytes(data + b"\0")
  with pytest.raises(StoreError, match=r"model\.safetensors"):
    load_params(path)


def test_every_flipped_bit_is_one_clear_error(tmp_path):
  path = tmp_path / "model.safetensors"
  w = jnp.zeros([4, 8]).at[1, 2].set(3.0)
  save_params(
    path, quantize_params({"a": {"kernel": w, "bias": jnp.ones([2])}}), metadata={"k": "v"}
  )
  data = path.read_bytes()
  for position in range(len(data)):
    for bit in (0, 6):
      path.write_bytes(data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :])
      with pytest.raises(StoreError, match=r"model\.safetensors"):
        load_params(path)


def test_foreign_files_are_named(tmp_path):
  path = tmp_path / "other.safetensors"
  safetensors.numpy.save_file({"w": np.ones(3, np.float32)}, path)
  with pytest.raises(StoreError, match=r"other\.safetensors: a safetensors file, but not one of"):
    load_params(path)
  path.write_bytes(b"PK\x03\x04" + bytes(100))
  with pytest.raises(StoreError, match="no safetensors file"):
    load_masks(path)
  with pytest.raises(FileNotFoundError):
    load_params(tmp_path / "absent")


def test_inconsistent_layout_with_a_right_checksum_is_named(tmp_path):
  from kdjax import store

  tensors = {"w.bitmap": np.zeros(1, np.uint8), "w.nonzero": np.ones(1, np.float32)}
  for shape in ([8], [2**40], [-8], "x"):
    layout = {"leaves": [[["w"], False]], "shapes": {"w": shape}, "sparse": ["w"], "empty": []}
    header = {
      "kdjax.format": store.FORMAT,
      "kdjax.layout": store.json.dumps({**layout, "masked": None}),
    }
    header["kdjax.digest"] = store._digest(tensors, header)
    path = tmp_path / "forged.safetensors"
    safetensors.numpy.save_file(tensors, path, metadata=header)
    with pytest.raises(StoreError, match=r"forged\.safetensors: inconsistent"):
      load_params(path)


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
  path = tmp_path / "model.safetensors"
  save_params(path, {"w": jnp.ones([3])})
  before = path.read_bytes()

  def fail(*args):
    raise OSError("disk full")

  monkeypatch.setattr("os.replace", fail)
  with pytest.raises(OSError, match="disk full"):
    save_params(path, {"w": jnp.zeros([3])})
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
  ("params", "match"),
  [
    (jnp.ones([2]), "nested dicts"),
    ({"a/b": jnp.ones([2])}, "without '/'"),
    ({"": jnp.ones([2])}, "without '/'"),
    ({1: jnp.ones([2])}, "without '/'"),
    ({"a": [jnp.ones([2])]}, "leaves must be arrays"),
    ({"a": jnp.ones([2], jnp.float8_e5m2)}, "cannot store float8_e5m2"),
    ({"a": jnp.ones([2], jnp.complex64)}, "cannot store complex64"),
    (
      {"k": QTensor(jnp.ones([1, 1], jnp.int8), jnp.ones([1, 1])), "k.values": jnp.ones([2])},
      "two tensors",
    ),
  ],
)
def test_what_cannot_be_stored_is_refused(tmp_path, params, match):
  with pytest.raises(ValueError, match=match):
    save_params(tmp_path / "m", params)
  assert not list(tmp_path.iterdir())


def test_bad_metadata_and_masks_are_refused(tmp_path):
  params = {"w": jnp.ones([2, 2])}
  for metadata in ({"a": 1}, {"kdjax.format": "x"}):
    with pytest.raises(ValueError, match="metadata must be strings"):
      save_params(tmp_path / "m", params, metadata=metadata)
  with pytest.raises(ValueError, match="apply_masks first"):
    save_params(tmp_path / "m", params, masks={"w": jnp.zeros([2, 2], bool)})
  with pytest.raises(ValueError, match="structure"):
    save_params(tmp_path / "m", params, masks={"w": jnp.zeros([2], bool)})
  with pytest.raises(ValueError, match="must be bool"):
    save_params(tmp_path / "m", params, masks={"w": jnp.zeros([2, 2])})
