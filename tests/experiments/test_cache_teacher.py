"""A teacher that was run once and is on disk, by flags."""

import dataclasses
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from experiments import cache_teacher, distill, problems, prune, train
from experiments.config import DistillConfig, MeshConfig, PruneConfig
from kdjax.data.errors import DataError
from kdjax.train import teacher_cache
from kdjax.train.writers import read_jsonl

FIT = dataclasses.replace(tiny.FIT, epochs=1)
ITEMS = 40


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  folder = tmp_path_factory.mktemp("teacher")
  train.run(tiny.train_config(), folder)
  return str(folder)


def keep(teacher, folder, **options):
  options = {"top_k": ITEMS, "rows_per_shard": 4, "progress": False, "data": tiny.DATA} | options
  return cache_teacher.run(cache_teacher.Config(teacher, **options), folder)


def student(folder, teacher="", fit=FIT, **options):
  config = tiny.distill_config(teacher, fit=fit, **options)
  config = dataclasses.replace(config, teacher=(teacher,) if teacher else ())
  distill.run(config, folder)
  return next(line for line in read_jsonl(folder / "metrics.jsonl") if "train/loss" in line)


def test_students_cannot_tell_it_from_the_live_teacher(teacher, tmp_path, capsys):
  cache = tmp_path / "cache"
  done = [keep(teacher, cache, values="float32", part=f"{i}/2")["shards_written"] for i in (0, 1)]
  assert sum(done) == len(list(cache.glob("shard-*.array_record"))) > 2
  assert keep(teacher, cache, values="float32")["shards_written"] == 0
  assert f"the teacher's best {ITEMS} of" in capsys.readouterr().out
  entries = {"distill_losses": ("kl:0.5",)}
  live = student(tmp_path / "live", teacher, **entries)
  for stream in (False, True):
    fit = dataclasses.replace(FIT, stream=stream)
    kept = student(tmp_path / f"kept-{stream}", fit=fit, teacher_cache=str(cache), **entries)
    for name in ("train/loss", "train/kl", "train/grad_norm", "valid/ndcg@10"):
      assert kept[name] == pytest.approx(live[name], rel=1e-4)


def test_killed_it_goes_on_to_the_same_bytes(teacher, tmp_path):
  """By SIGKILL, in the midst of small shards; meanwhile what is there is whole."""
  flags = (
    "--top_k=5",
    "--samples=2",
    "--rows_per_shard=1",
    "--rows_per_call=1",
    "--progress=false",
  )
  data = [f"--{name}={value}" for name, value in dataclasses.asdict(tiny.DATA).items()
          if name.startswith("synthetic") or name == "max_length"]  # fmt: skip
  command = (sys.executable, "-m", "experiments.cache_teacher", f"--teacher={teacher}", *flags)
  killed = tmp_path / "killed"
  with subprocess.Popen([*command, f"--workdir={killed}", *data], stdout=subprocess.PIPE) as run:
    while run.poll() is None and len(list(killed.glob("shard-*.array_record"))) < 3:
      time.sleep(0.001)
    run.kill()
  assert run.returncode == -signal.SIGKILL, "it was done before it could be killed"
  options = {"top_k": 5, "samples": 2, "rows_per_shard": 1, "rows_per_call": 1}
  options["mesh"] = MeshConfig(data_devices=1)
  whole = keep(teacher, tmp_path / "whole", **options)["shards_written"]
  assert 0 < keep(teacher, killed, **options)["shards_written"] < whole
  expected, found = (np.asarray(teacher_cache.read(tmp_path / n)[1]) for n in ("whole", "killed"))
  np.testing.assert_array_equal(found, expected)


def test_on_a_mesh_it_says_the_same(teacher, tmp_path):
  """Whoever holds the rows of the tables: the same items, and draws of the same chances."""
  found = []
  for name, mesh in (
    ("one", MeshConfig(data_devices=1)),
    ("split", MeshConfig(data_devices=2, fsdp_devices=2, model_devices=2)),
  ):
    keep(teacher, tmp_path / name, top_k=5, samples=3, values="float32", mesh=mesh)
    coding, rows = teacher_cache.read(tmp_path / name)
    found.append(teacher_cache.decode(coding, jnp.asarray(np.asarray(rows)), tiny.DATA.max_length))
  (one, _), (split, _) = found
  np.testing.assert_array_equal(one.indices[..., :5], split.indices[..., :5])
  np.testing.assert_allclose(one.weights, split.weights, atol=1e-5)
  assert np.mean(np.asarray(one.indices) == np.asarray(split.indices)) > 0.99


def test_a_mesh_of_too_many_devices_is_refused(teacher, tmp_path):
  with pytest.raises(ValueError, match="--model_devices"):
    keep(teacher, tmp_path, mesh=MeshConfig(model_devices=99))


def test_draws_features_and_pruning(teacher, tmp_path):
  cache = tmp_path / "cache"
  keep(teacher, cache, top_k=5, samples=4, features=("query",), values="int8")
  entries = ("kl:0.5", "sampled_cross_entropy:0.1", "hint@query:0.1")
  line = student(tmp_path / "student", teacher_cache=str(cache), distill_losses=entries)
  assert all(np.isfinite(line[f"train/{name.split(':')[0]}"]) for name in entries)
  config = prune.Config(
    str(tmp_path / "student"), "", DistillConfig(teacher_cache=str(cache)),
    PruneConfig(sparsity=0.5), FIT,
  )  # fmt: skip
  pruned = prune.run(config, tmp_path / "pruned")
  assert pruned["size"]["nonzero"] < 0.8 * pruned["size"]["parameters"]


@pytest.fixture(scope="module")
def cache(teacher, tmp_path_factory):
  folder = tmp_path_factory.mktemp("cache") / "cache"
  keep(teacher, folder, top_k=3)
  return str(folder)


def test_the_rest_by_the_negatives_of_the_labels(cache, tmp_path):
  """With many negatives the estimate is near the sum over the catalogue."""
  fit = dataclasses.replace(FIT, label_loss="sampled_softmax", num_negatives=500)
  entries = {"teacher_cache": cache, "distill_losses": ("kl:0.5", "top_k_kl:0.5")}
  exact = student(tmp_path / "exact", fit=fit, **entries)
  found = student(tmp_path / "found", fit=fit, sampled_rest=True, **entries)
  for name in ("train/kl", "train/top_k_kl"):
    assert found[name] == pytest.approx(exact[name], rel=0.03)
    assert found[name] != exact[name]
  plain = student(tmp_path / "plain", fit=fit, sampled_rest=True, teacher_cache=cache)
  assert plain["train/distill_kl"] == pytest.approx(exact["train/kl"], rel=0.1)


@pytest.mark.parametrize(
  ("data", "options", "message"),
  [
    ({"max_length": 8}, {}, "other training rows: --max_length was 16, is 8"),
    ({}, {"temperature": 2.0}, "was made for --temperature=1, here it is 2"),
    ({}, {"distill_losses": ("reverse_kl:1",)}, "--teacher_cache keeps enough for kl, top_k_kl"),
    ({}, {"distill_losses": ("hint@query:1",)}, "the teacher has no feature 'query'; it has none"),
    ({}, {"cache_top_k": 3}, "leave --cache_top_k out"),
    ({}, {"inherit_tables": True}, "--teacher_cache holds no tables"),
    ({}, {"sampled_rest": True}, "--sampled_rest takes the negatives of the labels"),
  ],
)
def test_what_does_not_fit_is_named(cache, data, options, message, tmp_path):
  config = tiny.distill_config("", fit=FIT, teacher_cache=cache, **options)
  config = dataclasses.replace(config, teacher=(), data=dataclasses.replace(config.data, **data))
  with pytest.raises(ValueError, match=message):
    distill.run(config, tmp_path)


def test_a_rest_of_nothing_is_refused():
  task = problems.make_task(tiny.DATA, "sasrec")
  with pytest.raises(ValueError, match="give --cache_top_k or --teacher_cache"):
    distill.distill_terms(task, DistillConfig(sampled_rest=True), FIT)


def test_a_teacher_beside_its_cache_is_refused(teacher, cache, tmp_path):
  with pytest.raises(ValueError, match="leave --teacher out"):
    student(tmp_path, teacher, teacher_cache=cache)


def test_other_tasks_and_folders_say_so(teacher, cache, tmp_path):
  config = tiny.distill_config("", "mf", FIT, teacher_cache=cache)
  with pytest.raises(DataError, match="--teacher_cache: no fixed positions in the pair task"):
    distill.run(dataclasses.replace(config, teacher=()), tmp_path / "mf")
  with pytest.raises(DataError, match=r"--teacher_cache: .*no index\.json in it"):
    student(tmp_path / "none", teacher_cache=teacher)
  with pytest.raises(DataError, match=r"holds other rows \(about\.coding\.k 3, now 4\)"):
    keep(teacher, cache, top_k=4)


def test_shards_of_two_teachers_are_not_mixed(cache, tmp_path):
  train.run(tiny.train_config(seed=1), tmp_path / "other")
  with pytest.raises(DataError, match=r"holds other rows \(about\.teacher"):
    keep(str(tmp_path / "other"), cache, top_k=3)


def test_a_cache_goes_with_what_else_is_kept_beside_the_rows(cache, monkeypatch):
  """Rows that other teachers left are no rows of the task's own."""
  task = problems.make_task(tiny.DATA, "sasrec")
  beside = {**task.arrays, "ranked": np.zeros((len(task.arrays["items"]), 1), np.int32)}
  more = lambda task, *rest: (task._replace(arrays=beside | task.arrays), [])  # noqa: E731
  monkeypatch.setattr(distill.rankings, "added", more)
  found, terms = distill.add_kept(task, DistillConfig(teacher_cache=cache), FIT, tiny.DATA)
  assert terms == []
  assert {"ranked", teacher_cache.NAME} <= set(found.arrays)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"top_k": 41}, "--top_k=41: there are 40 to choose from"),
    ({"part": "2/2"}, "--part=2/2: give i/n with i below n"),
    ({"features": ("hidden",)}, "--features: the teacher has no hidden; it has block_0"),
  ],
)
def test_what_cannot_be_kept_is_named(teacher, options, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    keep(teacher, tmp_path, **options)


def test_a_damaged_cache_is_named(teacher, tmp_path):
  keep(teacher, tmp_path, top_k=3)
  coding, rows = teacher_cache.read(tmp_path)
  assert coding.k == 3
  assert len(rows) > 0
  (tmp_path / "index.json").write_text(
    (tmp_path / "index.json").read_text().replace('"k": 3', '"q": 3')
  )
  with pytest.raises(DataError, match="not the cache of a teacher"):
    teacher_cache.read(tmp_path)


def test_labels_and_a_cache_share_a_sweep(cache, tmp_path, monkeypatch):
  """The default losses: the same numbers as of two terms, which other temperatures need."""
  fit = dataclasses.replace(FIT, label_loss="auto")
  joint = student(tmp_path / "joint", fit=fit, teacher_cache=cache)
  monkeypatch.setattr(problems, "make_task", _without_joint(problems.make_task))
  apart = student(tmp_path / "apart", fit=fit, teacher_cache=cache)
  for name in ("train/loss", "train/cross_entropy", "train/distill_kl", "train/grad_norm"):
    assert joint[name] == pytest.approx(apart[name], rel=1e-4)


def _without_joint(make_task):
  return lambda *args: make_task(*args)._replace(joint_term=lambda distill, fit: None)
