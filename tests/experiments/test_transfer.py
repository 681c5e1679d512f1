"""A teacher of one domain in another: by the texts of items, by common items, by common users."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from experiments import (
  distill,
  embed_users,
  families,
  problems,
  quantize,
  shared_users,
  stored,
  texts,
  train,
  transfer,
)
from experiments.config import DistillConfig
from experiments.ranking import histories
from kdjax import models, serve
from kdjax.data.errors import DataError
from kdjax.train.writers import read_jsonl

OTHER = dataclasses.replace(tiny.DATA, synthetic_items=30, data_seed=1)


def table_of(data, path, seed):
  """What is known of the items of a log: four numbers each."""
  ids = np.array([str(item) for item in problems.load_data(data).item_ids])
  rows = np.random.default_rng(seed).normal(size=(len(ids), 4)).astype(np.float32)
  texts.write_embeddings(path, ids, rows)
  return rows


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """Knows its items by their texts alone."""
  folder = tmp_path_factory.mktemp("domain")
  table_of(tiny.DATA, folder / "embeddings.npz", 0)
  model = dataclasses.replace(
    tiny.TEACHER, item_embeddings=(str(folder),), id_embeddings=False, heads=1
  )
  train.run(train.Config(tiny.DATA, model, tiny.FIT), folder / "teacher")
  return folder / "teacher"


def test_the_same_items_in_another_order_get_the_same_scores():
  rng = np.random.default_rng(0)
  sizes = {"num_items": 7, "max_length": 5, "dim": 8, "feature_dims": (3,)}
  row = jnp.array([[1, 4, 4, 0, 6]])
  batch = {"items": row, "segments": row * 0 + 1, "positions": jnp.arange(5)[None]}
  for ids in (True, False):
    model = models.make_sasrec(**sizes, id_embeddings=ids)
    params = model.init(jax.random.key(0), batch)
    known = rng.normal(size=(7, 3)).astype(np.float32)
    params["item_features_0"] = {"embedding": jnp.asarray(known)}
    order = rng.permutation(7)
    moved, new = models.move_items(
      params, {**sizes, "id_embeddings": ids}, rows=order, features=[known[order]]
    )
    renamed = {**batch, "items": jnp.asarray(np.argsort(order))[row]}
    expected = model.apply(params, batch).logits.dense()[..., order]
    found = models.make_sasrec(**new).apply(moved, renamed).logits.dense()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_item_that_is_new_gets_the_mean_of_all():
  sizes = {"num_items": 4, "dim": 2, "max_length": 3}
  params = {"item_embedding": {"embedding": jnp.arange(8.0).reshape(4, 2)}, "rest": jnp.ones(3)}
  moved, new = models.move_items(params, sizes, rows=np.array([3, -1, 0]))
  assert moved["item_embedding"]["embedding"].tolist() == [[6, 7], [3, 4], [0, 1]]
  assert new == {**sizes, "num_items": 3}
  for rows, features, message in (
    ([-1, -1], [], "share no item"),
    ([0, 4], [], r"lie in \[-1, 4\)"),
    ([0, 1], [np.ones((2, 3))], r"features \[\(2, 3\)\] for 2 items and feature_dims \(\)"),
  ):
    with pytest.raises(ValueError, match=message):
      models.move_items(params, sizes, rows=np.array(rows), features=features)


def test_a_teacher_of_texts_moves_and_teaches(teacher, tmp_path):
  rows = table_of(OTHER, tmp_path / "embeddings.npz", 1)
  config = transfer.Config(str(teacher), (str(tmp_path),), data=OTHER)
  result = transfer.run(config, tmp_path / "moved")
  assert transfer.run(config, tmp_path / "moved") == result
  before, after = (
    stored.load_model(folder, flag="--").params for folder in (teacher, tmp_path / "moved")
  )
  np.testing.assert_array_equal(after.pop("item_features_0")["embedding"], rows)
  before.pop("item_features_0")
  assert "item_embedding" not in after
  assert jax.tree.all(jax.tree.map(np.array_equal, before, after))
  student = tiny.distill_config(tmp_path / "moved", label_weight=0.5)
  student = dataclasses.replace(student, data=OTHER)
  assert distill.run(student, tmp_path / "student")["quality"]["ndcg@10"]["value"] >= 0


def test_what_cannot_move_is_named(teacher, tmp_path):
  with pytest.raises(ValueError, match="trained with 1 tables, here are 0"):
    transfer.run(transfer.Config(str(teacher), data=OTHER), tmp_path / "a")
  quantize.run(quantize.Config(str(teacher)), tmp_path / "int8")
  with pytest.raises(ValueError, match="is quantised"):
    transfer.run(transfer.Config(str(tmp_path / "int8"), data=OTHER), tmp_path / "b")
  train.run(tiny.train_config("mf", epochs=1), tmp_path / "mf")
  with pytest.raises(ValueError, match="is a mf; use sasrec or gru4rec"):
    transfer.run(transfer.Config(str(tmp_path / "mf"), data=OTHER), tmp_path / "c")
  model = dataclasses.replace(tiny.TEACHER, id_embeddings=False)
  with pytest.raises(ValueError, match="--id_embeddings=false needs --item_embeddings"):
    train.run(train.Config(tiny.DATA, model, tiny.FIT), tmp_path / "d")


def test_common_items_keep_their_rows(trained, tmp_path):
  with pytest.raises(ValueError, match="share no item"):
    transfer.run(transfer.Config(str(trained("gru4rec")), data=OTHER), tmp_path / "none")
  config = transfer.Config(str(trained("gru4rec")), shared_items=True, data=OTHER)
  transfer.run(config, tmp_path / "moved")
  old, new = (
    stored.load_model(folder, flag="--").params["item_embedding"]["embedding"]
    for folder in (trained("gru4rec"), tmp_path / "moved")
  )
  names = [[str(x) for x in problems.load_data(data).item_ids] for data in (tiny.DATA, OTHER)]
  common = [name for name in names[1] if name in names[0]]
  assert len(common) > 10
  for name in common:
    np.testing.assert_array_equal(new[names[1].index(name)], old[names[0].index(name)])


def test_users_stand_beside_their_events(trained, tmp_path):
  """Every position whose user is known has that user; found event by event."""
  task = problems.make_task(OTHER, "sasrec")
  dataset = problems.load_data(OTHER)
  rows = np.where(np.arange(dataset.num_users) % 3 == 0, np.arange(dataset.num_users), -1)
  found = shared_users.users_of(task, rows.astype(np.int32))
  train_part = dataset.split.train
  for user in range(dataset.num_users):
    own = train_part.items[train_part.offsets[user] : train_part.offsets[user + 1]]
    if rows[user] >= 0:
      assert (found == user).sum() == len(own) - 1
      assert sorted(np.asarray(task.arrays["items"])[found == user]) == sorted(own[:-1])
  assert not (found[np.asarray(task.arrays["segments"]) == 0] >= 0).any()


def test_a_student_learns_of_shared_users(trained, tmp_path):
  result = embed_users.run(embed_users.Config(str(trained())), tmp_path / "users")
  ids, vectors = texts.read_embeddings(str(tmp_path / "users"))
  dataset = problems.load_data(tiny.DATA)
  assert ids.tolist() == [str(user) for user in dataset.user_ids]
  assert vectors.shape == (result["users"], tiny.TEACHER.dim)
  saved = stored.load_model(trained(), flag="--")
  seen = histories(dataset, "valid")
  apply = families.make_model("sasrec", saved.sizes).apply
  own = serve.encode_histories(apply, saved.params, seen.items, seen.offsets, length=16).query
  np.testing.assert_allclose(vectors, own, atol=1e-6)
  options = DistillConfig(user_embeddings=str(tmp_path / "users"), user_weight=3.0)
  fit = dataclasses.replace(tiny.FIT, epochs=6, learning_rate=1e-2)
  config = distill.Config((), OTHER, tiny.STUDENT, options, fit)
  distill.run(config, tmp_path / "student")
  lines = read_jsonl(tmp_path / "student" / "metrics.jsonl")
  assert lines[-1]["train/shared_users"] < 0.8 * lines[0]["train/shared_users"]
  assert "helpers" not in stored.load_model(tmp_path / "student", flag="--").params
  texts.write_embeddings(tmp_path / "embeddings.npz", np.array(["nobody"]), vectors[:1])
  for changes, error, message in (
    ({"user_embeddings": str(tmp_path)}, ValueError, "knows none of the log's users"),
    ({"user_embeddings": "gone.npz"}, DataError, "--user_embeddings: gone.npz"),
    ({"user_weight": 0.0}, ValueError, "--user_weight=0"),
  ):
    wrong = dataclasses.replace(config, distill=dataclasses.replace(options, **changes))
    with pytest.raises(error, match=message):
      distill.run(wrong, tmp_path / message.replace("/", " "))
  config = dataclasses.replace(config, model=dataclasses.replace(tiny.STUDENT, model="bert4rec"))
  with pytest.raises(ValueError, match="fit causal sequence models, not the masked task"):
    distill.run(config, tmp_path / "masked")
