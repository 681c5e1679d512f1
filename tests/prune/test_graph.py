import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "models"))
from families import FAMILIES, fresh, logits, noise

from kdjax.prune import (
  apply_masks,
  axis_scores,
  axis_sizes,
  choose,
  find_axes,
  magnitude,
  mask_axes,
  resize,
  shrink,
  take_axes,
)
from kdjax.tree import count_params, map_with_path

KEY = jax.random.key(0)
TOKENS = jnp.arange(10).reshape(2, 5)
VECTORS = jax.random.normal(KEY, (2, 5, 8))
IMAGES = jax.random.normal(KEY, (2, 8, 8, 3))


class Encoder(nn.Module):
  """Pre-norm, tied to its table: one residual stream."""

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(20, 8)
    x = embed(tokens) + nn.Embed(5, 8)(jnp.arange(5)[None])
    for _ in range(2):
      x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
      x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
    return embed.attend(nn.LayerNorm()(x))


class Pictures(nn.Module):
  """Convolutions, one of them depthwise, a skip by concatenation, pools."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x)))
    x = nn.max_pool(x, (2, 2), (2, 2))
    y = nn.Conv(8, (3, 3), feature_group_count=8)(x)
    x = jnp.concatenate([x, nn.silu(nn.Conv(5, (1, 1))(y))], axis=-1)
    x = nn.avg_pool(nn.Conv(6, (3, 3), padding="VALID")(x), (2, 2))
    return nn.Dense(3)(x.reshape(len(x), -1))


class Grouped(nn.Module):
  """Convolutions in groups: of several channels each, and depthwise with two outputs a channel."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(12, (3, 3))(x))
    x = nn.relu(nn.Conv(18, (3, 3), feature_group_count=3)(x))
    x = nn.relu(nn.Conv(8, (1, 1))(x))
    x = nn.relu(nn.Conv(16, (3, 3), feature_group_count=8)(x))
    return nn.Dense(3)(x.mean(axis=(1, 2)))


class Recurrent(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(nn.RNN(nn.OptimizedLSTMCell(4))(nn.RNN(nn.GRUCell(6))(x)))


class Layer(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return x + nn.Dense(8)(jnp.tanh(nn.Dense(6)(x))), None


class Scanned(nn.Module):
  """Layers stacked in one array and scanned over."""

  @nn.compact
  def __call__(self, x):
    layers = nn.scan(
      nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
    )
    return nn.Dense(2)(layers()(nn.Dense(8)(x), None)[0])


def rotary(params, x):
  """Attention with rotated halves, several queries to a key, and one fused kernel."""
  fused = (x @ params["fused"]).reshape(2, 5, 4, 4)
  queries, keys, values = jnp.split(fused, [2, 3], axis=2)
  angle = (jnp.arange(5.0)[:, None] * jnp.array([[1.0, 0.1]]))[None, :, None]

  def rotate(a):
    left, right = jnp.split(a, 2, axis=-1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)

  keys, values = (jnp.repeat(a, 2, axis=2) for a in (keys, values))
  weights = jax.nn.softmax(jnp.einsum("blhd,bmhd->bhlm", rotate(queries), rotate(keys)))
  out = jnp.einsum("bhlm,bmhd->blhd", weights, values).reshape(2, 5, 8)
  return jax.nn.swish(out @ params["gate"]) * (out @ params["up"]) @ params["down"]


def gated(params, x):
  """A gate and its input side by side in one kernel."""
  gate, up = jnp.split(x @ params["both"], 2, axis=-1)
  return (jax.nn.sigmoid(gate) * up) @ params["down"]


def normalised(params, x):
  """Statistics over units whose masked values are not 0: exponentials, and centred ones."""
  x = jnp.exp(x @ params["up"])
  x = x / x.sum(-1, keepdims=True)
  x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3)
  return (x * params["scale"][None, None]) @ params["down"]


def branching(params, x):
  """A loop that carries units, and a branch on data."""
  x = x @ params["in"]
  x = jax.lax.fori_loop(0, 3, lambda i, x: x + jnp.tanh(x @ params["loop"]), x)
  x = jax.lax.cond(jnp.sum(x) > 0, lambda x: x * 2, lambda x: -x, x)
  return x @ params["out"]


def arrays(**sizes):
  keys = jax.random.split(KEY, len(sizes))
  return {
    name: jax.random.normal(key, shape) * 0.5
    for key, (name, shape) in zip(keys, sizes.items(), strict=True)
  }


def linen(module, x):
  params = noise(jax.eval_shape(module.init, KEY, x))
  # Variances are positive.
  return module.apply, map_with_path(lambda p, v: abs(v) if p[-1] == "var" else v, params), x


def network():
  class Net(nnx.Module):
    def __init__(self, rngs):
      self.up, self.norm = nnx.Linear(8, 12, rngs=rngs), nnx.LayerNorm(12, rngs=rngs)
      self.down = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, x):
      return self.down(nnx.relu(self.norm(self.up(x))))

  graph, params = nnx.split(Net(nnx.Rngs(0)))
  params = nnx.to_pure_dict(params)

  def apply(params, x):
    state = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))[1]
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)(x)

  return apply, jax.tree.map(lambda p: p + 0.1, params), VECTORS


def pooled(params, x):
  """Bags of vectors, added up by segment; some rows written over."""
  hidden = jax.nn.relu(x @ params["up"])
  flat = hidden.reshape(-1, hidden.shape[-1])
  bags = jax.ops.segment_sum(flat, jnp.array([0, 1, 1, 2, 0, 2, 2, 1, 0, 0]), num_segments=3)
  bags = bags.at[jnp.array([1])].set(hidden[0, :1])
  return bags @ params["down"]


# What is called, on what, and the groups that must be found.
FUNCTIONS = {
  "encoder": (
    *linen(Encoder(), TOKENS),
    {
      "params/Embed_0/embedding:1": 8,
      **{f"params/MultiHeadDotProductAttention_{i}/query/kernel:1": 2 for i in range(2)},
      **{f"params/MultiHeadDotProductAttention_{i}/query/kernel:2": 4 for i in range(2)},
      **{f"params/MultiHeadDotProductAttention_{i}/value/kernel:2": 4 for i in range(2)},
      "params/Dense_1/kernel:1": 16,
      "params/Dense_3/kernel:1": 16,
    },
  ),
  "pictures": (
    *linen(Pictures(), IMAGES),
    {"params/Conv_0/kernel:3": 8, "params/Conv_2/kernel:3": 5, "params/Conv_3/kernel:3": 6},
  ),
  "grouped": (
    *linen(Grouped(), IMAGES),
    {
      "params/Conv_0/kernel:3": 3,
      "params/Conv_0/kernel:3.1": 4,
      "params/Conv_1/kernel:3": 6,
      "params/Conv_2/kernel:3": 8,
      "params/Conv_3/kernel:3": 2,
    },
  ),
  "recurrent": (
    *linen(Recurrent(), VECTORS),
    {"params/GRUCell_0/ir/kernel:1": 6, "params/OptimizedLSTMCell_0/hi/kernel:1": 4},
  ),
  "scanned": (
    *linen(Scanned(), VECTORS),
    {"params/Dense_1/kernel:1": 8, "params/ScanCheckpointLayer_0/Dense_1/kernel:2": 6},
  ),
  "rotary": (
    rotary,
    arrays(fused=(8, 16), gate=(8, 12), up=(8, 12), down=(12, 3)),
    VECTORS,
    {"gate:1": 12, "fused:1": 2},
  ),
  "normalised": (
    normalised,
    arrays(up=(8, 12), scale=(12,), down=(12, 3)),
    VECTORS,
    {"up:1": 12},
  ),
  "pooled": (pooled, arrays(up=(8, 12), down=(12, 3)), VECTORS, {"up:1": 12}),
  "gated": (gated, arrays(both=(8, 12), down=(6, 3)), VECTORS, {"both:1": 6}),
  "branching": (
    branching,
    arrays(**{"in": (8, 6), "loop": (6, 6), "out": (6, 2)}),
    VECTORS,
    {"in:1": 6},
  ),
  "nnx": (*network(), {"up/kernel:1": 12}),
}


def contains(masks, others):
  """Whether all that the first mask removes goes with the others."""
  return all(np.all(a | ~b) for a, b in zip(masks, others, strict=True))


def masked_and_shrunk(apply_fn, params, x, keep):
  """Outputs of both, and the smaller params."""
  axes = find_axes(apply_fn, params, x)
  small = shrink(apply_fn, params, x, keep=keep)
  masked = apply_masks(params, mask_axes(params, axes, small.keep))
  return jax.jit(apply_fn)(masked, x), jax.jit(small.apply)(small.params, x), small


@pytest.mark.parametrize("name", FUNCTIONS)
def test_shrunk_equals_masked(name):
  apply_fn, params, x, groups = FUNCTIONS[name]
  assert axis_sizes(params, find_axes(apply_fn, params, x)) == groups
  for keep in (0.5, *({group: 1} for group in groups)):
    expected, found, small = masked_and_shrunk(apply_fn, params, x, keep)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert count_params(small.params) < count_params(params)
    assert np.abs(expected - apply_fn(params, x)).max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_the_axes_that_models_declare_are_found(name):
  family = FAMILIES[name]
  apply, params = fresh(name)

  def score(params, batch):
    outputs = logits(apply(params, batch))
    # Its embeddings are as wide as its layers, and outputs keep their shape.
    return outputs.sum(axis=-1) if name in ("bert", "decoder_pool", "static") else outputs

  found = find_axes(score, params, family.batch)
  extra = {"item_features": True} if name == "two_tower_features" else {}
  declared = family.axes(family.sizes, **extra)

  def masks(axes):
    """Where the first unit of each group stands, by its name."""
    keep = {name: np.arange(1, size) for name, size in axis_sizes(params, axes).items()}
    return {
      name: [np.asarray(m) for m in jax.tree.leaves(mask_axes(params, axes, {name: units}))]
      for name, units in keep.items()
    }

  groups = masks(found)
  for group in masks(declared).values():  # It may tie what need not be tied: two towers.
    parts = [other for other in groups.values() if contains(other, group)]
    assert parts
    for leaf, *others in zip(group, *parts, strict=True):
      np.testing.assert_array_equal(leaf, np.logical_and.reduce(others))
  if groups:
    expected, outputs, _ = masked_and_shrunk(score, params, family.batch, 0.5)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_a_shrunk_function_takes_other_batches_and_gradients():
  apply_fn, params, x, _ = FUNCTIONS["encoder"]
  small = shrink(apply_fn, params, x, keep={"Dense_1/kernel:1": 3})
  axes = find_axes(apply_fn, params, x)
  masks = mask_axes(params, axes, small.keep)
  more = jnp.concatenate([x, x + 3])
  masked = apply_masks(params, masks)
  np.testing.assert_allclose(small.apply(small.params, more), apply_fn(masked, more), atol=1e-5)
  total = lambda apply: lambda params: jnp.sum(apply(params, more) ** 2)  # noqa: E731
  expected = take_axes(jax.grad(total(apply_fn))(masked), axes, small.keep)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-4),
    jax.jit(jax.grad(total(small.apply)))(small.params),
    expected,
  )


def test_one_name_stands_for_all_members_and_last_parts_for_all_layers():
  apply_fn, params, x, groups = FUNCTIONS["encoder"]
  sizes = lambda keep: {k: len(v) for k, v in shrink(apply_fn, params, x, keep=keep).keep.items()}  # noqa: E731
  assert sizes({"Dense_0/kernel:0": 5}) == {"params/Dense_1/kernel:1": 5}
  heads = [name for name in groups if name.endswith("query/kernel:1")]
  assert sizes({"query/kernel:1": 1}) == dict.fromkeys(heads, 1)
  assert sizes({"out/kernel:0": 0.5}) == dict.fromkeys(heads, 1)
  assert sizes(1.0) == groups


REFUSED = {
  "an axis of the output": (lambda p, x: x @ p["w"], "w:1"),
  "an axis of the example": (lambda p, x: (x @ p["w"]).sum(-1), "w:0"),
  "reduce_max runs over it": (lambda p, x: (x @ p["w"]).max(-1), "w:1"),
  "dot_general sums": (lambda p, x: jnp.einsum("abi,abi->ab", *[jnp.exp(x @ p["w"])] * 2), "w:1"),
  "not 0, nor one number": (
    lambda p, x: jnp.exp((x @ p["w"]).reshape(10, 2, 3)).mT.reshape(10, 6).sum(-1),
    "w:1",
  ),
  "cumsum runs along it": (lambda p, x: jnp.cumsum(x @ p["w"], -1)[:, :, 0], "w:1"),
  "sort runs along it": (lambda p, x: jnp.sort(x @ p["w"])[:, :, 0], "w:1"),
  "picked out": (lambda p, x: ((x @ p["w"])[..., ::2]).sum(-1), "w:1"),
  "looked up by index": (lambda p, x: p["w"][jnp.int32(x[..., 0])].sum(-1), "w:0"),
  "no parameter": (lambda p, x: ((x @ p["w"]) + np.arange(6.0)[None, None]).sum(-1), "w:1"),
  "cannot be followed": (lambda p, x: jnp.linalg.qr(x @ p["w"])[1].sum(-1), "w:1"),
  "rev runs along it": (lambda p, x: jnp.flip(x @ p["w"], -1).sum(-1), "w:1"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_shrink_is_refused_by_name(reason):
  apply_fn, axis = REFUSED[reason]
  params = arrays(w=(8, 6))
  with pytest.raises(ValueError, match=rf"'{axis}' cannot shrink: .*({reason})"):
    shrink(apply_fn, params, VECTORS, keep={axis: 2})
  assert axis_sizes(params, find_axes(apply_fn, params, VECTORS)).get(axis) is None


def test_errors_name_what_there_is():
  apply_fn, params, x, _ = FUNCTIONS["gated"]
  with pytest.raises(ValueError, match=r"no axis is called 'nothing:1'.*both:1"):
    shrink(apply_fn, params, x, keep={"nothing:1": 2})
  with pytest.raises(ValueError, match="share"):
    shrink(apply_fn, params, x, keep=1.5)
  with pytest.raises(ValueError, match="cannot keep 7 of the 6"):
    shrink(apply_fn, params, x, keep={"both:1": 7})
  with pytest.raises(ValueError, match="no axis can shrink: w:0: an axis of the example"):
    shrink(lambda p, x: x @ p["w"], arrays(w=(8, 6)), x, keep=0.5)
  small = shrink(apply_fn, params, x, keep=0.5)
  with pytest.raises(ValueError, match=r"both has shape \(8, 12\), expected \(8, 6\)"):
    small.apply(params, x)
  with pytest.raises(ValueError, match="no axis is called"):
    resize(apply_fn, params, {"other": np.arange(2)})(small.params, x)


def test_units_that_are_taken_are_the_strongest():
  params = {"up": jnp.array([[1.0, 9.0, 5.0]]), "down": jnp.ones([3, 2])}
  apply_fn = lambda params, x: jnp.maximum(x @ params["up"], 0) @ params["down"]  # noqa: E731
  axes = find_axes(apply_fn, params, jnp.ones([1, 1]))
  scores = axis_scores(params, axes, magnitude(params))
  np.testing.assert_array_equal(scores["up:1"], [3, 11, 7])
  ahead = axis_scores(params, axes, magnitude(params), reduce_fn=jnp.prod)
  np.testing.assert_array_equal(ahead["up:1"], [2, 18, 10])
  kept = choose(scores, {"up:1": 2})
  assert kept["up:1"].tolist() == [1, 2]
  assert take_axes(params, axes, kept)["up"].tolist() == [[9.0, 5.0]]
