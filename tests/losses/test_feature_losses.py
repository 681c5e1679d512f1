"""Identities and traps of the losses on features, maps and attention, and of their helpers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
from cases_features import CASES as FEATURES
from cases_maps import CASES as MAPS
from cases_relations import CASES as RELATIONS
from test_loss_table import args_of, finite, run

from kdjax import losses

CASES = [*FEATURES, *MAPS, *RELATIONS]
WHERE_TOKENS = np.array([[True, True, True, False], [True, True, False, False]])


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_finite_at_zero_vectors_and_ties(case):
  """A dead layer, equal examples, equal channels: no NaN, neither in value nor in gradient."""
  scenes = [np.zeros_like, np.ones_like, lambda a: np.broadcast_to(a[:1], a.shape)]
  floats = [i for i, a in enumerate(args_of(case)) if a.dtype == np.float32]
  if case.loss is losses.variational_loss:
    floats.remove(1)  # A variance of 0 is out of range.
  for positions in (floats, floats[:1], floats[1:]):
    for scene in scenes:
      args = [np.array(scene(a)) if i in positions else a for i, a in enumerate(args_of(case))]
      assert finite(run(case, args))


ZERO_STUDENT = [
  losses.cosine_feature_loss,
  losses.patient_loss,
  losses.attention_transfer_loss,
  losses.factor_transfer_loss,
  losses.neuron_selectivity_loss,
]


@pytest.mark.parametrize("loss", ZERO_STUDENT)
def test_a_zero_vector_has_no_direction_to_move_in(loss):
  """Where the length is divided out, the gradient at 0 is 0: not NaN, and not 1e12."""
  teacher = normal(2, 3, 4)
  value, gradient = jax.value_and_grad(loss)(jnp.zeros([2, 3, 4]), teacher)
  assert value > 0
  assert np.all(np.asarray(gradient) == 0)


def test_cosine_with_a_zero_vector_is_zero():
  zero, one = jnp.zeros([1, 3]), jnp.ones([1, 3])
  for pair in ((zero, one), (one, zero), (zero, zero)):
    assert losses.cosine_feature_loss(*pair) == 1


def test_patient_loss_is_twice_the_cosine_loss():
  args = normal(5, 4), normal(5, 4, seed=1)
  np.testing.assert_allclose(
    losses.patient_loss(*args, reduce_fn=None),
    2 * losses.cosine_feature_loss(*args, reduce_fn=None),
    rtol=1e-5,
  )


def test_cosine_keeps_its_precision_near_equality():
  """1 - cos would round to a multiple of 6e-8; the angle here is 1e-4."""
  student, teacher = jnp.array([[1.0, 1e-4]]), jnp.array([[1.0, 0.0]])
  np.testing.assert_allclose(losses.cosine_feature_loss(student, teacher), 5e-9, rtol=1e-4)


def test_variance_must_be_by_channel_or_by_feature():
  mean = jnp.zeros([2, 3, 4])
  with pytest.raises(ValueError, match="variance has shape"):
    losses.variational_loss(mean, jnp.ones([3, 4]), mean)


def test_teacher_nan_does_not_look_like_an_off_neuron():
  teacher = np.array([[np.nan, 1.0], [1.0, 1.0]], np.float32)
  loss = losses.activation_boundary_loss(jnp.zeros([2, 2]), teacher, reduce_fn=None)
  assert np.isnan(loss[0])
  assert loss[1] == 1


@pytest.mark.parametrize(
  ("loss", "options", "message"),
  [
    (losses.activation_boundary_loss, {"margin": -0.1}, "margin must not be negative"),
    (losses.overhaul_loss, {"margin": 0.1}, "margin must not be positive"),
    (losses.attention_transfer_loss, {"power": 0.5}, "power must be at least 1"),
    (losses.hierarchical_context_loss, {"sizes": (2, 0)}, "sizes must be positive"),
    (losses.self_relation_loss, {"num_heads": 3}, "num_heads = 3 does not divide"),
    (losses.self_relation_loss, {"num_heads": 0}, "num_heads = 0 does not divide"),
    (losses.correlation_congruence_loss, {"sharpness": 0.0}, "sharpness must be positive"),
    (losses.correlation_congruence_loss, {"order": 0}, "order must be at least 1"),
  ],
)
def test_options_out_of_range_are_refused(loss, options, message):
  features = jnp.ones([2, 3, 4])
  with pytest.raises(ValueError, match=message):
    loss(features, features, **options)


@pytest.mark.parametrize(
  ("mean", "deviation"), [(0.0, 1.0), (2.0, 0.5), (-3.0, 2.0), (9.0, 3.0), (8.9, 3.0), (30.0, 1.0)]
)
def test_negative_margin_is_the_mean_of_the_negative_half(mean, deviation):
  """By quadrature; the density is taken relative to that at 0, which cancels."""

  def density(x):
    return np.exp((mean**2 - (x - mean) ** 2) / (2 * deviation**2))

  lowest = mean - 40 * deviation if mean < 0 else -40 * deviation**2 / max(mean, deviation)
  options = {"a": lowest, "b": 0, "epsabs": 0, "limit": 200}
  mass = scipy.integrate.quad(density, **options)[0]
  first = scipy.integrate.quad(lambda x: x * density(x), **options)[0]
  actual = losses.negative_margin(jnp.float32(mean), jnp.float32(deviation))
  np.testing.assert_allclose(actual, first / mass, rtol=2e-5)


def test_negative_margin_of_a_constant_channel():
  margins = losses.negative_margin(jnp.array([2.0, -2.0]), jnp.zeros(2))
  assert margins.tolist() == [0.0, -2.0]


def test_overhaul_charges_nothing_below_a_target_that_the_relu_drops():
  """But it does charge above, and for positive targets on both sides."""
  teacher = np.float32([[-0.5, -0.5, -9.0, 2.0]])
  student = np.float32([[-7.0, 0.5, -0.9, 1.0]])
  loss = losses.overhaul_loss(student, teacher, margin=-1.0)
  np.testing.assert_allclose(loss, (0 + 1 + 0.1**2 + 1) / 4, rtol=1e-5)


POSITIONAL = [
  losses.attention_transfer_loss,
  losses.channel_correlation_loss,
  losses.neuron_selectivity_loss,
  lambda s, t, **options: losses.fsp_loss(s, s[..., :2], t, t[..., :2], **options),
]
ORDERLESS = POSITIONAL[1:]


@pytest.mark.parametrize("loss", POSITIONAL)
def test_support_of_positions_equals_cutting_them(loss):
  """Padding positions of each example's own, bearing NaN, change neither value nor gradient."""
  student, teacher = normal(2, 4, 3), normal(2, 4, 3, seed=1)
  spoiled = np.where(WHERE_TOKENS[..., None], student, np.nan)
  value, gradient = jax.value_and_grad(loss)(spoiled, teacher, support=WHERE_TOKENS)
  cut = [loss(student[i : i + 1, :n], teacher[i : i + 1, :n]) for i, n in enumerate((3, 2))]
  np.testing.assert_allclose(value, np.mean(cut), rtol=1e-5)
  assert np.all(np.isfinite(gradient))
  assert np.all(np.asarray(gradient)[~WHERE_TOKENS] == 0)


@pytest.mark.parametrize("loss", ORDERLESS)
def test_the_order_of_positions_does_not_matter(loss):
  student, teacher = normal(2, 4, 3), normal(2, 4, 3, seed=1)
  order = np.array([2, 0, 3, 1])
  expected = loss(student, teacher)
  np.testing.assert_allclose(loss(student[:, order], teacher[:, order]), expected, rtol=1e-5)


def test_maps_of_any_number_of_axes_are_one_list_of_positions():
  student, teacher = normal(2, 2, 3, 2, 3), normal(2, 2, 3, 2, 3, seed=1)
  for loss in POSITIONAL:
    flat = (x.reshape(2, 12, 3) for x in (student, teacher))
    np.testing.assert_allclose(loss(student, teacher), loss(*flat), rtol=1e-5)


def test_attention_transfer_ignores_scale_and_repeated_channels():
  student, teacher = normal(2, 4, 3), normal(2, 4, 3, seed=1)
  doubled = np.concatenate([teacher, teacher], axis=-1)
  expected = losses.attention_transfer_loss(student, teacher)
  np.testing.assert_allclose(
    losses.attention_transfer_loss(3 * student, doubled), expected, rtol=1e-5
  )


def test_linear_selectivity_is_the_distance_of_mean_channels():
  student, teacher = normal(2, 4, 3), normal(2, 4, 5, seed=1)
  means = [(x / np.linalg.norm(x, axis=1, keepdims=True)).mean(-1) for x in (student, teacher)]
  np.testing.assert_allclose(
    losses.neuron_selectivity_loss(student, teacher, kernel=losses.linear_kernel, reduce_fn=None),
    ((means[0] - means[1]) ** 2).sum(-1),
    rtol=1e-4,
  )


def test_selectivity_does_not_mind_the_order_of_channels():
  """Channels are a set: permuting them is no difference, whatever the kernel."""
  teacher = normal(2, 4, 3)
  for kernel in (
    losses.polynomial_kernel,
    losses.gaussian_kernel,
    functools.partial(losses.gaussian_kernel, bandwidth=0.3),
    functools.partial(losses.polynomial_kernel, degree=3, offset=1.0),
  ):
    loss = losses.neuron_selectivity_loss(teacher[..., [2, 0, 1]], teacher, kernel=kernel)
    assert abs(loss) < 1e-6


def test_context_at_one_position_is_the_mean_squared_difference():
  student, teacher = normal(3, 1, 1, 4), normal(3, 1, 1, 4, seed=1)
  np.testing.assert_allclose(
    losses.hierarchical_context_loss(student, teacher),
    losses.hint_loss(student, teacher),
    rtol=1e-6,
  )


def test_masked_tokens_equal_removed_tokens():
  """Neither as queries nor as keys: sequences of unequal length in one batch."""
  student, teacher = normal(2, 4, 6), normal(2, 4, 4, seed=1)
  spoiled = np.where(WHERE_TOKENS[..., None], student, np.nan)

  def loss(features, where):
    return losses.self_relation_loss(features, teacher, num_heads=2, where=where, reduce_fn=jnp.sum)

  value, gradient = jax.value_and_grad(loss)(spoiled, WHERE_TOKENS)
  cut = sum(
    losses.self_relation_loss(student[i, :n], teacher[i, :n], num_heads=2, reduce_fn=jnp.sum)
    for i, n in enumerate((3, 2))
  )
  np.testing.assert_allclose(value, cut, rtol=1e-5)
  assert np.all(np.isfinite(gradient))
  assert np.all(np.asarray(gradient)[~WHERE_TOKENS] == 0)


@pytest.mark.parametrize("support", [np.arange(4) < 2, np.tril(np.ones([4, 4], bool))])
def test_support_of_keys_by_batch_or_for_all(support):
  student, teacher = normal(2, 4, 6), normal(2, 4, 4, seed=1)
  each = np.broadcast_to(support, (2, 4, 4))
  np.testing.assert_allclose(
    losses.self_relation_loss(student, teacher, support=support),
    losses.self_relation_loss(student, teacher, support=each),
    rtol=1e-6,
  )
  if support.ndim == 2:  # The first token sees itself alone, and nothing is left to differ in.
    each = losses.self_relation_loss(student, teacher, support=support, reduce_fn=None)
    assert np.all(np.asarray(each)[:, 0] == 0)


def test_value_relations_ignore_rotations():
  """Only tokens are compared: an orthogonal change of basis is no difference."""
  student = normal(2, 4, 6)
  rotation = np.linalg.qr(normal(6, 6, seed=2))[0]
  assert abs(losses.self_relation_loss(student @ rotation, student)) < 1e-6


def test_variational_regressor_learns_mean_and_variance():
  """Channel c carries noise of deviation c: the variances must find it."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4096, 2)).astype(np.float32)
  deviation = np.array([0.2, 0.5, 1.5])
  target = np.stack([x[:, 0], -x[:, 1], x.sum(-1)], -1) + rng.normal(size=(4096, 3)) * deviation
  target = target.astype(np.float32)
  helper = losses.variational_regressor(2, 3, hidden_dim=8)
  params = helper.init(jax.random.key(0))

  def loss(params):
    return losses.variational_loss(*helper.apply(params, x), target)

  optimizer = optax.adam(1e-2)

  @jax.jit
  def fit(params):
    def step(_, state):
      params, moments = state
      updates, moments = optimizer.update(jax.grad(loss)(params), moments)
      return optax.apply_updates(params, updates), moments

    return jax.lax.fori_loop(0, 800, step, (params, optimizer.init(params)))[0]

  variance = helper.apply(fit(params), x)[1]
  np.testing.assert_allclose(np.sqrt(variance), deviation, rtol=0.15)


def test_helpers_take_bfloat16_and_positions_of_one_axis():
  encoder, decoder = (
    losses.factor_encoder(4, 2, spatial_ndim=1),
    losses.factor_decoder(2, 4, spatial_ndim=1),
  )
  features = jnp.asarray(normal(2, 5, 4), jnp.bfloat16)
  factors = encoder.apply(encoder.init(jax.random.key(0)), features)
  assert decoder.apply(decoder.init(jax.random.key(1)), factors).shape == (2, 5, 4)


def test_the_deepest_stage_reaches_every_output_of_the_reviewer():
  helper = losses.reviewer([2, 3, 4], [5, 6, 7], hidden_dim=4)
  params = helper.init(jax.random.key(0))
  stages = [jnp.asarray(normal(1, n, n, c)) for n, c in ((8, 2), (4, 3), (2, 4))]

  def norms(deepest):
    outputs = helper.apply(params, [*stages[:2], deepest])
    return jnp.stack([jnp.sum(x**2) for x in outputs])

  reach = jax.jacobian(norms)(stages[2])
  assert all(np.any(np.asarray(x) != 0) for x in reach)

  def shallow(stage):
    return jnp.sum(helper.apply(params, [stage, *stages[1:]])[2] ** 2)

  assert np.all(np.asarray(jax.grad(shallow)(stages[0])) == 0)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: losses.factor_encoder(0, 2), "widths must be positive"),
    (lambda: losses.factor_decoder(2, 2, spatial_ndim=0), "widths must be positive"),
    (lambda: losses.reviewer([2], [2, 3], hidden_dim=4), "stages must pair up"),
    (lambda: losses.reviewer([], [], hidden_dim=4), "stages must pair up"),
    (lambda: losses.variational_regressor(2, 2, variance=1e-6), "min_variance < variance"),
    (lambda: losses.variational_regressor(2, 2, hidden_dim=0), "widths must be positive"),
  ],
)
def test_impossible_helpers_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
