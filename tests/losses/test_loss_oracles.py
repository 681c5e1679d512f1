"""Losses against independent packages, and against identities of theory."""

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rax

from kdjax import losses

NAME = "torch_losses"


@pytest.fixture(scope="module")
def golden():
  return golden_files.load(NAME)


# Name in the golden file -> the same loss of ours as a function of the student's logits.
OURS = {
  "kl": lambda z, g: losses.kl_loss(z, g["teacher"], temperature=float(g["temperature"])),
  "kl_sum": lambda z, g: losses.kl_loss(
    z, g["teacher"], temperature=float(g["temperature"]), reduce_fn=jnp.sum
  ),
  "cross_entropy": lambda z, g: losses.cross_entropy_loss(z, g["labels"]),
  "cross_entropy_masked": lambda z, g: losses.cross_entropy_loss(
    z, np.where(g["where"], g["labels"], -1), where=g["where"]
  ),
  "cross_entropy_smoothed": lambda z, g: losses.cross_entropy_loss(
    z, g["labels"], label_smoothing=float(g["smoothing"])
  ),
  "binary_cross_entropy": lambda z, g: losses.binary_cross_entropy_loss(z, g["targets"]),
  "mse": lambda z, g: losses.logit_mse_loss(z, g["teacher"]),
  "bernoulli_kl": lambda z, g: losses.bernoulli_kl_loss(z, g["teacher"]),
  "bpr": lambda z, g: losses.bpr_loss(z[:, 0], z[:, 1:]),
}


@pytest.mark.parametrize("name", OURS)
def test_value_and_gradient_equal_torch(name, golden):
  value, gradient = jax.value_and_grad(OURS[name])(jnp.asarray(golden["student"]), golden)
  np.testing.assert_allclose(value, golden[f"value_{name}"], rtol=1e-5)
  np.testing.assert_allclose(gradient, golden[f"gradient_{name}"], rtol=1e-4, atol=1e-6)


def test_golden_file_holds_no_more_and_no_less(golden):
  assert {key[6:] for key in golden if key.startswith("value_")} == set(OURS)
  assert str(golden["made_with"]).startswith("torch ")


def test_golden_file_is_what_its_script_makes(golden):
  golden_files.check_script(NAME, golden, packages=("torch",))


def test_cross_entropy_equals_optax(golden):
  args = jnp.asarray(golden["student"]), jnp.asarray(golden["labels"])
  np.testing.assert_allclose(
    losses.cross_entropy_loss(*args, reduce_fn=None),
    optax.softmax_cross_entropy_with_integer_labels(*args),
    rtol=1e-5,
  )


def test_binary_cross_entropy_equals_optax(golden):
  args = jnp.asarray(golden["student"]), jnp.asarray(golden["targets"])
  np.testing.assert_allclose(
    losses.binary_cross_entropy_loss(*args, reduce_fn=None),
    optax.sigmoid_binary_cross_entropy(*args),
    rtol=1e-5,
    atol=1e-6,
  )


def test_kl_equals_optax(golden):
  log_s = jax.nn.log_softmax(golden["student"])
  expected = optax.losses.kl_divergence_with_log_targets(
    log_s, jax.nn.log_softmax(golden["teacher"])
  )
  actual = losses.kl_loss(golden["student"], golden["teacher"], reduce_fn=None)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_sampled_softmax_equals_rax_softmax(golden):
  """One relevant item in a list: rax's listwise softmax is the same loss."""
  scores = jnp.asarray(golden["student"])
  relevance = jnp.zeros_like(scores).at[:, 0].set(1.0)
  np.testing.assert_allclose(
    losses.sampled_softmax_loss(scores[:, 0], scores[:, 1:]),
    rax.softmax_loss(scores, relevance),
    rtol=1e-5,
  )


def test_bpr_equals_rax_pairwise_logistic(golden):
  scores = jnp.asarray(golden["student"])
  relevance = jnp.zeros_like(scores).at[:, 0].set(1.0)
  pairs = rax.pairwise_logistic_loss(scores, relevance, reduce_fn=None)
  np.testing.assert_allclose(
    losses.bpr_loss(scores[:, 0], scores[:, 1:], reduce_fn=jnp.sum),
    jnp.sum(pairs) / (scores.shape[1] - 1),
    rtol=1e-5,
  )


def test_hot_temperature_is_logit_matching(golden):
  """T -> infinity: T**2 KL -> half the mean squared difference of centred logits (Hinton 2015)."""
  student, teacher = (x - x.mean(-1, keepdims=True) for x in (golden["student"], golden["teacher"]))
  np.testing.assert_allclose(
    losses.kl_loss(student / 10, teacher / 10, temperature=30.0),
    losses.logit_mse_loss(student / 10, teacher / 10) / 2,
    rtol=1e-2,
  )


def test_kl_to_one_hot_teacher_is_cross_entropy(golden):
  """Zero-probability targets: no NaN in value or gradient, unlike 0 * log 0."""
  hot = np.where(np.eye(11)[golden["labels"]] > 0, 0.0, -np.inf).astype(np.float32)
  z = jnp.asarray(golden["student"])
  kl, kl_grad = jax.value_and_grad(losses.kl_loss)(z, hot)
  ce, ce_grad = jax.value_and_grad(losses.cross_entropy_loss)(z, golden["labels"])
  np.testing.assert_allclose(kl, ce, rtol=1e-6)
  np.testing.assert_allclose(kl_grad, ce_grad, atol=1e-7)


def test_two_class_kl_is_bernoulli_kl(golden):
  s, t = golden["student"][:, 0], golden["teacher"][:, 0]
  pad = lambda x: np.stack([x, np.zeros_like(x)], -1)  # noqa: E731
  np.testing.assert_allclose(
    losses.kl_loss(pad(s), pad(t), temperature=2.0),
    losses.bernoulli_kl_loss(s, t, temperature=2.0),
    rtol=1e-5,
  )


def test_support_equals_cutting_the_columns(golden):
  """Unequal vocabularies: padding columns change neither value nor gradient."""
  support = np.arange(11) < 8
  z, t = golden["student"], golden["teacher"]
  value, grad = jax.value_and_grad(losses.kl_loss)(z, t, support=support)
  cut, cut_grad = jax.value_and_grad(losses.kl_loss)(z[:, :8], t[:, :8])
  np.testing.assert_allclose(value, cut, rtol=1e-6)
  np.testing.assert_allclose(grad[:, :8], cut_grad, rtol=1e-5, atol=1e-8)
  assert np.all(np.asarray(grad)[:, 8:] == 0)


def test_one_class_support_is_zero(golden):
  support = np.arange(11) == 4
  assert losses.kl_loss(golden["student"], golden["teacher"], support=support) == 0


def test_log_q_corrects_the_sampler(golden):
  """With every item sampled in proportion to q, the correction recovers the full softmax.

  A list that repeats item j n_j times, with q_j proportional to n_j, has the corrected
  normaliser sum_j n_j exp(x_j - log n_j) = sum_j exp(x_j).
  """
  scores, counts = golden["student"][0], np.arange(1, 12)
  negatives = np.repeat(scores, counts)
  log_q = np.log(np.repeat(counts, counts)).astype(np.float32)
  is_label = np.repeat(np.arange(11), counts) == 3
  actual = losses.sampled_softmax_loss(
    scores[3],
    negatives,
    positive_log_q=np.float32(0),
    negative_log_q=log_q,
    support=~is_label,
  )
  np.testing.assert_allclose(actual, losses.cross_entropy_loss(scores, np.int32(3)), rtol=1e-5)


def test_log_q_only_for_one_side_is_refused():
  with pytest.raises(ValueError, match="together"):
    losses.sampled_softmax_loss(jnp.zeros(2), jnp.zeros([2, 3]), positive_log_q=jnp.zeros(2))


@pytest.mark.parametrize("temperature", [0, -1.0])
@pytest.mark.parametrize("loss", [losses.kl_loss, losses.bernoulli_kl_loss])
def test_temperature_must_be_positive(loss, temperature):
  with pytest.raises(ValueError, match="temperature must be positive"):
    loss(jnp.zeros([2, 3]), jnp.zeros([2, 3]), temperature=temperature)


@pytest.mark.parametrize("label", [-1, 11])
def test_a_label_out_of_range_that_counts_is_nan(label, golden):
  labels = np.where(np.arange(6) == 2, label, golden["labels"])
  assert np.isnan(losses.cross_entropy_loss(golden["student"], labels))


def test_projector_is_affine_and_learns_the_hint():
  helper = losses.projector(3, 5)
  params = helper.init(jax.random.key(0))
  assert {k: v.shape for k, v in params.items()} == {"kernel": (3, 5), "bias": (5,)}
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4, 6, 3)).astype(np.float32)
  params["bias"] = jnp.arange(5.0)
  expected = np.float64(x) @ np.float64(params["kernel"]) + np.arange(5)
  np.testing.assert_allclose(helper.apply(params, x), expected, rtol=1e-5, atol=1e-6)
  target = x @ rng.normal(size=(3, 5)).astype(np.float32)

  def loss(params):
    return losses.hint_loss(helper.apply(params, x), target)

  step = jax.jit(lambda p: jax.tree.map(lambda a, g: a - g, p, jax.grad(loss)(p)))
  for _ in range(60):
    params = step(params)
  assert loss(params) < 1e-3


def test_projector_refuses_no_width():
  with pytest.raises(ValueError, match="widths must be positive"):
    losses.projector(0, 5)
