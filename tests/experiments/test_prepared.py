"""--prepared_dir: a log is read once; what is made of it is mapped, the same to the last bit."""

import dataclasses
import os
import pathlib

import jax
import numpy as np
import pytest
import tiny

from experiments import prepared, problems, stored, train
from kdjax.data import mapped, sources
from kdjax.data.errors import DataError
from kdjax.train import processes

ROWS = "user,item,timestamp,rating\n" + "".join(
  f"u{user},i{(user * 7 + n * n) % 23},{1000 * n + user},{1 + (user + n) % 5}\n"
  for user in range(40)
  for n in range(4 + user % 9)
)


@pytest.fixture
def data(tmp_path):
  path = tmp_path / "log" / "events.csv"
  path.parent.mkdir()
  path.write_text(ROWS)
  (path.parent / "items.csv").write_text(
    "item,title\n" + "".join(f"i{n},name {n}\n" for n in range(23))
  )
  return dataclasses.replace(
    tiny.DATA, dataset=str(path), prepared_dir=str(tmp_path / "kept"), label_threshold=4.0,
    split="ratio", valid_fraction=0.2, test_fraction=0.2,
  )  # fmt: skip


def forget():
  problems.load_data.cache_clear()
  problems.make_task.cache_clear()


def refuse(*args, **options):
  raise AssertionError("the log was read again")


@pytest.mark.parametrize("family", ["sasrec", "bert4rec", "mf", "mlp"])
def test_tasks_are_the_same_and_the_log_is_read_once(data, family, monkeypatch):
  direct = dataclasses.replace(data, prepared_dir="")
  forget()
  expected = problems.make_task(direct, family)
  problems.make_task(data, family)
  forget()
  monkeypatch.setattr(sources, "load", refuse)
  again = problems.make_task(data, family)
  for name, values in expected.arrays.items():
    np.testing.assert_array_equal(again.arrays[name], values)
    assert again.arrays[name].dtype == values.dtype
    assert isinstance(again.arrays[name], np.memmap)
  assert (again.sizes, again.num_examples) == (expected.sizes, expected.num_examples)
  if expected.ends is not None:
    np.testing.assert_array_equal(again.ends, expected.ends)
  with pytest.raises(AssertionError, match="read again"):
    problems.load_data(dataclasses.replace(direct, min_rating=2.0))


def test_the_log_is_the_same(data):
  forget()
  expected = problems.load_data(dataclasses.replace(data, prepared_dir=""))
  found = problems.load_data(data)
  for a, b in zip(jax.tree.leaves(found.split), jax.tree.leaves(expected.split), strict=True):
    np.testing.assert_array_equal(a, b)
    assert a.dtype == b.dtype
  assert found.events.equals(expected.events)
  assert found.items.equals(expected.items)
  assert found.user_ids.to_list() == expected.user_ids.to_list()
  assert found.item_ids.to_list() == expected.item_ids.to_list()
  assert found.summary == expected.summary


def test_a_run_is_the_same(data, tmp_path):
  config = dataclasses.replace(tiny.train_config(), data=data)
  direct = dataclasses.replace(config, data=dataclasses.replace(data, prepared_dir=""))
  runs = {"mapped": config, "direct": direct}
  made = {name: train.run(config, tmp_path / name) for name, config in runs.items()}
  assert made["mapped"]["quality"] == made["direct"]["quality"]
  params = [jax.tree.leaves(stored.load_model(tmp_path / name, flag="--").params) for name in runs]
  for a, b in zip(*params, strict=True):
    np.testing.assert_array_equal(a, b)
  # A finished run may be asked for with or without.
  assert train.run(config, tmp_path / "direct")["quality"] == made["direct"]["quality"]


def test_other_processes_wait_for_the_first_one(data, monkeypatch):
  forget()
  expected = problems.load_data(data)
  folder = pathlib.Path(data.prepared_dir) / "log"
  folder.rename(folder.with_name("elsewhere"))
  forget()
  monkeypatch.setattr(processes, "is_first", lambda: False)
  monkeypatch.setattr(sources, "load", refuse)
  slept = []

  def sleep(seconds):
    slept.append(seconds)
    if len(slept) == 3:
      folder.with_name("elsewhere").rename(folder)

  monkeypatch.setattr(prepared.time, "sleep", sleep)
  assert problems.load_data(data).events.equals(expected.events)
  assert len(slept) == 3


@pytest.mark.parametrize(
  ("change", "named"),
  [
    (lambda data: dataclasses.replace(data, min_rating=2.0), "min_rating"),
    (lambda data: os.utime(data.dataset, (1, 1)) or data, "files"),
  ],
)
def test_another_log_is_refused(data, change, named):
  forget()
  problems.load_data(data)
  data = change(data)
  forget()
  with pytest.raises(DataError, match=rf"--prepared_dir=.* of another log \({named} changed\)"):
    problems.load_data(data)


def test_rows_of_other_lengths_stand_side_by_side(data):
  forget()
  for length in (3, 5):
    task = problems.make_task(dataclasses.replace(data, max_length=length), "sasrec")
    assert task.arrays["items"].shape[1] == length
  packed = list(pathlib.Path(data.prepared_dir).iterdir())
  assert sorted(path.name.split("-")[0] for path in packed) == ["log", "packed", "packed"]
  assert all(map(mapped.is_there, packed))
