"""Masks: literal golden masks, exact counts under ties, patterns, distributions, torch."""

import importlib.util
import json
import pathlib

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.prune.criteria import magnitude, random, saliency
from kdjax.prune.distributions import erdos_renyi_kernel, global_sparsity, uniform
from kdjax.prune.masks import apply_masks, make_masks, measure_sparsity
from kdjax.prune.patterns import n_m, unstructured

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "torch_prune.json"
T, F = True, False


def everything(path, leaf):
  del path, leaf
  return True


def test_golden_unstructured():
  scores = jnp.array([[3.0, 1.0, 2.0], [1.0, 5.0, 1.0]])
  golden = {
    0: [[T, T, T], [T, T, T]],
    1: [[T, T, T], [T, T, F]],
    2: [[T, T, T], [F, T, F]],
    3: [[T, F, T], [F, T, F]],
    4: [[T, F, F], [F, T, F]],
    5: [[F, F, F], [F, T, F]],
    6: [[F, F, F], [F, F, F]],
  }
  for count, mask in golden.items():
    assert unstructured(scores, count).tolist() == mask


def test_golden_n_m_lies_along_the_contraction_axis():
  scores = jnp.array([[9.0, 1.0], [1.0, 2.0], [5.0, 3.0], [7.0, 4.0]])
  masks = make_masks({"kernel": scores}, sparsity=0.5, pattern=n_m(2, 4))
  assert masks["kernel"].tolist() == [[T, F], [F, F], [F, T], [T, T]]
  table = make_masks({"table": scores.T}, sparsity=0.5, pattern=n_m(2, 4, axis=-1))
  assert table["table"].tolist() == [[T, F, F, T], [F, F, T, T]]
  conv = make_masks({"kernel": scores[None, None]}, sparsity=0.5, pattern=n_m(2, 4))
  assert conv["kernel"][0, 0].tolist() == masks["kernel"].tolist()


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
  hnp.arrays(
    np.float32,
    (4, 6),
    elements=st.one_of(
      st.sampled_from([0.0, -0.0, 1.0, 1.0, -1.0, np.inf, -np.inf]), st.floats(width=32)
    ),
  ),
  st.integers(0, 24),
)
@hypothesis.example(np.float32([[np.nan, np.inf, 0, 0, 0, 0]] + [[0.0] * 6] * 3), 23)
@hypothesis.example(np.float32([[np.inf, np.nan, 0, 0, 0, 0]] + [[0.0] * 6] * 3), 23)
def test_unstructured_equals_a_stable_sort_whatever_the_scores(scores, count):
  mask = np.asarray(unstructured(jnp.asarray(scores), count))
  flat = scores.ravel().astype(np.float64)
  # NaN above infinity, subnormals as zero: XLA on CPU flushes them.
  flat = np.where(np.isposinf(flat), 1e300, flat)
  flat = np.where(np.isnan(flat), np.inf, flat)
  flat = np.where(np.abs(flat) < np.finfo(np.float32).tiny, 0.0, flat)
  kept = sorted(range(24), key=lambda i: (-flat[i], i))[: 24 - count]
  assert np.flatnonzero(mask).tolist() == sorted(kept)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.25, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("distribution", [uniform, global_sparsity, erdos_renyi_kernel])
def test_counts_are_exact_under_ties(sparsity, distribution):
  scores = {"a": jnp.ones([7, 9]), "b": jnp.zeros([5, 11]), "bias": jnp.zeros([9])}
  for traced in (False, True):
    make = lambda s: make_masks(scores, sparsity=s, distribution=distribution)  # noqa: E731
    masks = jax.jit(make)(sparsity) if traced else make(sparsity)
    removed = {name: int(jnp.sum(~mask)) for name, mask in masks.items()}
    assert removed["bias"] == 0
    if distribution is uniform:
      assert removed == {"a": round(sparsity * 63), "b": round(sparsity * 55), "bias": 0}
    assert abs(sum(removed.values()) - sparsity * 118) <= (1 if distribution is uniform else 0.5)


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 8)]))
def test_n_m_keeps_n_of_every_m_and_only_the_best(seed, pair):
  n, m = pair
  scores = jnp.asarray(np.random.default_rng(seed).integers(0, 5, size=(16, 6)), jnp.float32)
  mask = np.asarray(make_masks({"k": scores}, sparsity=1 - n / m, pattern=n_m(n, m))["k"])
  groups, kept = np.asarray(scores).reshape(-1, m, 6), mask.reshape(-1, m, 6)
  assert np.all(kept.sum(1) == n)
  lowest_kept = np.where(kept, groups, np.inf).min(1)
  assert np.all(np.where(kept, -np.inf, groups).max(1) <= lowest_kept)


def test_n_m_on_the_way_removes_only_what_the_pattern_will_remove():
  scores = jax.random.normal(jax.random.key(0), [16, 6])
  full = n_m(2, 4)(scores, 48)
  part = n_m(2, 4)(scores, 20)
  assert int(jnp.sum(~part)) == 20
  assert bool(jnp.all(part | ~full))
  with pytest.raises(ValueError, match="2:4 removes 48 of 96"):
    n_m(2, 4)(scores, 49)
  np.testing.assert_array_equal(jax.jit(n_m(2, 4))(scores, 90), full)
  with pytest.raises(ValueError, match="no multiple of 4"):
    n_m(2, 4)(scores[:6], 1)
  with pytest.raises(ValueError, match="0 < n < m"):
    n_m(4, 4)


@pytest.mark.parametrize("amount", ["0.1", "0.33", "0.5", "0.9"])
@pytest.mark.parametrize(("name", "distribution"), [("l1", uniform), ("global", global_sparsity)])
def test_equals_torch(name, distribution, amount):
  golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
  rng = np.random.default_rng(7)
  shapes = {"first": (12, 20), "second": (20, 7), "conv": (3, 3, 4, 6)}
  params = {k: jnp.asarray(rng.normal(size=s).astype(np.float32)) for k, s in shapes.items()}
  # Global order follows the tree's own order (sorted names); without ties it does not matter.
  masks = make_masks(magnitude(params), sparsity=float(amount), distribution=distribution)
  for leaf, removed in golden[name][amount].items():
    assert np.flatnonzero(~np.asarray(masks[leaf]).ravel()).tolist() == removed


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_golden_file_is_what_torch_gives_now(tmp_path):
  spec = importlib.util.spec_from_file_location("torch_prune", GOLDEN.with_suffix(".py"))
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  script.__file__ = str(tmp_path / "torch_prune.py")
  script.main()
  fresh = json.loads((tmp_path / "torch_prune.json").read_text(encoding="utf-8"))
  golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
  assert (fresh["l1"], fresh["global"]) == (golden["l1"], golden["global"])


def test_erdos_renyi_kernel_solves_its_equation():
  scores = [np.ones(shape) for shape in [(4, 4), (64, 32), (3, 3, 16, 32), (256, 128)]]
  sizes = np.array([s.size for s in scores])
  for sparsity in (0.5, 0.8, 0.95):
    counts = np.array([int(c) for c in erdos_renyi_kernel(scores, sparsity)])
    assert counts.sum() == round(sparsity * sizes.sum())
    density = 1 - counts / sizes
    ratio = density / np.array([sum(s.shape) / s.size for s in scores])
    partial = density < 1
    # One epsilon for all leaves that are not dense, up to rounding of counts.
    assert np.ptp(ratio[partial]) <= 2 * np.max(1 / np.array([sum(s.shape) for s in scores]))
    traced = jax.jit(lambda s: erdos_renyi_kernel(scores, s))(sparsity)
    assert np.max(np.abs(np.array([int(c) for c in traced]) - counts)) <= 1


def test_structure_select_and_application():
  params = {"a": {"kernel": jax.random.normal(jax.random.key(0), [6, 4])}, "b": jnp.ones([4])}
  masks = make_masks(magnitude(params), sparsity=0.5)
  assert jax.tree.structure(masks) == jax.tree.structure(params)
  assert all(
    m.dtype == bool and m.shape == p.shape
    for m, p in zip(*map(jax.tree.leaves, (masks, params)), strict=True)
  )
  assert bool(masks["b"].all())
  assert measure_sparsity(masks) == 0.5
  pruned = apply_masks(params, masks)
  assert int(jnp.sum(pruned["a"]["kernel"] == 0)) == 12
  assert (
    apply_masks({"w": jnp.ones([2], jnp.bfloat16)}, {"w": jnp.array([T, F])})["w"].dtype
    == jnp.bfloat16
  )
  only_b = make_masks(magnitude(params), sparsity=0.5, select=lambda path, leaf: path == ("b",))
  assert bool(only_b["a"]["kernel"].all())
  assert only_b["b"].tolist() == [T, T, F, F]
  none = make_masks(magnitude(params), sparsity=0.5, select=lambda path, leaf: False)
  assert measure_sparsity(none) == 0.0


def test_nan_scores_stay_and_bad_sparsity_is_refused():
  mask = make_masks(jnp.array([jnp.nan, 1.0, jnp.inf, 0.0]), sparsity=0.75, select=everything)
  assert mask.tolist() == [T, F, F, F]
  for sparsity in (-0.1, 1.1, float("nan")):
    with pytest.raises(ValueError, match="sparsity must lie"):
      make_masks({"k": jnp.ones([2, 2])}, sparsity=sparsity)


def test_criteria():
  params = {"w": jnp.array([[1.0, -2.0]], jnp.bfloat16), "b": jnp.array([3.0])}
  assert magnitude(params)["w"].dtype == jnp.float32
  grads = {"w": jnp.array([[-4.0, 0.5]]), "b": jnp.array([0.0])}
  assert saliency(params, grads)["w"].tolist() == [[4.0, 1.0]]
  with pytest.raises(ValueError, match=r"b: params \(1,\) but grads \(2,\)"):
    saliency(params, {**grads, "b": jnp.ones([2])})
  key = jax.random.key(3)
  a, b = random(params, key=key), random(params, key=key)
  assert jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.all(x == y)), a, b))


def test_masks_of_sharded_scores_equal_those_of_one_device():
  scores = jax.random.normal(jax.random.key(0), [16, 24])
  mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
  sharded = jax.device_put(scores, jax.NamedSharding(mesh, jax.P("model")))
  np.testing.assert_array_equal(unstructured(sharded, 100), unstructured(scores, 100))
