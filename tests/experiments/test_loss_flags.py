import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from experiments import distill, runs, sequence_terms, train
from experiments.loss_flags import LossSpec, parse_losses
from kdjax import losses
from kdjax.types import FactoredLogits, Outputs

OPTIONS = {"valid": ("kl", "hint", "rkd_distance"), "featured": ("hint", "rkd_distance")}


def test_entries_are_read():
  specs = parse_losses(
    ["kl:0.5", "hint@block_0=block_1:1>0", "rkd_distance@query:25", "kl#2:1e-3"],
    num_teachers=2,
    **OPTIONS,
  )
  assert specs == [
    LossSpec("kl", 0.5),
    LossSpec("hint", 1.0, 0.0, "block_0", "block_1"),
    LossSpec("rkd_distance", 25.0, None, "query", "query"),
    LossSpec("kl", 0.001, teacher=1),
  ]
  terms = [spec.term for spec in specs]
  assert terms == ["kl", "hint@block_0=block_1", "rkd_distance@query", "kl#2"]
  assert specs[0].schedule(10) == 0.5
  assert specs[1].schedule(10)(5) == pytest.approx(float(optax.linear_schedule(1, 0, 10)(5)))


@pytest.mark.parametrize(
  ("entry", "message"),
  [
    ("kl", r"'kl': not of the form name\["),
    ("kl:", "not of the form"),
    ("rkd_distanc:1", r"did you mean 'rkd_distance'\? There are hint, kl, rkd_distance"),
    ("zzz:1", "no such loss here; There are"),
    ("kl@query:1", "kl compares no features; those that do: hint, rkd_distance"),
    ("kl#3:1", "teacher 3 of 2"),
    ("kl#0:1", "teacher 0 of 2"),
    ("kl:much", "weight 'much' is not a number"),
    ("kl:1>x", "weight 'x' is not a number"),
    ("kl:-1", "finite and not negative"),
    ("kl:nan", "finite and not negative"),
    ("kl:0", "does nothing"),
  ],
)
def test_what_is_wrong_is_named(entry, message):
  with pytest.raises(ValueError, match=message):
    parse_losses([entry], num_teachers=2, **OPTIONS)


def test_an_entry_twice_is_refused():
  with pytest.raises(ValueError, match="'kl' stands there twice"):
    parse_losses(["kl:1", "kl:2"], **OPTIONS)


def test_names_are_those_of_the_library():
  for name in sequence_terms.VALID:
    assert f"{name}_loss" in losses.__all__ or name == "experts"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  folder = tmp_path_factory.mktemp("teacher")
  train.run(tiny.train_config(), folder)
  return folder


def test_every_loss_trains_by_flags(teacher, tmp_path):
  """All at once, so that one program is compiled; each is logged and finite."""
  entries = tuple(f"{name}:0.01" for name in sequence_terms.VALID)
  config = tiny.distill_config(teacher, distill_losses=entries)
  distill.run(config, tmp_path)
  line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
  assert {f"train/{name}" for name in sequence_terms.VALID} <= set(line)
  assert "helpers" not in runs.load_model(tmp_path, flag="--").params


@pytest.mark.parametrize("name", sequence_terms.VALID)
def test_micro_batches_count_what_the_batch_counts(name):
  """Totals over counts are means only if both run over the same positions."""
  rng = np.random.default_rng(0)
  table = jnp.asarray(rng.normal(size=(30, 4)), jnp.float32)
  query = jnp.asarray(rng.normal(size=(6, 8, 4)), jnp.float32)
  labels = jnp.asarray(rng.integers(-1, 30, (6, 8)), jnp.int32)
  noise = jnp.asarray(rng.integers(0, 2**32, 6), jnp.uint32)
  (term,) = sequence_terms.make_terms(
    [LossSpec(name, 1.0)],
    catalog_logits=lambda logits, fit: logits,
    temperature=1.0,
    fit=tiny.FIT,
    popularity=np.log(np.full(30, 1 / 30)),
    num_steps=1,
  )

  def count(rows):
    outputs = Outputs(FactoredLogits(query[rows], table), {"query": query[rows]})
    params = () if term.init is None else (term.init(jax.random.key(0), outputs, outputs),)
    batch = {"labels": labels[rows], "noise": noise[rows]}
    return float(term.loss(*params, outputs, outputs, batch).count)

  assert count(slice(0, 6)) == count(slice(0, 2)) + count(slice(2, 6)) > 0


def test_two_teachers_and_a_schedule(teacher, tmp_path):
  train.run(tiny.train_config(seed=1), tmp_path / "second")
  fit = dataclasses.replace(tiny.FIT, epochs=1)
  config = tiny.distill_config(
    teacher, fit=fit, distill_losses=("kl:0.5", "kl#2:0.5>0", "hint@block_0#2:0.1")
  )
  both = dataclasses.replace(config, teacher=(str(teacher), str(tmp_path / "second")))
  for cached in (False, True):
    options = dataclasses.replace(both.distill, cache_queries=cached)
    distill.run(dataclasses.replace(both, distill=options), tmp_path / str(cached))
  lines = [
    json.loads((tmp_path / str(cached) / "metrics.jsonl").read_text().splitlines()[-1])
    for cached in (False, True)
  ]
  for name in ("train/kl", "train/kl#2", "train/hint@block_0#2"):
    assert lines[0][name] == pytest.approx(lines[1][name], rel=1e-3)
  assert lines[0]["train/kl"] != pytest.approx(lines[0]["train/kl#2"])


def test_flags_that_do_not_go_together(teacher, tmp_path):
  two = dataclasses.replace(tiny.distill_config(teacher), teacher=(str(teacher), str(teacher)))
  with pytest.raises(ValueError, match="several teachers need --distill_losses"):
    distill.run(two, tmp_path / "a")
  config = tiny.distill_config(teacher, distill_losses=("hint@block_9:1",))
  with pytest.raises(ValueError, match="the student has no feature 'block_9'; it has block_0"):
    distill.run(config, tmp_path / "b")
