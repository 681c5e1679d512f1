import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "models"))
from families import FAMILIES, fresh, logits, noise, shapes

from kdjax.models import bert4rec_sizes, make_bert4rec, make_sasrec, sasrec_axes, sasrec_sizes
from kdjax.prune.criteria import magnitude
from kdjax.prune.masks import apply_masks
from kdjax.prune.shrink import (
  Axis,
  axis_scores,
  axis_sizes,
  choose,
  mask_axes,
  spread_layers,
  take_axes,
  take_layers,
)
from kdjax.quant.params import quantize_params
from kdjax.tree import count_params


def axes_of(name):
  family = FAMILIES[name]
  extra = {"item_features": True} if name == "two_tower_features" else {}
  return family.axes(family.sizes, **extra)


BLOCKS = {f"block_{i}/{part}" for i in range(2) for part in ("heads", "mlp")}
AXES = {
  "sasrec": {"dim"} | BLOCKS,
  "sasrec_features": {"dim", "adapter", "block_0/heads", "block_0/mlp"},
  "sasrec_hashed": {"dim", "block_0/heads", "block_0/mlp"},
  "bert4rec": {"dim"} | BLOCKS,
  "bert": {"dim"} | BLOCKS,
  "bert_tokens": {"dim"} | BLOCKS,
  "bert_labels": {"dim", "head"} | BLOCKS,
  "bi_encoder": {"dim", "block_0/heads", "block_0/mlp"},
  "bi_encoder_static": {"dim"},
  "cross_encoder": {"dim", "head", "block_0/heads", "block_0/mlp"},
  "decoder": {"dim"} | BLOCKS,
  "decoder_learned": {"dim"} | BLOCKS,
  "decoder_pool": {"dim"} | BLOCKS,
  "gru4rec": {"dim", "layer_0/hidden", "layer_1/hidden"},
  "gru4rec_product": {"dim", "layer_0/hidden", "layer_1/hidden"},
  "static": {"dim"},
  "static_labels": {"dim"},
  "text_gru": {"dim", "layer_0/hidden", "layer_1/hidden"},
  "text_gru_labels": {"dim", "layer_0/hidden"},
  "text_lstm": {"dim", "layer_0/hidden", "layer_1/hidden"},
  "speech_gru": {"dim", "layer_0/hidden", "layer_1/hidden"},
  "text_cnn": {"dim", "channels"},
  "text_cnn_labels": {"dim", "channels"},
  "mf": {"dim"},
  "mf_quotient": {"dim"},
  "ncf_hashed": {"dim", "mlp_dim", "hidden_0"},
  "ncf": {"dim", "mlp_dim", "hidden_0", "hidden_1"},
  "ncf_candidates": {"dim"},
  "two_tower": {"dim", "out", "user/hidden_0", "item/hidden_0"},
  "two_tower_features": {"dim", "out"},
  "two_tower_quotient": {"dim", "out", "user/hidden_0", "item/hidden_0"},
  "mlp": {"dim", "hidden_0", "hidden_1"},
  "mlp_linear": set(),
  "resnet": {"dim_0", "dim_1"} | {f"stage_{s}_block_{b}/inner" for s in (0, 1) for b in (0, 1)},
}

# Every axis of every family alone (of all blocks together), and all of them at once.
CASES = [
  (name, axis)
  for name in sorted(FAMILIES)
  if name != "mlp_linear"
  for axis in [*sorted({axis.split("/")[-1] for axis in AXES[name]}), None]
  if axis or len(AXES[name]) > 1
]


@pytest.mark.parametrize(("name", "axis"), CASES)
def test_shrunk_equals_masked(name, axis):
  family = FAMILIES[name]
  apply, params = fresh(name)
  axes = axes_of(name)
  scores = axis_scores(params, axes, magnitude(params))
  shrinking = {n: s for n, s in scores.items() if axis in (None, n.split("/")[-1])}
  keep = choose(scores, {key: max(1, len(value) // 2) for key, value in shrinking.items()})
  masked = apply_masks(params, mask_axes(params, axes, keep))
  shrunk = take_axes(params, axes, keep)
  assert count_params(shrunk) == sum(
    int(m.sum()) for m in jax.tree.leaves(mask_axes(params, axes, keep))
  )
  assert count_params(shrunk) < count_params(params)

  smaller = family.make(**family.new_sizes(shrunk, family.sizes))
  expected, before = (np.asarray(logits(apply(p, family.batch))) for p in (masked, params))
  narrower = name in ("bert", "decoder_pool", "static") and "dim" in keep
  if narrower:  # Its embeddings are as wide as its layers.
    expected, before = (values[:, np.asarray(keep["dim"])] for values in (expected, before))
  np.testing.assert_allclose(
    logits(jax.jit(smaller.apply)(shrunk, family.batch)), expected, atol=1e-5
  )
  abstract = shapes(smaller, family.batch)
  assert jax.tree.map(jnp.shape, abstract) == jax.tree.map(jnp.shape, shrunk)
  changed = np.abs(expected - before).max() > 1e-3
  # The dimensions of a bag do not see each other.
  assert changed != (name == "static" and narrower)


def test_axis_names_of_the_families():
  assert {name: set(axis_sizes(fresh(name)[1], axes_of(name))) for name in FAMILIES} == AXES


def test_shrinking_twice_equals_shrinking_once():
  family = FAMILIES["sasrec"]
  _, params = fresh("sasrec")
  axes = sasrec_axes(family.sizes)
  once = take_axes(params, axes, {"dim": np.array([1, 4, 6]), "block_0/mlp": np.array([2])})
  half = take_axes(params, axes, {"dim": np.array([0, 1, 4, 6])})
  sizes = sasrec_sizes(half, family.sizes)
  twice = take_axes(
    half, sasrec_axes(sizes), {"dim": np.array([1, 2, 3]), "block_0/mlp": np.array([2])}
  )
  assert jax.tree.all(jax.tree.map(jnp.array_equal, once, twice))
  final = sasrec_sizes(twice, sizes)
  assert final == sasrec_sizes(once, family.sizes)
  assert (final["dim"], final["mlp_dim"], final["norm_width"]) == (3, (1, 12), 8)
  assert final["embedding_scale"] == pytest.approx(8**0.5)


def test_narrow_norm_is_what_the_width_is_kept_for():
  # Without the old width the same arrays compute something else: sizes must carry it.
  family = FAMILIES["sasrec"]
  apply, params = fresh("sasrec")
  axes = sasrec_axes(family.sizes)
  keep = {"dim": np.arange(4)}
  shrunk = take_axes(params, axes, keep)
  masked = logits(apply(apply_masks(params, mask_axes(params, axes, keep)), family.batch))
  sizes = sasrec_sizes(shrunk, family.sizes)
  found = logits(jax.jit(make_sasrec(**sizes | {"norm_width": 4}).apply)(shrunk, family.batch))
  assert np.abs(found - masked).max() > 1e-2


def test_layouts_golden():
  params = {"w": jnp.arange(12.0)[None]}
  keep = {"u": np.array([0, 2])}
  cases = {
    ("u",): [0, 2],
    (Axis("u", repeat=3),): [0, 2, 4, 6, 8, 10],
    (Axis("u", group=3),): [0, 1, 2, 6, 7, 8],
    (Axis("u", repeat=2, group=2),): [0, 1, 4, 5, 6, 7, 10, 11],
  }
  for (spec,), expected in cases.items():
    axes = {"w": (None, spec)}
    assert take_axes(params, axes, keep)["w"][0].tolist() == expected
    mask = mask_axes(params, axes, keep)["w"]
    assert mask.dtype == bool
    assert np.nonzero(np.asarray(mask)[0])[0].tolist() == expected
  scores = axis_scores(params, {"w": (None, Axis("u", repeat=2, group=2))}, params)
  assert scores["u"].tolist() == [0 + 1 + 6 + 7, 2 + 3 + 8 + 9, 4 + 5 + 10 + 11]


def test_both_axes_of_one_array_are_masked_as_taken():
  params = {"w": jnp.arange(9.0).reshape(3, 3)}
  axes, keep = {"w": ("u", "u")}, {"u": np.array([0, 2])}
  np.testing.assert_array_equal(take_axes(params, axes, keep)["w"], [[0, 2], [6, 8]])
  expected = [[1, 0, 1], [0, 0, 0], [1, 0, 1]]
  np.testing.assert_array_equal(mask_axes(params, axes, keep)["w"], np.array(expected, bool))


def test_choose_prefers_whole_names_and_breaks_ties_to_the_first():
  scores = {"a/mlp": jnp.array([2.0, 2.0, 2.0]), "b/mlp": jnp.array([0.0, 3.0, 1.0])}
  kept = choose(scores, {"mlp": 2, "b/mlp": 1})
  assert {name: list(k) for name, k in kept.items()} == {"a/mlp": [0, 1], "b/mlp": [1]}
  assert choose(scores, {}) == {}


@pytest.mark.parametrize(
  ("keep", "message"), [({"lp": 1}, "lp"), ({"mlp": 0}, "0 of"), ({"mlp": 4}, "4 of")]
)
def test_choose_refuses(keep, message):
  with pytest.raises(ValueError, match=message):
    choose({"a/mlp": jnp.ones([3])}, keep)


def test_errors_name_the_leaf():
  params = {"a": jnp.ones([4, 6]), "b": jnp.ones([5])}
  good = {"a": ("u", None), "b": (None,)}
  assert axis_sizes(params, good) == {"u": 4}
  bad = [
    ({"a": ("u", None), "b": ("u",)}, "b has 5 units of 'u'"),
    ({"a": ("u",), "b": (None,)}, r"a has shape \(4, 6\)"),
    ({"a": (None, Axis("v", group=4)), "b": (None,)}, "no whole number"),
    ({"a": (None, None)}, "b"),
  ]
  for axes, message in bad:
    with pytest.raises(ValueError, match=message):
      axis_sizes(params, axes)
  for keep in ({"w": np.array([0])}, {"u": np.array([4])}, {"u": np.array([], int)}):
    with pytest.raises(ValueError, match=next(iter(keep))):
      take_axes(params, good, keep)
  with pytest.raises(ValueError, match="shapes"):
    axis_scores(params, good, {"a": jnp.ones([4, 5]), "b": jnp.ones([5])})
  with pytest.raises(TypeError, match="quantised"):
    axis_sizes(quantize_params(params), good)


def test_dropped_layers_are_as_if_they_passed_their_input_through():
  family = FAMILIES["bert4rec"]
  sizes = family.sizes | {"num_layers": 3}
  model = make_bert4rec(**sizes)
  params = noise(shapes(model, family.batch))
  skipped = dict(params)  # The second block adds nothing.
  skipped["block_1"] = params["block_1"] | {
    "attention": params["block_1"]["attention"]
    | {"out": jax.tree.map(jnp.zeros_like, params["block_1"]["attention"]["out"])},
    "down": jax.tree.map(jnp.zeros_like, params["block_1"]["down"]),
  }
  expected = logits(jax.jit(model.apply)(skipped, family.batch))
  short = take_layers(params, [0, 2])
  small = make_bert4rec(**bert4rec_sizes(short, sizes))
  np.testing.assert_allclose(logits(jax.jit(small.apply)(short, family.batch)), expected, atol=1e-5)
  with pytest.raises(ValueError, match="3"):
    take_layers(params, [3])


def test_layers_are_spread_evenly():
  assert spread_layers(12, 6) == (1, 3, 5, 7, 9, 11)
  assert spread_layers(6, 6) == tuple(range(6))
  for teacher in range(1, 13):
    for student in range(1, teacher + 1):
      layers = spread_layers(teacher, student)
      gaps = np.diff((-1, *layers))
      assert layers[-1] == teacher - 1
      assert gaps.min() >= 1
      assert gaps.max() - gaps.min() <= 1
  with pytest.raises(ValueError, match="cannot start"):
    spread_layers(2, 3)
