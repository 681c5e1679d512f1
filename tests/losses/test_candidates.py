"""The samplers of ranking losses: exact distributions, distinct items, and what is left out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.losses import UNRANKED

ROWS = 12_000


def assert_frequencies(outcomes, expected):
  """Counts lie within 4 standard deviations of the probabilities, and nothing else occurs."""
  total = len(outcomes)
  assert set(outcomes) <= set(expected)
  for outcome, p in expected.items():
    deviation = np.sqrt(p * (1 - p) / total)
    assert abs(outcomes.count(outcome) / total - p) < 4 * deviation, outcome


def test_ranked_items_are_drawn_by_weight_without_replacement():
  ids, weights = jnp.array([40, 10, 30, 20]), np.array([0.4, 0.3, 0.0, 0.3])
  rows = jnp.broadcast_to(ids, (ROWS, 4))
  drawn = losses.sample_ranked(jax.random.key(0), rows, weights, draws=2)
  assert np.all(drawn.support)
  assert np.all(drawn.ranks[:, 0] < drawn.ranks[:, 1])
  np.testing.assert_array_equal(drawn.ids, np.asarray(ids)[drawn.ranks])
  expected = {
    (a, b): weights[a] * weights[b] * (1 / (1 - weights[a]) + 1 / (1 - weights[b]))
    for a, b in itertools.combinations(range(4), 2)
    if weights[a] * weights[b] > 0
  }
  assert sum(expected.values()) == pytest.approx(1)
  assert_frequencies([tuple(row) for row in drawn.ranks.tolist()], expected)


def test_padded_and_weightless_items_are_never_drawn():
  ids = jnp.array([[5, -1, 7], [-1, -1, -1]])
  drawn = losses.sample_ranked(jax.random.key(1), ids, jnp.ones(3), draws=3)
  assert drawn.ids.tolist() == [[5, 7, 0], [0, 0, 0]]
  assert drawn.ranks.tolist() == [[0, 2, UNRANKED], [UNRANKED] * 3]
  assert drawn.support.tolist() == [[True, True, False], [False] * 3]


def test_uninteresting_items_are_a_uniform_subset_of_the_rest():
  excluded = jnp.broadcast_to(jnp.array([4, 1, -1, 4, 99]), (ROWS, 5))
  drawn = losses.sample_uninteresting(jax.random.key(2), excluded, num_items=6, draws=2)
  assert np.all(drawn.support)
  assert np.all(np.asarray(drawn.ranks) == UNRANKED)
  subsets = list(itertools.combinations([0, 2, 3, 5], 2))
  assert_frequencies(
    [tuple(sorted(row)) for row in drawn.ids.tolist()], dict.fromkeys(subsets, 1 / 6)
  )


@pytest.mark.parametrize("excluded", [[0, 1, 2, 3], [0, 2, 4, 6], [-1, -1, 7, 3], [5, 5, 5, 5]])
def test_all_that_is_left_can_be_drawn_and_no_more(excluded):
  left = sorted(set(range(8)) - set(excluded))
  drawn = losses.sample_uninteresting(
    jax.random.key(3), jnp.array(excluded), num_items=8, draws=len(left) + 1
  )
  assert sorted(drawn.ids[drawn.support].tolist()) == left


def test_a_large_catalogue_costs_nothing():
  excluded = jnp.array([[0, 1, 2_000_000_000]])
  drawn = losses.sample_uninteresting(
    jax.random.key(4), excluded, num_items=2_100_000_000, draws=20
  )
  ids = np.asarray(drawn.ids)
  assert len(set(ids[0].tolist())) == 20
  assert ids.min() > 1
  assert ids.max() < 2_100_000_000


def test_relaxed_lists_hold_interesting_then_uninteresting_items():
  teacher_ids = jnp.array([[3, 8, 1, 9], [7, 6, 5, -1]])
  seen = jnp.array([[0, 2], [4, -1]])
  options = {"num_items": 12, "interesting": 3, "uninteresting": 5, "seen": seen}
  drawn = losses.sample_relaxed_candidates(jax.random.key(5), teacher_ids, **options)
  assert np.all(drawn.support)
  for row in range(2):
    ids = drawn.ids[row].tolist()
    assert len(set(ids)) == 8
    assert set(ids[:3]) <= set(teacher_ids[row].tolist())
    assert not set(ids[3:]) & {*teacher_ids[row].tolist(), *seen[row].tolist()}
  assert np.all(np.diff(drawn.ranks[:, :3], axis=-1) > 0)
  assert np.all(np.asarray(drawn.ranks)[:, 3:] == UNRANKED)


def test_high_ranks_are_interesting_more_often():
  ids = jnp.broadcast_to(jnp.arange(3), (ROWS, 3))
  options = {"num_items": 9, "interesting": 1, "uninteresting": 1, "scale": 2.0}
  drawn = losses.sample_relaxed_candidates(jax.random.key(6), ids, **options)
  powers = np.exp(-np.arange(3) / 2)
  assert_frequencies(drawn.ids[:, 0].tolist(), dict(enumerate(powers / powers.sum())))


def test_corrections_raise_the_underestimated_above_the_overestimated():
  teacher_ids, student_ranks = jnp.array([[10, 11, 12, 13]]), jnp.array([[2, 1, 3, 0]])
  drawn = losses.sample_corrections(jax.random.key(7), teacher_ids, student_ranks, draws=2)
  assert drawn.ids[0][drawn.support[0]].tolist() == [10, 12, 13]
  assert drawn.ranks[0][drawn.support[0]].tolist() == [0, 2, UNRANKED]
  student = -jnp.float32(student_ranks)
  scores = jnp.take_along_axis(student, jnp.where(drawn.support, drawn.ids - 10, 0), axis=-1)
  loss = losses.relaxed_ranking_loss
  gradient = jax.grad(loss)(scores, drawn.ranks, support=drawn.support)
  assert np.all(np.asarray(gradient)[0, :2] < 0)
  assert gradient[0, 2] > 0


def test_models_that_agree_need_no_correction():
  ranks = jnp.arange(4)
  drawn = losses.sample_corrections(jax.random.key(8), jnp.array([3, 1, 2, 0]), ranks, draws=2)
  assert not np.any(drawn.support)
  scores = jnp.array([1.0, 2.0, 3.0, 4.0])
  assert losses.relaxed_ranking_loss(scores, drawn.ranks, support=drawn.support) == 0


def test_pairs_follow_the_product_of_their_weights_within_a_group():
  scores = jnp.array([1.0, 5.0, 3.0, 2.0, 9.0])  # In group 0 the order is 1, 2, 0.
  groups = jnp.array([0, 0, 0, 1, 1])
  pairs = losses.sample_pairs(
    jax.random.key(9), scores, groups, num_groups=2, draws=ROWS, scale=2.0
  )
  upper, lower, support = (np.asarray(a).reshape(2, ROWS) for a in pairs)
  weights = np.exp(-np.arange(3) / 2)
  weights /= weights.sum()
  both = {(a, b): weights[a] * weights[b] for a, b in itertools.combinations(range(3), 2)}
  place = [1, 2, 0]
  expected = {(place[a], place[b]): p / sum(both.values()) for (a, b), p in both.items()}
  kept = support[0]
  drawn = list(zip(upper[0][kept].tolist(), lower[0][kept].tolist(), strict=True))
  assert_frequencies(drawn, expected)
  assert abs(kept.mean() - 2 * sum(both.values())) < 4 * np.sqrt(0.25 / ROWS)
  assert set(zip(upper[1][support[1]], lower[1][support[1]], strict=True)) == {(4, 3)}


def test_pairs_need_two_candidates_that_exist():
  scores, groups = jnp.array([[1.0, 2.0, 3.0, 4.0]] * 2), jnp.array([0, 0, 1, 2])
  support = np.array([[True] * 4, [True, False, True, True]])
  options = {"num_groups": 3, "draws": 40, "support": support}
  pairs = losses.sample_pairs(jax.random.key(10), scores, groups, **options)
  counts = np.asarray(pairs.support).reshape(2, 3, 40).sum(-1)
  assert counts[0, 0] > 0
  assert counts.sum() == counts[0, 0]
  assert np.all(np.asarray(pairs.upper)[pairs.support] == 1)
  assert np.all(np.asarray(pairs.lower)[pairs.support] == 0)


def test_popularity_groups_share_the_interactions():
  counts = np.random.default_rng(0).zipf(1.6, size=500).clip(max=200)
  groups = np.asarray(losses.popularity_groups(counts, num_groups=4))
  totals = np.bincount(groups, weights=counts, minlength=4)
  assert np.all(np.abs(totals / counts.sum() - 0.25) <= counts.max() / counts.sum())
  order = np.argsort(-counts, kind="stable")
  assert np.all(np.diff(groups[order]) >= 0)
  assert losses.popularity_groups(np.zeros(3), num_groups=2).tolist() == [0, 0, 0]


def test_samplers_run_in_a_compiled_program():
  ids = jnp.arange(12).reshape(2, 6)
  key = jax.random.key(11)

  def draw(ids):
    return losses.sample_relaxed_candidates(key, ids, num_items=40, interesting=2, uninteresting=3)

  for actual, expected in zip(jax.jit(draw)(ids), draw(ids), strict=True):
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
  "call",
  [
    lambda key, ids: losses.sample_ranked(key, ids, jnp.ones(4), draws=5),
    lambda key, ids: losses.sample_ranked(key, ids, jnp.ones(4), draws=0),
    lambda key, ids: losses.sample_uninteresting(key, ids, num_items=9, draws=0),
    lambda key, ids: losses.sample_rankings(key, jnp.zeros(4), draws=0),
    lambda key, ids: losses.sample_rankings(key, jnp.zeros(4), temperature=0.0),
    lambda key, ids: losses.sample_pairs(key, jnp.zeros(4), ids, num_groups=0),
    lambda key, ids: losses.sample_pairs(key, jnp.zeros(4), ids, num_groups=2, scale=0.0),
    lambda key, ids: losses.popularity_groups(ids, num_groups=0),
    lambda key, ids: losses.sample_corrections(key, ids, ids, scale=-1.0),
    lambda key, ids: losses.position_weights(ids, scale=0.0),
    lambda key, ids: losses.reverse_discrepancy_weights(ids, ids, scale=0.0),
  ],
)
def test_sampling_options_out_of_range_are_refused(call):
  with pytest.raises(ValueError, match="must"):
    call(jax.random.key(0), jnp.arange(4))
