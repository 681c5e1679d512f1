"""Identities and traps of the losses between two softmaxes, and of made-up teachers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import SUPPORT, softmax
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, pearsonr

from kdjax import losses

DRAW = np.random.default_rng(0)
STUDENT, TEACHER = (DRAW.normal(scale=1.5, size=(6, 7)).astype(np.float32) for _ in range(2))
LABELS = DRAW.integers(0, 7, 6)
P_STUDENT, P_TEACHER = softmax(STUDENT), softmax(TEACHER)


def value_and_gradient(loss, student=STUDENT, teacher=TEACHER, **options):
  return jax.value_and_grad(lambda z: jnp.sum(loss(z, teacher, reduce_fn=None, **options)))(student)


def assert_same(actual, expected, **tolerance):
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, **tolerance)


def test_jensen_shannon_equals_scipy():
  expected = jensenshannon(P_STUDENT, P_TEACHER, axis=-1) ** 2
  actual = losses.jensen_shannon_loss(STUDENT, TEACHER, reduce_fn=None)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_jensen_shannon_is_symmetric_at_one_half_only():
  jsd = losses.jensen_shannon_loss
  np.testing.assert_allclose(jsd(STUDENT, TEACHER), jsd(TEACHER, STUDENT), rtol=1e-6)
  one, other = (jsd(*pair, teacher_weight=0.2) for pair in ((STUDENT, TEACHER), (TEACHER, STUDENT)))
  assert abs(one / other - 1) > 0.05
  np.testing.assert_allclose(one, jsd(TEACHER, STUDENT, teacher_weight=0.8), rtol=1e-6)


def test_mixture_weight_is_on_the_side_it_names():
  """The published definition, P the teacher: beta weighs the teacher in both places."""
  p, q = [0.9, 0.1], [0.5, 0.5]
  mixture = 0.1 * np.array(p) + 0.9 * np.array(q)
  expected = 0.1 * entropy(p, mixture) + 0.9 * entropy(q, mixture)
  z_s, z_t = jnp.log(jnp.array(q)), jnp.log(jnp.array(p))
  jsd = losses.jensen_shannon_loss
  np.testing.assert_allclose(jsd(z_s, z_t, teacher_weight=0.1), expected, rtol=1e-5)
  assert abs(jsd(z_s, z_t, teacher_weight=0.9) / expected - 1) > 0.02
  np.testing.assert_allclose(losses.skew_kl_loss(z_s, z_t), entropy(p, mixture), rtol=1e-5)
  other = 0.9 * np.array(p) + 0.1 * np.array(q)
  np.testing.assert_allclose(losses.skew_reverse_kl_loss(z_s, z_t), entropy(q, other), rtol=1e-5)


def test_probabilities_are_mixed_and_not_their_logarithms():
  p, q = np.array([0.98, 0.01, 0.01]), np.array([0.01, 0.01, 0.98])
  jsd = losses.jensen_shannon_loss(jnp.log(q), jnp.log(p))
  np.testing.assert_allclose(jsd, jensenshannon(p, q) ** 2, rtol=1e-5)
  geometric = np.sqrt(p * q) / np.sum(np.sqrt(p * q))
  assert abs((entropy(p, geometric) + entropy(q, geometric)) / 2 - jsd) > 0.02
  mixed = jnp.exp(losses.sampling_logits(jnp.log(q), jnp.log(p), teacher_weight=0.2))
  np.testing.assert_allclose(mixed, 0.2 * p + 0.8 * q, rtol=1e-5)


@pytest.mark.parametrize(("end", "limit"), [(0, losses.kl_loss), (1, losses.reverse_kl_loss)])
def test_normalized_jensen_shannon_reaches_its_ends_continuously(end, limit):
  expected = value_and_gradient(limit, temperature=2.0)
  for distance, rtol in [(0, 1e-6), (1e-7, 1e-4), (1e-5, 1e-3), (1e-3, 5e-2)]:
    weight = abs(end - distance)
    options = {"teacher_weight": weight, "normalized": True, "temperature": 2.0}
    actual = value_and_gradient(losses.jensen_shannon_loss, **options)
    assert_same(actual, expected, rtol=rtol, atol=rtol)
    traced = jax.jit(lambda w: losses.jensen_shannon_loss(STUDENT, TEACHER, teacher_weight=w))
    np.testing.assert_allclose(traced(jnp.float32(weight)), 0, atol=10 * distance + 1e-7)


def test_normalized_jensen_shannon_is_four_times_the_plain_one_in_the_middle():
  plain, normalized = (
    losses.jensen_shannon_loss(STUDENT, TEACHER, normalized=flag) for flag in (False, True)
  )
  np.testing.assert_allclose(normalized, 4 * plain, rtol=1e-6)


def test_skew_divergences_at_the_ends_of_their_weights():
  skew, skew_reverse = losses.skew_kl_loss, losses.skew_reverse_kl_loss
  kl, reverse = (value_and_gradient(f) for f in (losses.kl_loss, losses.reverse_kl_loss))
  assert_same(value_and_gradient(skew, teacher_weight=0), kl, rtol=1e-5, atol=1e-6)
  assert_same(value_and_gradient(skew_reverse, student_weight=0), reverse, rtol=1e-5, atol=1e-6)
  for at_one in (
    value_and_gradient(skew, teacher_weight=1.0),
    value_and_gradient(skew_reverse, student_weight=1.0),
  ):
    assert_same(at_one, (0, np.zeros_like(STUDENT)), atol=1e-6)


def test_skew_divergences_are_bounded_where_kl_is_not():
  apart = jnp.array([1e4, -1e4]), jnp.array([-1e4, 1e4])
  assert losses.kl_loss(*apart) > 1e4
  for loss in (losses.skew_kl_loss, losses.skew_reverse_kl_loss):
    np.testing.assert_allclose(loss(*apart), -np.log(0.1), rtol=1e-6)
  np.testing.assert_allclose(losses.jensen_shannon_loss(*apart), np.log(2), rtol=1e-6)


def test_jensen_shannon_is_made_of_skew_divergences():
  w = 0.3
  parts = w * losses.skew_kl_loss(STUDENT, TEACHER, teacher_weight=w) + (
    1 - w
  ) * losses.skew_reverse_kl_loss(STUDENT, TEACHER, student_weight=1 - w)
  whole = losses.jensen_shannon_loss(STUDENT, TEACHER, teacher_weight=w)
  np.testing.assert_allclose(whole, parts, rtol=1e-6)


@pytest.mark.parametrize(
  ("loss", "options", "curvature"),
  [
    (losses.kl_loss, {}, 1.0),
    (losses.reverse_kl_loss, {}, 1.0),
    (losses.jensen_shannon_loss, {"teacher_weight": 0.3}, 0.3 * 0.7),
    (losses.jensen_shannon_loss, {"teacher_weight": 0.3, "normalized": True}, 1.0),
    (losses.skew_kl_loss, {"teacher_weight": 0.3}, 0.7**2),
    (losses.skew_reverse_kl_loss, {"student_weight": 0.3}, 0.7**2),
  ],
)
def test_hot_temperature_is_matching_of_centred_logits(loss, options, curvature):
  """T -> infinity: T**2 D -> f''(1) / (2 C) * sum of squared differences of centred logits."""
  s, t = (z - z.mean(-1, keepdims=True) for z in (STUDENT, TEACHER))
  expected = curvature * ((s - t) ** 2).sum(-1).mean() / (2 * 7)
  np.testing.assert_allclose(
    loss(STUDENT, TEACHER, temperature=100.0, **options), expected, rtol=3e-2
  )


def test_total_variation_is_one_minus_the_acceptance_rate():
  rate = losses.acceptance_rate(STUDENT, TEACHER, temperature=0.7, support=SUPPORT)
  loss = losses.total_variation_loss(
    STUDENT, TEACHER, temperature=0.7, support=SUPPORT, reduce_fn=None
  )
  np.testing.assert_allclose(rate, 1 - loss, rtol=1e-5)


def test_acceptance_rate_is_how_often_drafts_are_accepted():
  """The rule itself: a draft c of the student is kept with probability min(1, p_t / p_s)."""
  rng, draws = np.random.default_rng(1), 40_000
  drafts = rng.choice(7, size=draws, p=P_STUDENT[0])
  kept = rng.random(draws) < P_TEACHER[0, drafts] / P_STUDENT[0, drafts]
  rate = losses.acceptance_rate(STUDENT[0], TEACHER[0])
  assert abs(kept.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / draws)


def test_expected_tokens_counts_the_run_of_accepted_drafts():
  rng, draws, rate, drafts = np.random.default_rng(2), 40_000, 0.7, 4
  accepted = np.cumprod(rng.random((draws, drafts)) < rate, axis=1).sum(1)
  expected = losses.expected_tokens(jnp.float32(rate), drafts)
  assert abs(1 + accepted.mean() - expected) < 5 * accepted.std() / np.sqrt(draws)


def test_forward_kl_is_decoupled_kl_weighed_by_the_teachers_doubt():
  """KL = TCKD + (1 - p_target) NCKD, in value and gradient."""
  doubt = 1 - softmax(TEACHER, 3.0)[np.arange(6), LABELS].astype(np.float32)
  expected = value_and_gradient(losses.kl_loss, temperature=3.0)
  actual = value_and_gradient(
    losses.decoupled_loss, labels=LABELS, other_weight=doubt, temperature=3.0
  )
  assert_same(actual, expected, rtol=1e-5, atol=1e-6)


def test_decoupled_parts_are_binary_and_free_of_the_target():
  binary = losses.decoupled_loss(STUDENT, TEACHER, LABELS, other_weight=0.0, temperature=1.0)
  rows = np.arange(6)
  s, t = (np.stack([p[rows, LABELS], 1 - p[rows, LABELS]]) for p in (P_STUDENT, P_TEACHER))
  np.testing.assert_allclose(binary, entropy(t, s).mean(), rtol=1e-5)
  moved = STUDENT + 3.0 * np.eye(7, dtype=np.float32)[LABELS]
  others = [losses.decoupled_loss(z, TEACHER, LABELS, target_weight=0.0) for z in (STUDENT, moved)]
  np.testing.assert_allclose(*others, rtol=1e-5)


def test_normalized_decoupled_is_least_at_the_teachers_other_classes():
  """A cross-entropy: its excess over the teacher's own is the KL among the other classes."""
  options = {"target_weight": 0.0, "other_weight": 1.0, "temperature": 2.0}
  excess = losses.normalized_decoupled_loss(
    STUDENT, TEACHER, LABELS, **options
  ) - losses.normalized_decoupled_loss(TEACHER, TEACHER, LABELS, **options)
  np.testing.assert_allclose(
    excess, losses.decoupled_loss(STUDENT, TEACHER, LABELS, **options), rtol=1e-5
  )


def test_standardized_logits_ignore_shift_and_scale():
  standard = losses.standardize_logits(STUDENT)
  np.testing.assert_allclose(standard.mean(-1), 0, atol=1e-6)
  np.testing.assert_allclose(jnp.std(standard, axis=-1), 1, rtol=1e-6)
  moved = losses.standardize_logits(5 + 20 * STUDENT)
  np.testing.assert_allclose(moved, standard, rtol=1e-4, atol=1e-5)


def test_standardized_logits_leave_out_impossible_classes():
  logits = np.where(SUPPORT, STUDENT, -np.inf)
  expected = losses.standardize_logits(STUDENT[:, SUPPORT])
  for actual in (
    losses.standardize_logits(logits),
    losses.standardize_logits(STUDENT, support=SUPPORT),
  ):
    np.testing.assert_allclose(actual[:, SUPPORT], expected, rtol=1e-5)
    assert np.all(np.isneginf(actual[:, ~SUPPORT]))


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4])
def test_standardizing_equal_logits_gives_zero_with_finite_gradient(value):
  student = jnp.full([2, 7], value, jnp.float32)
  np.testing.assert_array_equal(losses.standardize_logits(student), np.zeros([2, 7]))
  _, gradient = value_and_gradient(losses.standardized_kl_loss, student, TEACHER[:2])
  assert np.all(np.isfinite(gradient))


def test_dist_equals_scipy():
  inter = [1 - pearsonr(s, t).statistic for s, t in zip(P_STUDENT, P_TEACHER, strict=True)]
  intra = [1 - pearsonr(s, t).statistic for s, t in zip(P_STUDENT.T, P_TEACHER.T, strict=True)]
  dist = losses.dist_loss
  actual = dist(STUDENT, TEACHER, inter_weight=1.0, intra_weight=0.0, reduce_fn=None)
  np.testing.assert_allclose(actual, inter, rtol=1e-5)
  actual = dist(STUDENT, TEACHER, inter_weight=0.0, reduce_fn=None)
  np.testing.assert_allclose(actual, np.full(6, np.mean(intra)), rtol=1e-5)


def test_dist_sees_classes_that_are_rare_in_the_batch():
  """Subtracting 60 from a class's logits scales its probabilities, which correlation ignores."""
  rare = np.array([0, 0, 0, 0, 0, 0, -60], np.float32)
  last = {"inter_weight": 0.0, "reduce_fn": None}
  usual = losses.dist_loss(STUDENT + rare, TEACHER + rare, **last)
  rarer = losses.dist_loss(STUDENT + 1.5 * rare, TEACHER + 1.5 * rare, **last)
  np.testing.assert_allclose(usual, rarer, rtol=1e-5)
  _, gradient = value_and_gradient(losses.dist_loss, STUDENT + rare, TEACHER + rare)
  assert np.max(np.abs(gradient[:, -1])) > 1e-2


def test_dist_of_vectors_without_variance_is_one():
  flat = jnp.zeros([3, 4])
  value, gradient = value_and_gradient(losses.dist_loss, flat, flat)
  assert_same((value, gradient), (6.0, np.zeros([3, 4])))  # 1 + 1 for each example.


@pytest.mark.parametrize(
  "loss",
  [
    losses.reverse_kl_loss,
    losses.jensen_shannon_loss,
    losses.skew_kl_loss,
    losses.skew_reverse_kl_loss,
    losses.total_variation_loss,
    losses.cosine_probability_loss,
    losses.standardized_kl_loss,
    losses.dist_loss,
  ],
)
def test_support_equals_cutting_the_columns(loss):
  """Unequal vocabularies: padding columns change neither value nor gradient."""
  value, gradient = value_and_gradient(loss, support=SUPPORT)
  cut = value_and_gradient(loss, STUDENT[:, SUPPORT], TEACHER[:, SUPPORT])
  assert_same((value, gradient[:, SUPPORT]), cut, rtol=1e-5, atol=1e-6)
  assert np.all(np.asarray(gradient)[:, ~SUPPORT] == 0)


@pytest.mark.parametrize(
  ("loss", "name"),
  [
    (losses.jensen_shannon_loss, "teacher_weight"),
    (losses.skew_kl_loss, "teacher_weight"),
    (losses.skew_reverse_kl_loss, "student_weight"),
    (losses.sampling_logits, "teacher_weight"),
  ],
)
@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_mixture_weights_are_fractions(loss, name, weight):
  with pytest.raises(ValueError, match=f"{name} must lie in"):
    loss(STUDENT, TEACHER, **{name: weight})


def test_soft_cross_entropy_is_kl_plus_entropy():
  loss = losses.soft_cross_entropy_loss(STUDENT, np.float32(P_TEACHER))
  expected = losses.kl_loss(STUDENT, TEACHER) + entropy(P_TEACHER, axis=-1).mean()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_virtual_teacher_is_label_smoothing():
  """At T = 1: a = 1 - e + e / C, up to the entropy of the target."""
  epsilon = 0.3
  teacher = losses.virtual_teacher(LABELS, 7, target_probability=1 - epsilon + epsilon / 7)
  smoothed = losses.cross_entropy_loss(STUDENT, LABELS, label_smoothing=epsilon)
  kl = losses.kl_loss(STUDENT, teacher) + entropy(softmax(teacher), axis=-1).mean()
  np.testing.assert_allclose(kl, smoothed, rtol=1e-5)


def test_label_mixture_softens_to_the_mixture():
  expected = 0.3 * np.eye(7)[LABELS] + 0.7 * softmax(TEACHER, 4.0)
  targets = losses.label_mixture(TEACHER, LABELS, label_weight=0.3, temperature=4.0)
  np.testing.assert_allclose(softmax(targets, 4.0), expected, rtol=1e-5)


def test_label_mixture_at_its_ends_and_with_an_impossible_label():
  mixture = losses.label_mixture
  hard = losses.cross_entropy_loss(STUDENT, LABELS)
  np.testing.assert_allclose(
    losses.kl_loss(STUDENT, mixture(TEACHER, LABELS, label_weight=1)), hard, rtol=1e-6
  )
  np.testing.assert_allclose(
    softmax(mixture(TEACHER, LABELS, label_weight=0)), P_TEACHER, rtol=1e-5
  )
  sure = jnp.array([0.0, -jnp.inf])
  refined = jnp.exp(mixture(sure, jnp.array(1), label_weight=0.25))
  np.testing.assert_allclose(refined, [0.75, 0.25], rtol=1e-6)


def test_probability_shift_makes_the_teacher_right_and_keeps_its_logits():
  shifted = np.asarray(losses.probability_shift(TEACHER, LABELS))
  np.testing.assert_array_equal(shifted.argmax(-1), LABELS)
  np.testing.assert_array_equal(np.sort(shifted), np.sort(TEACHER))
  right = TEACHER.argmax(-1) == LABELS
  np.testing.assert_array_equal(shifted[right], TEACHER[right])
  at_once = losses.probability_shift(TEACHER, TEACHER.argmax(-1))
  np.testing.assert_array_equal(at_once, TEACHER)
  impossible = losses.probability_shift(jnp.array([2.0, -jnp.inf]), jnp.array(1))
  np.testing.assert_array_equal(impossible, [-np.inf, 2.0])


@pytest.mark.parametrize("weights", [None, np.float32([1, 3, 0]), "each"])
def test_ensembles_average_probabilities_or_logits(weights):
  teachers = np.stack([TEACHER, STUDENT, TEACHER[::-1]])
  if isinstance(weights, str):
    weights = np.random.default_rng(3).random((3, 6)).astype(np.float32)
  shares = np.ones([3, 1]) if weights is None else np.float64(weights).reshape(3, -1)
  shares = (shares / shares.sum(0))[..., None]
  probs = losses.average_probs(teachers, weights=weights, temperature=2.0, support=SUPPORT)
  expected = (shares * softmax(teachers, 2.0, SUPPORT)).sum(0)
  np.testing.assert_allclose(softmax(probs, 2.0), expected, rtol=1e-5, atol=1e-12)
  logits = losses.average_logits(teachers, weights=weights)
  np.testing.assert_allclose(logits, (shares * teachers).sum(0), rtol=1e-5, atol=1e-6)


def test_the_mean_of_logits_is_the_geometric_mean_of_probabilities():
  mean = np.sqrt(P_STUDENT * P_TEACHER)
  actual = softmax(losses.average_logits(np.stack([STUDENT, TEACHER])))
  np.testing.assert_allclose(actual, mean / mean.sum(-1, keepdims=True), rtol=1e-5)


def test_weights_of_an_ensemble_must_fit():
  with pytest.raises(ValueError, match="weights have shape"):
    losses.average_logits(np.stack([STUDENT, TEACHER]), weights=jnp.ones([6]))


def test_confident_teachers_count_more():
  teachers = np.stack([TEACHER, STUDENT, TEACHER[::-1]])
  weights = losses.confidence_weights(teachers, LABELS)
  powers = 1 / softmax(teachers)[:, np.arange(6), LABELS]  # exp of the cross-entropy.
  np.testing.assert_allclose(weights, (1 - powers / powers.sum(0)) / 2, rtol=1e-5)
  np.testing.assert_allclose(weights.sum(0), 1, rtol=1e-6)
  np.testing.assert_array_equal(losses.confidence_weights(teachers[:1], LABELS), np.ones([1, 6]))


def test_targets_of_unknown_labels_are_nan_unless_masked():
  labels = np.where(np.arange(6) == 2, -1, LABELS)
  teachers = np.stack([TEACHER, STUDENT])
  made = [
    losses.virtual_teacher(labels, 7),
    losses.label_mixture(TEACHER, labels),
    losses.probability_shift(TEACHER, labels),
    losses.average_probs(teachers, weights=losses.confidence_weights(teachers, labels)),
  ]
  for targets in made:
    each = losses.kl_loss(STUDENT, targets, reduce_fn=None)
    np.testing.assert_array_equal(np.isnan(each), labels < 0)
    seen = losses.kl_loss(STUDENT, targets, where=labels >= 0, reduce_fn=None)
    np.testing.assert_allclose(seen, np.where(labels < 0, 0, each), rtol=1e-6)


def test_made_up_teachers_send_no_gradient():
  def total(z):
    teachers = jnp.stack([z, 2 * z])
    made = [
      losses.label_mixture(z, LABELS),
      losses.probability_shift(z, LABELS),
      losses.average_probs(teachers, weights=losses.confidence_weights(teachers, LABELS)),
      losses.average_logits(teachers),
      losses.sampling_logits(z, z),
      *jax.tree.leaves(losses.top_k_targets(z, 3)._replace(indices=None)),
      losses.sample_targets(jax.random.key(0), z, 3).weights,
    ]
    return sum(jnp.sum(x) for x in made)

  np.testing.assert_array_equal(jax.grad(total)(TEACHER), np.zeros_like(TEACHER))
