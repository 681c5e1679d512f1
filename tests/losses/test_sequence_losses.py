"""Identities and traps of the losses on sequences, sparse targets, and of their partners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import softmax

from kdjax import losses
from kdjax.reduce import totals

DRAW = np.random.default_rng(0)
STUDENT, TEACHER = (DRAW.normal(scale=1.5, size=(4, 5, 7)).astype(np.float32) for _ in range(2))
TOKENS = DRAW.integers(0, 7, (4, 5))
WHERE = np.arange(5) < np.array([5, 1, 0, 3])[:, None]


def test_sequence_mean_weighs_sequences_alike():
  each = np.asarray(losses.kl_loss(STUDENT, TEACHER, reduce_fn=None))
  expected = np.mean([each[0].mean(), each[1, 0], each[3, :3].mean()])  # None of the empty one.
  actual = losses.kl_loss(STUDENT, TEACHER, where=WHERE, reduce_fn=losses.sequence_mean)
  np.testing.assert_allclose(actual, expected, rtol=1e-6)
  over_tokens = losses.kl_loss(STUDENT, TEACHER, where=WHERE)
  np.testing.assert_allclose(over_tokens, each[WHERE].mean(), rtol=1e-6)
  assert abs(actual / over_tokens - 1) > 1e-2


def test_sequence_mean_of_nothing_is_zero_with_zero_gradient():
  def loss(z):
    return losses.kl_loss(z, TEACHER, where=WHERE & False, reduce_fn=losses.sequence_mean)

  value, gradient = jax.value_and_grad(loss)(STUDENT)
  assert value == 0
  assert np.all(np.asarray(gradient) == 0)


@pytest.mark.parametrize("reduce_fn", [totals, losses.sequence_totals])
@pytest.mark.parametrize("loss", [losses.jensen_shannon_loss, losses.reverse_kl_loss])
def test_accumulation_over_padded_micro_batches_is_exact(loss, reduce_fn):
  """Micro-batches with unequal counts: totals merge, and the mean of their means is wrong."""
  whole = loss(STUDENT, TEACHER, where=WHERE, reduce_fn=reduce_fn).compute()
  parts = [
    loss(STUDENT[i], TEACHER[i], where=WHERE[i], reduce_fn=reduce_fn)
    for i in (slice(0, 1), slice(1, 4))
  ]
  np.testing.assert_allclose((parts[0] + parts[1]).compute(), whole, rtol=1e-6)
  mean_of_means = (parts[0].compute() + parts[1].compute()) / 2
  assert abs(mean_of_means / whole - 1) > 1e-4


def test_padding_changes_no_mean():
  padded = [np.pad(z, [(0, 2), (0, 3), (0, 0)], constant_values=np.nan) for z in (STUDENT, TEACHER)]
  where = np.pad(WHERE, [(0, 2), (0, 3)])
  for reduce_fn in (jnp.mean, jnp.sum, losses.sequence_mean):
    np.testing.assert_allclose(
      losses.skew_kl_loss(*padded, where=where, reduce_fn=reduce_fn),
      losses.skew_kl_loss(STUDENT, TEACHER, where=WHERE, reduce_fn=reduce_fn),
      rtol=1e-6,
    )


def test_sequence_loss_between_the_sum_and_the_mean_of_its_tokens():
  each = np.where(WHERE, losses.cross_entropy_loss(STUDENT, TOKENS, reduce_fn=None), 0)
  options = {"token_where": WHERE, "reduce_fn": None}
  np.testing.assert_allclose(
    losses.sequence_loss(STUDENT, TOKENS, **options), each.sum(-1), rtol=1e-5
  )
  np.testing.assert_allclose(
    losses.sequence_loss(STUDENT, TOKENS, length_power=1.0, where=WHERE.any(-1), token_where=WHERE),
    losses.cross_entropy_loss(STUDENT, TOKENS, where=WHERE, reduce_fn=losses.sequence_mean),
    rtol=1e-6,
  )
  with pytest.raises(ValueError, match="length_power must not be negative"):
    losses.sequence_loss(STUDENT, TOKENS, length_power=-1)


def test_a_token_out_of_range_that_counts_is_nan():
  tokens = np.where(WHERE, TOKENS, -1)
  for loss in (
    losses.sequence_loss(STUDENT, tokens, reduce_fn=None),
    losses.token_log_probs(STUDENT, tokens).sum(-1),
  ):
    np.testing.assert_array_equal(np.isnan(loss), [False, True, True, True])
  assert np.all(np.isfinite(losses.token_log_probs(STUDENT, tokens, where=WHERE)))


def test_mixed_sequences_come_whole_from_one_side():
  mine = {"tokens": jnp.ones([4000, 3]), "where": jnp.ones([4000], bool)}
  data = jax.tree.map(jnp.zeros_like, mine)
  mixed = losses.mix_sequences(jax.random.key(0), mine, data, on_policy_fraction=0.3)
  chosen = np.asarray(mixed["where"])
  np.testing.assert_array_equal(mixed["tokens"], np.repeat(chosen[:, None], 3, 1))
  assert abs(chosen.mean() - 0.3) < 5 * np.sqrt(0.21 / 4000)
  for fraction, expected in ((0.0, data), (1.0, mine)):
    same = losses.mix_sequences(jax.random.key(1), mine, data, on_policy_fraction=fraction)
    jax.tree.map(np.testing.assert_array_equal, same, expected)
  with pytest.raises(ValueError, match="on_policy_fraction must lie in"):
    losses.mix_sequences(jax.random.key(1), mine, data, on_policy_fraction=1.5)


def test_on_policy_share_grows_only_when_validation_worsens():
  fraction, reference, shares = 0.0, 2.0, []
  for loss in (1.9, 2.05, 2.2, 2.25, 2.31, 9.0):
    fraction, reference = losses.raise_on_policy_fraction(fraction, loss, reference, step=0.4)
    shares.append(fraction)
  np.testing.assert_allclose(shares, [0, 0, 0.4, 0.4, 0.8, 1.0])
  assert reference == 9.0


# All sequences of 3 tokens out of 3, and the node of each prefix in a table of 1 + 3 + 9 softmaxes.
PATHS = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)
NODES = np.stack([0 * PATHS[:, 0], 1 + PATHS[:, 0], 4 + 3 * PATHS[:, 0] + PATHS[:, 1]], -1)
THETA, PHI = (DRAW.normal(size=(13, 3)).astype(np.float32) for _ in range(2))


def path_log_probs(table):
  return losses.token_log_probs(table[NODES], PATHS)


def sequence_kl(theta):
  log_q, log_p = (jnp.sum(path_log_probs(table), -1) for table in (theta, PHI))
  return jnp.sum(jnp.exp(log_q) * (log_q - log_p))


def policy_gradient(sampling, **options):
  """The expected gradient over all sequences, each with its probability of being sampled."""
  log_q, log_p = path_log_probs(THETA), path_log_probs(PHI)
  returns = losses.policy_returns(log_q, log_p, normalized=False)
  probs = np.exp(np.sum(sampling, -1))

  def surrogate(theta):
    loss = losses.policy_loss(theta[NODES], PHI[NODES], PATHS, returns, reduce_fn=None, **options)
    return jnp.sum(probs * jnp.sum(loss, -1))

  return jax.grad(surrogate)(THETA)


def test_policy_gradient_is_the_gradient_of_the_sequence_kl():
  """By enumeration: the single-step decomposition is exact in expectation."""
  expected = jax.grad(sequence_kl)(THETA)
  np.testing.assert_allclose(policy_gradient(path_log_probs(THETA)), expected, atol=1e-6)
  token_level = jax.grad(
    lambda theta: jnp.sum(
      jnp.exp(jnp.sum(path_log_probs(THETA), -1))
      * losses.reverse_kl_loss(theta[NODES], PHI[NODES], reduce_fn=None).sum(-1)
    )
  )(THETA)
  assert np.max(np.abs(token_level - expected)) > 0.05  # Without the long term it is another one.


def test_policy_gradient_from_the_teachers_mixture_with_whole_weights():
  mixture = losses.sampling_logits(THETA, PHI, teacher_weight=0.4)
  sampling = losses.token_log_probs(mixture[NODES], PATHS)
  ratio = jnp.sum(path_log_probs(THETA) - sampling, -1, keepdims=True)
  weights = jnp.broadcast_to(jnp.exp(ratio), PATHS.shape)
  expected = jax.grad(sequence_kl)(THETA)
  np.testing.assert_allclose(policy_gradient(sampling, weights=weights), expected, atol=1e-6)


def test_importance_weights_are_bounded_by_the_students_share():
  mixture = losses.sampling_logits(STUDENT, TEACHER, teacher_weight=0.2)
  log_s, log_m = (losses.token_log_probs(z, TOKENS) for z in (STUDENT, mixture))
  weights = losses.importance_weights(log_s, log_m)
  np.testing.assert_allclose(weights, np.exp(log_s - log_m), rtol=1e-6)
  assert np.all(weights <= 1 / 0.8 + 1e-6)
  clipped = losses.importance_weights(log_s, log_m, max_weight=0.9)
  np.testing.assert_allclose(clipped, np.minimum(weights, 0.9), rtol=1e-6)
  assert losses.importance_weights(jnp.float32(0), jnp.float32(-1e30), max_weight=5.0) == 5


@pytest.mark.parametrize("normalized", [True, False])
def test_returns_are_of_what_follows(normalized):
  log_s, log_t = (DRAW.normal(size=(4, 5)).astype(np.float32) for _ in range(2))
  where = WHERE.copy()
  where[0] = [False, True, False, True, True]  # A gap is skipped.
  spoiled = np.where(where, log_s, np.nan)
  actual = losses.policy_returns(spoiled, log_t, normalized=normalized, where=where)
  for row in range(4):
    for t in range(5):
      later = [i for i in range(t + 1, 5) if where[row, i]]
      total = sum(np.float64(log_t[row, i]) - log_s[row, i] for i in later)
      expected = total / (len(later) if normalized and later else 1)
      np.testing.assert_allclose(actual[row, t], expected, rtol=1e-5, atol=1e-6)


def test_a_hopeless_token_does_not_swallow_the_other_rewards():
  returns = losses.policy_returns(jnp.zeros(3), jnp.array([-1e30, -1e30, -2.0]))
  assert returns[1] == -2


@pytest.mark.parametrize(
  ("cut", "full"),
  [
    (losses.top_k_kl_loss, losses.kl_loss),
    (losses.top_k_reverse_kl_loss, losses.reverse_kl_loss),
  ],
)
def test_top_k_grows_with_k_to_the_full_loss(cut, full):
  expected = np.asarray(full(STUDENT, TEACHER, temperature=2.0, reduce_fn=None))
  last = np.zeros_like(expected)
  for k in range(1, 8):
    targets = losses.top_k_targets(TEACHER, k, temperature=2.0)
    now = np.asarray(cut(STUDENT, targets, temperature=2.0, reduce_fn=None))
    assert np.all(now >= last - 1e-5)  # Of rounding.
    last = now
  np.testing.assert_allclose(last, expected, rtol=1e-5, atol=1e-6)

  def gradient(loss, teacher):
    return jax.grad(lambda z: jnp.sum(loss(z, teacher, reduce_fn=None)))(STUDENT)

  whole = gradient(cut, losses.top_k_targets(TEACHER, 7))
  np.testing.assert_allclose(whole, gradient(full, TEACHER), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("loss", [losses.top_k_kl_loss, losses.top_k_reverse_kl_loss])
def test_mass_outside_of_the_top_k_is_penalised(loss):
  """A student that agrees inside of K up to a factor, with the rest of its mass elsewhere."""
  teacher = jnp.log(jnp.array([0.6, 0.3, 0.05, 0.05]))
  students = jnp.log(jnp.array([[0.6, 0.3, 0.09, 0.01], [0.2, 0.1, 0.69, 0.01]]))
  targets = jax.tree.map(lambda x: jnp.stack([x, x]), losses.top_k_targets(teacher, 2))
  good, bad = loss(students, targets, reduce_fn=None)
  np.testing.assert_allclose(good, 0, atol=1e-6)
  assert bad > 0.5
  gradient = jax.grad(lambda z: jnp.sum(loss(z, targets, reduce_fn=None)))(students)[1]
  assert gradient[2] > 0.1  # Descent takes the mass away from outside ...
  assert gradient[0] < -0.1  # ... and brings it inside.
  inside = students[:, :2] - jax.nn.logsumexp(students[:, :2], axis=-1, keepdims=True)
  np.testing.assert_allclose(inside[0], inside[1], atol=1e-6)  # Renormalised, both look perfect.


@pytest.mark.parametrize("loss", [losses.top_k_kl_loss, losses.top_k_reverse_kl_loss])
def test_top_k_without_classes_left_for_a_tail(loss):
  """Nothing but rounding is left of the tail: no log of 0 blows it up."""
  full = {losses.top_k_kl_loss: losses.kl_loss}.get(loss, losses.reverse_kl_loss)
  support = np.arange(7) < 3
  impossible = [np.where(support, z, -np.inf).astype(np.float32) for z in (STUDENT, TEACHER)]
  expected = full(STUDENT, TEACHER, support=support)
  supported = losses.top_k_targets(TEACHER, 5, support=support)
  np.testing.assert_allclose(loss(STUDENT, supported, support=support), expected, rtol=1e-4)
  known = losses.top_k_targets(impossible[1], 5)
  value, gradient = jax.value_and_grad(loss)(impossible[0], known)
  np.testing.assert_allclose(value, expected, rtol=1e-4)
  assert np.all(np.isfinite(gradient))


def test_log_probabilities_of_a_server_are_top_k_targets_too():
  log_p = np.log(softmax(TEACHER)).astype(np.float32)
  indices = np.argsort(-log_p, axis=-1)[..., :3]
  theirs = losses.TopK(
    np.take_along_axis(log_p, indices, -1), indices, np.zeros([4, 5], np.float32)
  )
  np.testing.assert_allclose(
    losses.top_k_kl_loss(STUDENT, theirs),
    losses.top_k_kl_loss(STUDENT, losses.top_k_targets(TEACHER, 3)),
    rtol=1e-5,
  )


@pytest.mark.parametrize("k", [0, 8])
def test_k_must_fit(k):
  with pytest.raises(ValueError, match="k must lie in"):
    losses.top_k_targets(TEACHER, k)


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
def test_sampled_targets_are_unbiased(power):
  """Of the distribution, and so of the gradient of forward KL: each class within 5 sigma."""
  draws, temperature = 20_000, 2.0
  student, teacher = STUDENT[0, 0], TEACHER[0, 0]
  many = jnp.broadcast_to(teacher, (draws, 7))
  targets = losses.sample_targets(
    jax.random.key(0), many, 3, temperature=temperature, proposal_power=power
  )

  def loss(z, one):
    return losses.sampled_cross_entropy_loss(z, one, temperature=temperature)

  gradients = np.asarray(jax.vmap(jax.grad(loss), (None, 0))(student, targets))
  expected = jax.grad(losses.kl_loss)(student, teacher, temperature=temperature)
  sigma = gradients.std(0) / np.sqrt(draws)
  assert np.all(np.abs(gradients.mean(0) - expected) < 5 * sigma + 1e-6)
  values = np.asarray(jax.vmap(loss, (None, 0))(student, targets))
  p = softmax(teacher, temperature)
  value = losses.kl_loss(student, teacher, temperature=temperature) - temperature**2 * np.sum(
    p * np.log(p)
  )
  assert abs(values.mean() - value) < 5 * values.std() / np.sqrt(draws)


def test_the_best_k_renormalised_are_biased_where_samples_are_not():
  p = softmax(TEACHER[0, 0])
  cut = np.where(p >= np.sort(p)[-3], p, 0)
  assert np.max(np.abs(cut / cut.sum() - p)) > 0.02


def test_samples_stay_in_the_support():
  support = np.array([True, False, True, True, False, True, True])
  targets = losses.sample_targets(
    jax.random.key(0), TEACHER, 64, proposal_power=0.0, support=support
  )
  assert set(np.unique(targets.indices)) == set(np.flatnonzero(support))
  assert np.all(np.isfinite(targets.weights))
  with pytest.raises(ValueError, match="num_samples must be positive"):
    losses.sample_targets(jax.random.key(0), TEACHER, 0)


@pytest.mark.parametrize("bad", [-1, 7])
def test_sparse_targets_out_of_range_are_nan(bad):
  weights = np.full([4, 5, 2], 0.5, np.float32)
  indices = np.where(WHERE[..., None], [0, 1], bad)
  sampled = losses.sampled_cross_entropy_loss
  each = sampled(STUDENT, losses.SampledTargets(indices, weights), reduce_fn=None)
  np.testing.assert_array_equal(np.isnan(each), ~WHERE)
  assert np.isfinite(sampled(STUDENT, losses.SampledTargets(indices, weights), where=WHERE))
  targets = losses.top_k_targets(TEACHER, 2)._replace(indices=indices)
  each = losses.top_k_kl_loss(STUDENT, targets, reduce_fn=None)
  np.testing.assert_array_equal(np.isnan(each), ~WHERE)
  assert np.isfinite(losses.top_k_kl_loss(STUDENT, targets, where=WHERE))


def test_universal_logit_loss_knows_no_names_of_tokens():
  order = np.random.default_rng(5).permutation(7)
  loss = losses.universal_logit_loss
  np.testing.assert_allclose(loss(STUDENT[..., order], STUDENT), 0, atol=1e-6)
  np.testing.assert_allclose(loss(STUDENT[..., order], TEACHER), loss(STUDENT, TEACHER), rtol=1e-5)
  assert loss(STUDENT, TEACHER) < 2 * losses.total_variation_loss(STUDENT, TEACHER)


def test_universal_logit_loss_counts_the_longer_vocabulary():
  sure, spread = jnp.array([9e9, 0.0]), jnp.zeros(4)
  np.testing.assert_allclose(losses.universal_logit_loss(sure, spread), 0.75 + 3 * 0.25)
  np.testing.assert_allclose(losses.universal_logit_loss(spread, sure), 1.5)


def test_contrastive_loss_of_pairs_is_nt_xent():
  views = DRAW.normal(size=(2, 4, 6)).astype(np.float32)
  loss = losses.contrastive_loss(views, np.stack([np.arange(4)] * 2), temperature=0.5)
  units = (views / np.linalg.norm(views, axis=-1, keepdims=True)).reshape(8, 6)
  logits = np.where(np.eye(8), -np.inf, units @ units.T / 0.5)
  pair = (np.arange(8) + 4) % 8
  expected = losses.cross_entropy_loss(logits.astype(np.float32), pair)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_contrastive_loss_of_zero_vectors_and_lonely_labels():
  features = jnp.zeros([3, 4]).at[2, 0].set(1.0)
  each = losses.contrastive_loss(features, jnp.array([0, 0, 1]), reduce_fn=None)
  np.testing.assert_allclose(each, [np.log(2), np.log(2), 0], rtol=1e-6)
  gradient = jax.grad(losses.contrastive_loss)(features, jnp.array([0, 0, 1]))
  assert np.all(np.isfinite(gradient))
  tiny = losses.contrastive_loss(1e-25 * STUDENT[0], jnp.arange(5) // 2)
  np.testing.assert_allclose(
    tiny, losses.contrastive_loss(STUDENT[0], jnp.arange(5) // 2), rtol=1e-5
  )


def test_ctc_of_hopeless_frames_is_not_capped():
  """Fifty frames, each 1e4 nats away from both the label and the blank."""
  logits = jnp.zeros([50, 3]).at[:, 1].set(-1e4).at[:, 0].set(-1e4)
  np.testing.assert_allclose(losses.ctc_loss(logits[None], jnp.array([[1]])), 50e4, rtol=1e-3)


def test_ctc_labels_that_do_not_fit_cost_a_huge_finite_amount():
  def loss(logits, labels):
    return losses.ctc_loss(logits, jnp.array([labels]))

  assert loss(jnp.zeros([1, 2, 3]), [1, 2]) < 10
  value, gradient = jax.value_and_grad(loss)(jnp.zeros([1, 2, 3]), [1, 1])  # Needs a blank between.
  assert 1e29 < value < 1e32
  assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("bad", [-1, 0, 3])
def test_ctc_labels_that_are_no_classes_or_blank_are_nan(bad):
  labels = np.array([[1, 2], [2, bad]])
  each = losses.ctc_loss(np.zeros([2, 4, 3]), labels, reduce_fn=None)
  np.testing.assert_array_equal(np.isnan(each), [False, True])
  seen = np.array([[True, True], [True, False]])
  assert np.isfinite(losses.ctc_loss(np.zeros([2, 4, 3]), labels, label_where=seen))
  with pytest.raises(ValueError, match="blank must lie in"):
    losses.ctc_loss(np.zeros([2, 4, 3]), labels, blank=3)
