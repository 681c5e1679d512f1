"""The embedded log: seeded, shaped as promised, and harder for a low-rank model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
import pytest

from kdjax.data import synthetic
from kdjax.data.interactions import prepare


@pytest.fixture(scope="module")
def log():
  return synthetic.generate()


def test_the_seed_decides_everything(log):
  assert synthetic.generate().events.equals(log.events)
  assert synthetic.generate().items.equals(log.items)
  assert not synthetic.generate(seed=1).events.equals(log.events)


def test_sizes_and_columns(log):
  summary = prepare(log).summary
  assert summary["users"] == 1500
  assert summary["items"] == 1000
  assert 34 <= summary["length"]["mean"] <= 46
  assert summary["length"]["min"] >= 5
  assert log.events["rating"].is_between(1, 5).all()
  assert (log.events["label"] == (log.events["rating"] >= 4)).all()
  assert log.items.height == 1000
  assert log.items["title"].null_count() == 0


def test_nobody_meets_an_item_twice_and_time_passes(log):
  assert not log.events.select("user", "item").is_duplicated().any()
  gaps = log.events.select(pl.col("timestamp").diff().over("user")).drop_nulls()
  assert gaps["timestamp"].min() > 0


def test_popularity_is_zipf_like(log):
  counts = log.events["item"].value_counts()["count"].sort(descending=True).to_numpy()
  rank = np.arange(1, len(counts) + 1)
  middle = slice(10, 500)
  slope = np.polyfit(np.log(rank[middle]), np.log(counts[middle]), 1)[0]
  assert -1.5 < slope < -0.4
  flat = synthetic.generate(zipf=0.0).events["item"].value_counts()["count"]
  assert flat.max() < counts[0]


def test_titles_and_neighbours_carry_the_taste(log):
  items = log.items.with_columns(pl.col("title").str.split(" ").list.get(1).alias("noun"))
  assert items.group_by("noun").agg(pl.col("genres").n_unique())["genres"].max() == 1
  events = log.events.join(log.items, on="item", maintain_order="left")
  same = events.select((pl.col("genres") == pl.col("genres").shift(1).over("user")).mean()).item()
  # Tastes persist, and drift: sixteen genres at random would agree in about a tenth.
  assert 0.6 < same < 0.95
  liked = events.group_by("genres").agg(pl.col("rating").mean())
  assert liked.height == 16


def test_small_corners():
  for sizes in ((1, 1, 1), (3, 2, 5), (2, 1000, 30)):
    users, items, length = sizes
    log = synthetic.generate(num_users=users, num_items=items, mean_length=length, num_tastes=4)
    assert log.events["item"].max() < items
    assert log.items.height == items
    assert log.events.height >= users
  many = synthetic.generate(num_users=20, num_items=200, num_tastes=40)
  assert many.items["genres"].n_unique() == 40
  with pytest.raises(ValueError, match="at least 1"):
    synthetic.generate(num_items=0)
  with pytest.raises(ValueError, match="sum to at most 1"):
    synthetic.generate(succession=0.9, noise=0.2)


def test_chunks_do_not_show(monkeypatch):
  """The first chunk is the same whatever comes after it; ids go on across chunks."""
  monkeypatch.setattr(synthetic, "_CHUNK", 50)
  log = synthetic.generate(num_users=120, num_items=100, mean_length=8)
  assert log.events["user"].unique().sort().to_list() == list(range(120))
  assert log.events["user"].is_sorted()


def test_a_million_items_take_no_table():
  log = synthetic.generate(num_users=500, num_items=1_000_000, mean_length=10)
  assert log.items.height == 1_000_000
  assert log.events["item"].n_unique() > 2000


def test_a_higher_rank_ranks_better(log):
  """First-order model logits = E F^T + b, by full-batch maximum likelihood, at two ranks."""
  data = prepare(log)
  train, size = data.split.train, data.num_items
  pairs = [(row[:-1], row[1:]) for row in map(train.row, range(data.num_users))]
  source, target = (np.concatenate(side) for side in zip(*pairs, strict=True))
  counts = np.zeros((size, size), np.float32)
  np.add.at(counts, (source, target), 1)
  last = np.array([data.split.valid.row(u)[0] for u in range(data.num_users)])
  truth = np.array([data.split.test.row(u)[0] for u in range(data.num_users)])
  seen = np.zeros((data.num_users, size), bool)
  seen[np.repeat(np.arange(data.num_users), train.lengths), train.items] = True

  def ndcg(scores):
    scores = np.where(seen, -np.inf, scores[last])
    rank = (scores > scores[np.arange(len(truth)), truth][:, None]).sum(1)
    return np.where(rank < 10, 1 / np.log2(rank + 2), 0)

  small, large = (ndcg(_fit(counts, rank)) for rank in (4, 64))
  popular = ndcg(np.broadcast_to(counts.sum(0), counts.shape))
  gain = large - small
  error = gain.std() / np.sqrt(len(gain))
  assert small.mean() > 3 * popular.mean()
  assert gain.mean() > 3 * error


def _fit(counts, rank):
  keys = jax.random.split(jax.random.key(0))
  params = {
    "source": 0.1 * jax.random.normal(keys[0], (len(counts), rank)),
    "target": 0.1 * jax.random.normal(keys[1], (len(counts), rank)),
    "bias": jnp.log(counts.sum(0) + 1)[None, :],
  }
  tx = optax.adam(0.03)

  def loss(p):
    logits = p["source"] @ p["target"].T + p["bias"]
    decay = 1e-4 * (jnp.sum(p["source"] ** 2) + jnp.sum(p["target"] ** 2))
    return -jnp.sum(counts * jax.nn.log_softmax(logits)) / counts.sum() + decay

  @jax.jit
  def step(state, _):
    p, opt_state = state
    updates, opt_state = tx.update(jax.grad(loss)(p), opt_state)
    return (optax.apply_updates(p, updates), opt_state), None

  (p, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=80)
  return np.asarray(p["source"] @ p["target"].T + p["bias"])
