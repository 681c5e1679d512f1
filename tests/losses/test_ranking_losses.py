"""Ranking losses against rax, against identities of theory, and at their traps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rax

from kdjax import losses
from kdjax.losses import UNRANKED
from kdjax.types import FactoredLogits


@pytest.fixture(scope="module")
def scores():
  """Two lists of 6 by a student and a teacher."""
  rng = np.random.default_rng(11)
  return [rng.normal(scale=1.5, size=(2, 6)).astype(np.float32) for _ in range(2)]


def test_listnet_equals_rax_softmax(scores):
  student, teacher = scores
  np.testing.assert_allclose(
    losses.listnet_loss(student, teacher, reduce_fn=None),
    rax.softmax_loss(student, jax.nn.softmax(teacher), reduce_fn=None),
    rtol=1e-5,
  )


def test_listmle_equals_rax(scores):
  np.testing.assert_allclose(
    losses.listmle_loss(*scores, reduce_fn=None),
    rax.listmle_loss(*scores, reduce_fn=None),
    rtol=1e-5,
  )


def test_hinge_equals_rax_list_by_list(scores):
  expected = [rax.pairwise_hinge_loss(s, t) for s, t in zip(*scores, strict=True)]
  actual = losses.pairwise_hinge_loss(*scores, reduce_fn=None)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_ranknet_of_a_certain_teacher_equals_rax_pairwise_logistic(scores):
  student, teacher = scores
  expected = [rax.pairwise_logistic_loss(s, t) for s, t in zip(student, teacher, strict=True)]
  actual = losses.ranknet_loss(student, 1e4 * teacher, reduce_fn=None)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("options", "weights", "rax_options"),
  [
    ({}, rax.dcg_lambdaweight, {}),
    ({"k": 3}, rax.dcg_lambdaweight, {"topn": 3}),
    ({"swap_weight": 0.0, "gap_weight": 1.0}, rax.dcg2_lambdaweight, {}),
  ],
  ids=["lambdarank", "at-3", "ndcg-loss-2"],
)
def test_lambda_loss_equals_rax(scores, options, weights, rax_options):
  """rax multiplies its weights by the size of the list."""
  student, labels = scores[0], np.array([[0, 2, 1, 0, 3, 1], [1, 0, 0, 4, 2, 0]], np.float32)

  def weigh(*args, **kwargs):
    return weights(*args, normalize=True, **rax_options, **kwargs)

  def rax_loss(s, y):
    return rax.pairwise_logistic_loss(s, y, lambdaweight_fn=weigh, reduce_fn=jnp.sum) / len(s)

  for s, y in zip(student, labels, strict=True):
    expected, gradient = jax.value_and_grad(rax_loss)(s, y)
    actual = jax.value_and_grad(losses.lambda_loss)(s, 2.0**y - 1, **options)
    np.testing.assert_allclose(actual[0], expected, rtol=1e-5)
    np.testing.assert_allclose(actual[1], gradient, rtol=1e-4, atol=1e-6)


def test_lambda_weights_are_the_change_of_ndcg_by_a_swap(scores):
  """The gradient on a pair of neighbours, against NDCG of rax before and after."""
  s, gains = np.array([2.0, 1.0], np.float32), np.array([0.0, 1.0], np.float32)
  change = rax.ndcg_metric(s[::-1].copy(), gains) - rax.ndcg_metric(s, gains)
  loss = losses.lambda_loss(s, gains)
  np.testing.assert_allclose(loss, change * np.log1p(np.exp(1.0)), rtol=1e-5)


def test_relaxed_ranking_of_all_is_listmle(scores):
  student, teacher = scores
  ranks = losses.candidate_ranks(teacher)
  np.testing.assert_allclose(
    losses.relaxed_ranking_loss(student, 7 * ranks + 3),  # Gaps do not matter.
    losses.listmle_loss(student, teacher),
    rtol=1e-6,
  )


def test_relaxed_ranking_of_one_is_cross_entropy(scores):
  student = scores[0]
  ranks = np.where(np.arange(6) == 2, 0, UNRANKED)
  np.testing.assert_allclose(
    losses.relaxed_ranking_loss(student, np.stack([ranks, ranks])),
    losses.cross_entropy_loss(student, np.array([2, 2])),
    rtol=1e-6,
  )


def test_the_uninteresting_have_no_order(scores):
  """All gradients push them down, by their softmax, whatever the teacher thinks of each."""
  student, ranks = scores[0], np.tile([1, UNRANKED, 0, UNRANKED, UNRANKED, 2], (2, 1))
  swapped = student[:, [0, 4, 2, 1, 3, 5]]
  assert losses.relaxed_ranking_loss(student, ranks) == pytest.approx(
    float(losses.relaxed_ranking_loss(swapped, ranks)), rel=1e-6
  )
  gradient = jax.grad(losses.relaxed_ranking_loss)(student, ranks)
  assert np.all(np.asarray(gradient)[ranks == UNRANKED] > 0)


def test_order_of_the_list_does_not_matter(scores):
  """Losses read the teacher's ranks, not the places of the candidates."""
  student, teacher = scores
  shuffle = np.array([3, 5, 0, 1, 4, 2])
  for loss in (losses.listmle_loss, losses.pairwise_hinge_loss, losses.ranknet_loss):
    whole, mixed = loss(student, teacher), loss(student[:, shuffle], teacher[:, shuffle])
    np.testing.assert_allclose(mixed, whole, rtol=1e-5)
  ranks = np.asarray(losses.candidate_ranks(teacher))
  for loss in (losses.relaxed_ranking_loss, losses.ranking_distillation_loss):
    whole, mixed = loss(student, ranks), loss(student[:, shuffle], ranks[:, shuffle])
    np.testing.assert_allclose(mixed, whole, rtol=1e-5)


def test_two_candidates_make_all_soft_losses_one(scores):
  student, teacher = (x[:, :2] for x in scores)
  entropy = losses.listnet_loss(teacher, teacher)
  for loss in (losses.listnet_loss, losses.ranknet_loss):
    np.testing.assert_allclose(loss(student, teacher), losses.listnet_loss(student, teacher), 1e-5)
  np.testing.assert_allclose(
    losses.listnet_loss(student, teacher) - entropy, losses.kl_loss(student, teacher), rtol=1e-4
  )


def probability_of(order, scores):
  """Plackett-Luce, by hand."""
  powers = np.exp(np.float64(scores))[list(order)]
  return np.prod([powers[r] / powers[r:].sum() for r in range(len(order))])


def test_drawn_rankings_follow_plackett_luce():
  teacher = np.array([0.5, -1.0, 1.0, -np.inf], np.float32)
  draws = 20_000
  ranks = losses.sample_rankings(jax.random.key(1), 2 * teacher, draws=draws, temperature=2.0)
  assert np.all(np.asarray(ranks)[:, 3] == UNRANKED)
  drawn = [tuple(np.argsort(row)) for row in np.asarray(ranks)[:, :3]]
  for order in itertools.permutations(range(3)):
    expected = probability_of(order, teacher[:3])
    deviation = np.sqrt(expected * (1 - expected) / draws)
    assert abs(drawn.count(order) / draws - expected) < 4 * deviation, order


def test_plackett_luce_tends_to_its_expectation():
  student, teacher = np.array([0.3, -0.2, 1.0]), np.array([0.5, -1.0, 1.0])
  ranks = losses.sample_rankings(jax.random.key(2), teacher, draws=20_000)
  orders = list(itertools.permutations(range(3)))
  exact = -sum(probability_of(o, teacher) * np.log(probability_of(o, student)) for o in orders)
  assert losses.plackett_luce_loss(student, ranks) == pytest.approx(exact, abs=0.02)
  first = losses.plackett_luce_loss(student, ranks, k=1)
  assert first == pytest.approx(float(losses.listnet_loss(student, teacher)), abs=0.02)


def test_nce_is_right_at_the_true_probabilities():
  """Its expected gradient over positives and noise vanishes where exp(score) = p, unnormalised."""
  p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
  positive, negative = (x.reshape(-1) for x in np.meshgrid(range(3), range(3)))
  weights = jnp.float32(p[positive] * q[negative])
  log_q = np.float32(np.log(q))

  def expected(x):
    options = {"positive_log_q": log_q[positive], "negative_log_q": log_q[negative][:, None]}
    each = losses.nce_loss(x[positive], x[negative][:, None], **options, reduce_fn=None)
    return jnp.sum(weights * each)

  log_p = jnp.float32(np.log(p))
  np.testing.assert_allclose(jax.grad(expected)(log_p), 0, atol=1e-6)
  assert np.all(np.abs(jax.grad(expected)(log_p + 0.5)) > 1e-2)


def test_negative_sampling_is_binary_cross_entropy(scores):
  x = scores[0]
  labels = np.tile(np.arange(6) == 0, (2, 1)).astype(np.float32)
  np.testing.assert_allclose(
    losses.nce_loss(x[:, 0], x[:, 1:], reduce_fn=None),
    losses.binary_cross_entropy_loss(x, labels, reduce_fn=None).sum(-1),
    rtol=1e-5,
  )


def test_margin_mse_sees_no_shift_of_the_teacher(scores):
  student, teacher = scores
  args = student[:, 0], student[:, 1:], teacher[:, 0], teacher[:, 1:]
  moved = *args[:2], args[2] + 8, args[3] + 8
  value = losses.margin_mse_loss(*args)
  np.testing.assert_allclose(losses.margin_mse_loss(*moved), value, rtol=1e-4)
  assert losses.margin_mse_loss(*args[:2], 2 * args[2], 2 * args[3]) != pytest.approx(float(value))


def test_collaborative_is_bernoulli_kl_plus_entropy(scores):
  student, teacher = scores
  gap = losses.collaborative_loss(student, teacher) - losses.collaborative_loss(teacher, teacher)
  np.testing.assert_allclose(gap, losses.bernoulli_kl_loss(student, teacher), rtol=1e-4)


def test_ranking_distillation_leaves_alone_what_the_student_ranks_well(scores):
  student, ranks = scores[0][:, :3], np.tile([0, 1, 2], (2, 1))
  loss = losses.ranking_distillation_loss
  value, gradient = jax.value_and_grad(loss)(student, ranks, student_ranks=ranks)
  assert value == 0
  assert np.all(np.asarray(gradient) == 0)
  low = np.tile([0, 90, 2], (2, 1))
  one = losses.binary_cross_entropy_loss(student[:, 1], np.ones(2))
  np.testing.assert_allclose(loss(student, ranks, student_ranks=low), one, rtol=1e-6)


def test_students_ranks_are_estimated_exactly_and_beyond_an_int32():
  sampled = np.arange(10_000, dtype=np.float32)
  scores = np.array([2e4, 4_999.5, -1], np.float32)
  ranks = losses.estimate_ranks(scores, sampled, num_items=1_000_000)
  assert ranks.tolist() == [0, 999_999 * 5_000 // 10_000, 999_999]


def test_candidate_ranks_at_ties_and_outside_of_the_support():
  scores = np.array([1.0, np.nan, -np.inf, 1.0, 2.0], np.float32)
  ranks = losses.candidate_ranks(scores, support=np.arange(5) != 1)
  assert ranks.tolist() == [1, UNRANKED, 3, 2, 0]


def test_discrepancy_weights_are_one_sided():
  student, teacher = np.array([30, 4, 0, UNRANKED]), np.array([0, 4, 9, 1])
  under = losses.discrepancy_weights(student, teacher, scale=0.1)
  over = losses.discrepancy_weights(teacher, student, scale=0.1)
  np.testing.assert_allclose(under, [np.tanh(3.0), 0, 0, 0], rtol=1e-6)
  np.testing.assert_allclose(over, [0, 0, np.tanh(0.9), 0], rtol=1e-6)
  back = losses.reverse_discrepancy_weights(student, teacher, scale=0.1)
  powers = np.exp([-3, 0, 0.9])
  np.testing.assert_allclose(back, [*powers / powers.sum(), 0], rtol=1e-5)


def test_topology_sees_neither_rotation_nor_length_but_equals_the_frobenius_norm():
  rng = np.random.default_rng(0)
  student, teacher = (rng.normal(size=(5, 4)).astype(np.float32) for _ in range(2))
  value = losses.topology_loss(student, teacher)
  rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
  lengths = np.array([[0.1], [1], [3], [9], [30]])
  moved = np.float32(lengths * (student @ rotation))
  np.testing.assert_allclose(losses.topology_loss(moved, teacher), value, rtol=1e-4)
  similarities = [np.corrcoef(np.c_[x, -x]) for x in (student, teacher)]  # Centred rows: cosines.
  norm = np.linalg.norm(similarities[0] - similarities[1], "fro") ** 2
  np.testing.assert_allclose(value, norm / (5 * 4), rtol=1e-4)


@pytest.mark.parametrize("prototypes_only", [False, True])
def test_topology_bears_zero_vectors(prototypes_only):
  """Two opposite ones too, whose group has its prototype at 0."""
  teacher = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
  student = np.array([[0, 0, 0], [1, 2, 3], [-1, -2, -3], [1, 0, 0], [1, 0, 0]], np.float32)
  groups = np.array([0, 1, 1, 2, 2])
  value, gradient = jax.value_and_grad(losses.topology_loss)(student, teacher)
  assert np.all(np.isfinite(gradient))
  assert np.isfinite(value)
  options = {"prototypes_only": prototypes_only}
  loss = losses.group_topology_loss
  value, gradient = jax.value_and_grad(loss)(student, teacher, groups, **options)
  assert np.all(np.isfinite(gradient))
  assert np.isfinite(value)


def test_one_group_is_the_full_topology():
  student, teacher = np.random.default_rng(2).normal(size=(2, 5, 3)).astype(np.float32)
  np.testing.assert_allclose(
    losses.group_topology_loss(student, teacher, np.full(5, 7), group_weight=0.0),
    losses.topology_loss(student, teacher),
    rtol=1e-5,
  )


def test_groups_of_one_leave_nothing_within():
  student, teacher = np.random.default_rng(3).normal(size=(2, 5, 3)).astype(np.float32)
  groups = np.array([4, -2, 0, 9, 1])
  assert losses.group_topology_loss(student, teacher, groups, group_weight=0.0) == 0
  between = losses.group_topology_loss(student, teacher, groups, prototypes_only=True)
  np.testing.assert_allclose(between * 5 / 4, losses.topology_loss(student, teacher), rtol=1e-5)


def test_gradient_flows_through_the_prototypes():
  """As in the paper; stopped there, prototypes against prototypes would teach nothing at all."""
  student, teacher = np.random.default_rng(4).normal(size=(2, 6, 3)).astype(np.float32)
  options = {"entity_weight": 0.0, "prototypes_only": True}
  groups = np.array([0, 0, 1, 1, 2, 2])
  gradient = jax.grad(losses.group_topology_loss)(student, teacher, groups, **options)
  assert np.all(np.abs(gradient).sum(-1) > 1e-4)


@pytest.fixture(scope="module")
def expert_setup():
  helper = losses.experts(3, 5, 2, hidden_dim=4)
  params = helper.init(jax.random.key(0))
  params["selection_bias"] = jnp.log(jnp.array([0.8, 0.2]))
  params["selection_kernel"] = jnp.zeros([5, 2])
  return helper, params


def test_cold_selection_is_one_expert_drawn_by_its_probability(expert_setup):
  helper, params = expert_setup
  student, teacher = jnp.ones([4_000, 3]), jnp.ones([4_000, 5])
  outputs = helper.apply(params, student, teacher, key=jax.random.key(1), temperature=1e-10)
  outputs = np.asarray(outputs)
  hidden = np.maximum(np.ones(3) @ np.asarray(params["hidden_kernel"]), 0)
  each = np.einsum("mh,mht->mt", hidden, params["kernel"])
  first = np.all(np.abs(outputs - each[0]) < 1e-5, axis=-1)
  second = np.all(np.abs(outputs - each[1]) < 1e-5, axis=-1)
  assert np.all(first ^ second)
  assert abs(first.mean() - 0.8) < 4 * np.sqrt(0.8 * 0.2 / 4_000)


def test_selection_without_a_key_is_the_plain_softmax(expert_setup):
  helper, params = expert_setup
  each = [
    helper.apply(
      params | {"selection_bias": jnp.where(jnp.arange(2) == m, 0.0, -1e9)},
      jnp.ones([1, 3]),
      jnp.ones([1, 5]),
    )
    for m in range(2)
  ]
  mixed = helper.apply(params, jnp.ones([1, 3]), jnp.ones([1, 5]))
  np.testing.assert_allclose(mixed, 0.8 * each[0] + 0.2 * each[1], rtol=1e-5)


def test_experts_learn_what_one_projection_cannot():
  """Two kinds of entities, mapped oppositely: the selection must tell them apart."""
  rng = np.random.default_rng(0)
  student = rng.normal(size=(64, 3)).astype(np.float32)
  kind = np.where(np.arange(64) % 2 == 0, 1.0, -1.0)[:, None]
  teacher = np.float32(np.c_[kind * student, 3 * kind])
  helper = losses.experts(3, 4, 2, hidden_dim=16)
  params = helper.init(jax.random.key(3))

  @jax.jit
  def step(params, progress):
    temperature = losses.expert_temperature(progress, end=0.1)

    def loss(params):
      key = jax.random.fold_in(jax.random.key(4), jnp.int32(progress * 1e4))
      features = helper.apply(params, student, teacher, key=key, temperature=temperature)
      return losses.hint_loss(features, teacher)

    return jax.tree.map(lambda p, g: p - 0.2 * g, params, jax.grad(loss)(params))

  for i in range(400):
    params = step(params, i / 400)
  groups = np.asarray(losses.expert_groups(params, teacher))
  assert len(set(groups[::2])) == len(set(groups[1::2])) == 1
  assert groups[0] != groups[1]
  features = helper.apply(params, student, teacher, temperature=0.1)
  assert losses.hint_loss(features, teacher) < 0.1


def test_masked_garbage_does_not_reach_the_experts(expert_setup):
  helper, params = expert_setup
  where = np.array([True, False])
  student = np.array([[1, 2, 3], [np.nan] * 3], np.float32)
  teacher = np.array([[1] * 5, [np.nan] * 5], np.float32)

  def loss(params):
    return losses.hint_loss(
      helper.apply(params, student, teacher, where=where), teacher, where=where
    )

  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(jax.grad(loss)(params)))


def ranks_within(teacher, support=None):
  return losses.candidate_ranks(teacher, support=support)


ON_CANDIDATES = {
  "listnet": lambda x, t, **o: losses.listnet_loss(x, t, **o),
  "listmle": lambda x, t, **o: losses.listmle_loss(x, t, **o),
  "ranknet": lambda x, t, **o: losses.ranknet_loss(x, t, **o),
  "hinge": lambda x, t, **o: losses.pairwise_hinge_loss(x, t, **o),
  "lambda": lambda x, t, **o: losses.lambda_loss(x, jnp.exp(t), **o),
  "collaborative": lambda x, t, **o: losses.collaborative_loss(x, t, **o),
  "relaxed": lambda x, t, **o: losses.relaxed_ranking_loss(x, ranks_within(t, **o), **o),
  "rd": lambda x, t, **o: losses.ranking_distillation_loss(x, ranks_within(t, **o), **o),
  "stratified": lambda x, t, **o: losses.stratified_pair_loss(x, jnp.asarray(t), **o),
  "nce": lambda x, t, **o: losses.nce_loss(x[:, 0], x, **o),
  "bpr": lambda x, t, **o: losses.bpr_loss(x[:, 0], x, **o),
  "margin": lambda x, t, **o: losses.margin_mse_loss(x[:, 0], x, jnp.zeros(2), jnp.asarray(t), **o),
}
on_candidates = pytest.mark.parametrize("name", ON_CANDIDATES)


@on_candidates
def test_garbage_outside_of_the_support_reaches_neither_value_nor_gradient(name, scores):
  support = np.array([True, True, False, True, False, True])
  spoiled = [np.where(support, x, np.float32(np.nan)) for x in scores]
  grad = jax.value_and_grad(ON_CANDIDATES[name])
  value, gradient = grad(*spoiled, support=support)
  expected, expected_gradient = grad(*scores, support=support)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


@on_candidates
def test_gradient_is_finite_where_all_scores_tie(name):
  zeros = jnp.zeros([2, 6])
  value, gradient = jax.value_and_grad(ON_CANDIDATES[name])(zeros, zeros)
  assert np.isfinite(value)
  assert np.all(np.isfinite(gradient))


@on_candidates
def test_an_empty_support_costs_nothing(name, scores):
  nobody = np.zeros(6, bool)
  value, gradient = jax.value_and_grad(ON_CANDIDATES[name])(*scores, support=nobody)
  if name == "nce":  # Its positive is not among the negatives that are gone.
    assert np.isfinite(value)
  else:
    assert value == 0
    assert np.all(np.asarray(gradient) == 0)


@pytest.mark.parametrize("name", ["listmle", "hinge", "lambda", "listnet", "ranknet"])
def test_a_nan_of_the_teacher_stays_visible(name, scores):
  student, teacher = scores
  teacher = np.where(np.arange(6) == 3, np.float32(np.nan), teacher)
  assert np.isnan(ON_CANDIDATES[name](student, teacher))


def test_a_list_from_factored_logits_trains_without_the_catalogue():
  """The whole road of RRD: draw from the teacher's ids, score these alone, differentiate."""
  rng = np.random.default_rng(0)
  table, wanted = jnp.float32(rng.normal(size=(50, 4))), jnp.float32(rng.normal(size=(3, 4)))
  teacher_ids = jax.lax.top_k(FactoredLogits(wanted, table).dense(), 10)[1]
  options = {"num_items": 50, "interesting": 4, "uninteresting": 5}

  def loss(query, key):
    drawn = losses.sample_relaxed_candidates(key, teacher_ids, **options)
    scores = FactoredLogits(query, table).at(drawn.ids)
    return losses.relaxed_ranking_loss(scores, drawn.ranks, support=drawn.support)

  @jax.jit
  def step(query, key):
    value, gradient = jax.value_and_grad(loss)(query, key)
    return query - 0.3 * gradient, value

  query, values = jnp.zeros([3, 4]), []
  for i in range(60):
    query, value = step(query, jax.random.key(i))
    values.append(float(value))
  assert np.mean(values[-10:]) < 0.6 * values[0]
  cosines = jnp.sum(query * wanted, -1) / jnp.linalg.norm(query, axis=-1)
  assert jnp.all(cosines / jnp.linalg.norm(wanted, axis=-1) > 0.8)


def test_topk_membership():
  student, teacher = np.array([[3, 1, 4], [1, 5, 9]]), np.array([[4, 2], [-1, 9]])
  assert losses.both_recommend(student, teacher).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda x: losses.listnet_loss(x, x, temperature=0), "temperature must be positive"),
    (lambda x: losses.ranknet_loss(x, x, temperature=-1), "temperature must be positive"),
    (lambda x: losses.collaborative_loss(x, x, temperature=0), "temperature must be positive"),
    (lambda x: losses.listmle_loss(x, x, k=0), "k must be positive"),
    (lambda x: losses.plackett_luce_loss(x, x.astype(int)[:, None], k=0), "k must be positive"),
    (lambda x: losses.pairwise_hinge_loss(x, x, margin=-1), "margin must not be negative"),
    (lambda x: losses.lambda_loss(x, x, swap_weight=-1), "swap_weight must not be negative"),
    (lambda x: losses.lambda_loss(x, x, gap_weight=-1), "gap_weight must not be negative"),
    (lambda x: losses.lambda_loss(x, x, k=0), "k must be positive"),
    (lambda x: losses.lambda_loss(x, x, k=2, gap_weight=1), "gap_weight=0 only"),
    (lambda x: losses.ranking_distillation_loss(x, x.astype(int), position_scale=0), "scale must"),
    (lambda x: losses.group_topology_loss(x, x, x[:, 0], entity_weight=-1), "entity_weight must"),
    (lambda x: losses.group_topology_loss(x, x, x[:, 0], group_weight=-1), "group_weight must"),
    (lambda x: losses.nce_loss(x[:, 0], x, positive_log_q=x[:, 0]), "given together"),
    (lambda x: losses.experts(0, 3, 2), "must be positive"),
    (lambda x: losses.expert_temperature(0.5, end=0), "must be positive"),
  ],
)
def test_options_out_of_range_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call(np.zeros([2, 6], np.float32))
