import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from families import FAMILIES, KEY, fresh, logits, shapes

from kdjax import models
from kdjax.quant import is_qtensor
from kdjax.quant.params import quantize_params
from kdjax.tree import count_params
from kdjax.types import FactoredLogits

NAMES = sorted(FAMILIES)


@pytest.fixture(params=NAMES)
def name(request):
  return request.param


def test_all_models_are_tested():
  made = {name for name in models.__all__ if name.startswith("make_")} - {"make_cached"}
  assert {family.make.__name__ for family in FAMILIES.values()} == made


def test_golden_parameter_count(name):
  family = FAMILIES[name]
  params = shapes(family.make(**family.sizes), family.batch)
  assert count_params(params) == family.count
  assert type(params) is dict
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}


def test_features_are_named_and_finite(name):
  outputs = fresh(name)[0](fresh(name)[1], FAMILIES[name].batch)
  assert logits(outputs).dtype == jnp.float32
  assert all(np.isfinite(v).all() for v in outputs.features.values())
  if isinstance(outputs.logits, FactoredLogits):
    np.testing.assert_array_equal(outputs.features["query"], outputs.logits.query)


@pytest.mark.parametrize("name", ["sasrec", "mlp"])
def test_jit_equals_no_jit(name):
  family = FAMILIES[name]
  apply, params = fresh(name)
  plain = family.make(**family.sizes).apply(params, family.batch)
  np.testing.assert_allclose(logits(plain), logits(apply(params, family.batch)), atol=1e-5)


def test_gru4rec_starts_with_orthogonal_gates():
  family = FAMILIES["gru4rec"]
  params = family.make(**family.sizes).init(KEY, family.batch)
  gates = np.split(np.asarray(params["layer_0"]["recurrent_kernel"]), 3, axis=1)
  for gate in gates:
    np.testing.assert_allclose(gate @ gate.T, np.eye(6), atol=1e-5)
  assert not np.allclose(gates[0], gates[1])


def test_gradients_are_finite_and_reach_every_parameter(name):
  family = FAMILIES[name]
  apply, params = fresh(name)
  key = jax.random.key(1)
  loss = lambda p: jnp.sum(jnp.sin(3 * logits(apply(p, family.batch, key=key))))  # noqa: E731
  for path, grad in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
    assert np.isfinite(grad).all(), path
    # Adding a constant to every score a query has with all keys changes no softmax.
    assert np.any(np.abs(grad) > 1e-7) or "key" in str(path), path


def test_bfloat16_computes_close_to_float32(name):
  family = FAMILIES[name]
  apply, params = fresh(name)
  half = family.make(**family.sizes, dtype=jnp.bfloat16).apply

  def run(p):
    outputs = half(p, family.batch)
    return logits(outputs).sum(), (logits(outputs), outputs.features)

  (_, (found, features)), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
  expected = logits(apply(params, family.batch))
  assert found.dtype == jnp.float32
  assert np.abs(found - expected).max() < 0.06 * np.abs(expected).max()
  assert {v.dtype.name for v in features.values()} == {"bfloat16"}
  assert {g.dtype.name for g in jax.tree.leaves(grads)} == {"float32"}


def test_int8_parameters_run_and_stay_close(name):
  family = FAMILIES[name]
  apply, params = fresh(name)
  small = quantize_params(params)
  matrices = [p for p in jax.tree.leaves(params) if p.ndim >= 2]
  assert sum(map(is_qtensor, jax.tree.leaves(small, is_leaf=is_qtensor))) == len(matrices)
  expected, found = (logits(apply(p, family.batch)) for p in (params, small))
  assert np.abs(found - expected).max() < 0.06 * np.abs(expected).max()


def test_sizes_of_untouched_params_make_the_same_model(name):
  family = FAMILIES[name]
  apply, params = fresh(name)
  again = family.make(**family.new_sizes(params, family.sizes))
  expected = logits(apply(params, family.batch))
  np.testing.assert_allclose(
    logits(jax.jit(again.apply)(params, family.batch)), expected, atol=1e-6
  )


def test_a_wrong_size_is_refused(name):
  family = FAMILIES[name]
  with pytest.raises(TypeError, match="colour"):
    family.make(**family.sizes, colour=3)


@pytest.mark.parametrize(
  "name", ["sasrec", "bert4rec", "gru4rec", "two_tower", "two_tower_features"]
)
def test_packed_equals_each_user_alone(name):
  family = FAMILIES[name]
  apply, params = fresh(name)
  batch = family.batch
  together = np.asarray(logits(apply(params, batch)))
  assert np.isfinite(together).all()
  segments = np.asarray(batch["segments"])
  places = [(row, n) for row in range(2) for n in range(1, segments[row].max() + 1)]
  at = [(row, np.nonzero(segments[row] == n)[0]) for row, n in places]
  alone = {k: np.full([len(at), 4], -(k == "items")) for k in ("items", "segments", "positions")}
  for i, (row, columns) in enumerate(at):
    for k, values in alone.items():
      values[i, : len(columns)] = batch[k][row, columns]
  alone |= {k: v for k, v in batch.items() if k == "item_features"}
  apart = np.asarray(logits(apply(params, alone)))
  for i, (row, columns) in enumerate(at):
    np.testing.assert_allclose(together[row, columns], apart[i, : len(columns)], atol=1e-5)


@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "two_tower"])
def test_no_position_sees_its_future(name):
  family = FAMILIES[name]
  apply, params = fresh(name)
  before = logits(apply(params, family.batch))
  changed = family.batch | {"items": family.batch["items"].at[0, 3].set(8)}
  after = logits(apply(params, changed))
  np.testing.assert_allclose(before[0, :3], after[0, :3], atol=1e-6)
  assert np.abs(before[0, 3] - after[0, 3]).max() > 1e-3
  np.testing.assert_allclose(before[0, 4:], after[0, 4:], atol=1e-6)


def test_bert4rec_sees_both_sides_and_knows_a_mask_from_nothing():
  family = FAMILIES["bert4rec"]
  apply, params = fresh("bert4rec")
  before = logits(apply(params, family.batch))
  for item in (8, -1):  # Another item, or none, where a MASK was.
    changed = family.batch | {"items": family.batch["items"].at[0, 2].set(item)}
    after = logits(apply(params, changed))
    assert (np.abs(before[0, :4] - after[0, :4]).max(axis=1) > 1e-4).all()
    np.testing.assert_allclose(before[0, 4:], after[0, 4:], atol=1e-6)


def test_transformers_return_one_attention_per_block():
  for name in ("sasrec", "bert4rec"):
    family = FAMILIES[name]
    apply, params = fresh(name)
    features = apply(params, family.batch).features
    assert {"embedding", "block_0", "block_1", "query"} <= set(features)
    for i in range(2):
      weights = features[f"block_{i}_attention"]
      assert weights.shape == (2, 2, 10, 10)
      np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
      for part in ("queries", "keys", "values"):
        assert features[f"block_{i}_{part}"].shape == features[f"block_{i}"].shape


def test_mf_by_hand():
  apply, params = fresh("mf")
  users, items = params["user_embedding"]["embedding"], params["item_embedding"]["embedding"]
  found = logits(apply(params, {"user": jnp.array([4])}))
  np.testing.assert_allclose(found[0], users[4] @ items.T + params["item_bias"], atol=1e-5)


def test_ncf_by_hand_and_candidates_are_columns_of_the_catalogue():
  family = FAMILIES["ncf"]
  apply, params = fresh("ncf")
  whole = logits(apply(params, family.batch))
  candidates = jnp.array([[3, 0], [7, 7], [10, 1]])
  some = logits(apply(params, family.batch | {"candidates": candidates}))
  np.testing.assert_allclose(some, np.take_along_axis(whole, candidates, axis=1), atol=1e-5)

  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  user, item = 4, 7
  gmf = p["user_gmf"]["embedding"][user] * p["item_gmf"]["embedding"][item]
  x = np.concatenate([p["user_mlp"]["embedding"][user], p["item_mlp"]["embedding"][item]])
  first = np.concatenate([p["user_in"]["kernel"], p["item_in"]["kernel"]])
  x = np.maximum(x @ first + p["user_in"]["bias"], 0)
  x = np.maximum(x @ p["hidden_1"]["kernel"] + p["hidden_1"]["bias"], 0)
  expected = gmf @ p["gmf_out"]["kernel"] + p["gmf_out"]["bias"] + x @ p["mlp_out"]["kernel"]
  np.testing.assert_allclose(whole[1, item], expected[0], atol=1e-5)


def test_two_tower_by_hand():
  family = FAMILIES["two_tower_features"]
  apply, params = fresh("two_tower_features")
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  x = p["item_embedding"]["embedding"] + p["feature_in"]["bias"]
  x = x + np.asarray(family.batch["item_features"], np.float64) @ p["feature_in"]["kernel"]
  unit = lambda v: v / np.linalg.norm(v, axis=-1, keepdims=True)  # noqa: E731
  out = lambda tower, v: unit(v @ p[tower]["out"]["kernel"] + p[tower]["out"]["bias"])  # noqa: E731
  history = x[[3, 1, 4]].mean(axis=0)
  expected = out("user", history) @ out("item", x).T / 0.5
  np.testing.assert_allclose(logits(apply(params, family.batch))[0, 2], expected, atol=1e-5)


def test_linear_mlp_is_logistic_regression_over_one_hot():
  family = FAMILIES["mlp_linear"]
  apply, params = fresh("mlp_linear")
  one_hot = np.zeros([4, 6])
  for row, (a, b) in enumerate(np.asarray(family.batch["categorical"])):
    one_hot[row, a] = 1
    if b >= 0:
      one_hot[row, 4 + b] = 1
  expected = one_hot @ params["category_embedding"]["embedding"][:, 0] + params["bias_in"][0]
  expected += np.asarray(family.batch["dense"]) @ params["dense_in"]["kernel"][:, 0]
  np.testing.assert_allclose(logits(apply(params, family.batch)), expected, atol=1e-5)


def test_mlp_category_past_its_column_is_visible_not_the_next_column():
  family = FAMILIES["mlp"]
  apply, params = fresh("mlp")
  batch = family.batch | {"categorical": jnp.array([[4, 0], [0, 2], [3, 1], [0, 0]])}
  assert np.isnan(logits(apply(params, batch))).tolist() == [True, True, False, False]
  with pytest.raises(ValueError, match="num_dense or cardinalities"):
    models.make_mlp().init(KEY, batch)


def test_sizes_per_layer_must_match_the_layers():
  batch = FAMILIES["sasrec"].batch
  with pytest.raises(ValueError, match="3 sizes given for 2 layers"):
    models.make_sasrec(num_items=11, dim=8, num_heads=(1, 2, 1)).init(KEY, batch)


def test_state_outside_params_is_refused():
  import flax.linen as nn

  class Stateful(nn.Module):
    @nn.compact
    def __call__(self, batch):
      return nn.BatchNorm(use_running_average=False)(batch["x"])

  with pytest.raises(ValueError, match="batch_stats"):
    models.from_linen(Stateful()).init(KEY, {"x": jnp.ones([2, 3])})
