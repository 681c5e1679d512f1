import dataclasses
import functools
import json
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from experiments import candidate_terms, distill, loss_terms, sequences, stored, train
from experiments.config import DistillConfig, FitConfig
from experiments.loss_flags import LossSpec, parse_losses
from kdjax import losses
from kdjax.train.writers import read_jsonl
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


# What the flag does not offer, but --label_loss (or the default of both, over a catalogue).
ELSEWHERE = {
  "bpr": "bpr", "nce": "nce", "sampled_softmax": "sampled_softmax", "binary_cross_entropy": "bce",
  "cross_entropy": "cross_entropy", "catalog_cross_entropy": "cross_entropy", "ctc": "ctc",
  "catalog_distillation": "auto", "catalog_cached_distillation": "auto",
}  # fmt: skip


# Losses of another name, on what a sampler or a helper of theirs gives.
METHODS = {
  "experts", "student_collaborative", "bidirectional", "dual_correction", "item_relaxed_ranking",
}  # fmt: skip


def test_every_loss_of_the_library_has_its_flag():
  names = {name.removesuffix("_loss") for name in losses.__all__ if name.endswith("_loss")}
  # Forms over a catalogue need no flag of their own: they are taken where logits are in factors.
  plain = {name.removeprefix("catalog_") for name in names - set(ELSEWHERE)}
  assert plain == set(loss_terms.LANGUAGE) - METHODS
  assert names >= set(ELSEWHERE)
  assert set(ELSEWHERE.values()) == set(get_args(get_type_hints(FitConfig)["label_loss"]))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  folder = tmp_path_factory.mktemp("teacher")
  train.run(tiny.train_config(), folder)
  return folder


@pytest.mark.parametrize(
  ("family", "makers"),
  [
    ("sasrec", loss_terms.SEQUENCE),
    ("mf", loss_terms.PAIR),
    ("mlp", loss_terms.CLICK),
    ("speech_gru", loss_terms.SPEECH),
    ("resnet", {"kl": None, "decoupled": None, "dist": None, "hint": None, "topology": None}),
  ],
)
def test_every_loss_trains_by_flags(family, makers, tmp_path):
  """All at once, so that one program is compiled; each is logged and finite."""
  train.run(tiny.train_config(family, epochs=1), tmp_path / "teacher")
  entries = tuple(f"{name}:0.01" for name in makers)
  fit = dataclasses.replace(tiny.FIT, epochs=1)
  config = tiny.distill_config(tmp_path / "teacher", family, fit, distill_losses=entries)
  distill.run(config, tmp_path / "student")
  lines = read_jsonl(tmp_path / "student" / "metrics.jsonl")
  logged = {name: value for line in lines for name, value in line.items()}
  assert {f"train/{name}" for name in makers} <= set(logged)
  assert all(np.isfinite(logged[f"train/{name}"]) for name in makers)
  assert "helpers" not in stored.load_model(tmp_path / "student", flag="--").params


ROWS, LENGTH, ITEMS, WIDTH = 6, 8, 30, 4


@functools.cache
def tables():
  """A batch of packed rows and the outputs of a model on it."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  batch = {
    "labels": jnp.asarray(rng.integers(-1, ITEMS, (ROWS, LENGTH)), jnp.int32),
    "segments": jnp.asarray(np.sort(rng.integers(0, 3, (ROWS, LENGTH)))[:, ::-1].copy()),
    "noise": jnp.asarray(rng.integers(0, 2**32, ROWS), jnp.uint32),
    "progress": jnp.full(ROWS, 0.5),
    "row": jnp.arange(ROWS),
    "written": jnp.arange(ROWS) % 2 == 0,
  }
  features = {
    name: normal(ROWS, LENGTH, WIDTH)
    for name in ("embedding", "query", "block_0_queries", "block_0_keys", "block_0_values")
  }
  features["block_0_attention"] = jax.nn.softmax(normal(ROWS, 2, LENGTH, LENGTH))
  return batch, features, normal(ITEMS, WIDTH)


def term_of(entry, *, temperature=1.0):
  """The term of one entry, and what it gives on some of the rows."""
  _, _, table = tables()
  view = sequences.make_view(tiny.FIT, jnp.arange(ITEMS) % 3, num_rows=ROWS, causal=True)
  distill = DistillConfig(distill_losses=(entry,), temperature=temperature)
  (term,) = loss_terms.make_terms(loss_terms.LANGUAGE, view, distill, num_teachers=1, num_steps=1)

  def value(rows, teacher_table=table):
    batch, features, _ = jax.tree.map(lambda x: x, tables())
    batch, features = jax.tree.map(lambda x: x[rows], (batch, features))
    student = Outputs(FactoredLogits(features["query"], table), features)
    teacher = Outputs(FactoredLogits(features["query"], teacher_table), features)
    inits = (term.memory and term.memory.init, term.init)
    own = [init(jax.random.key(0), student, teacher) for init in inits if init]
    return term.loss(*own, student, teacher, batch)

  return value


WHOLE, *HALVES = slice(0, ROWS), slice(0, ROWS // 2), slice(ROWS // 2, ROWS)
# Compared within the batch, or drawn by it: micro-batches have other partners or draws.
WITHIN = (
  *(name for name in candidate_terms.CATALOG if name != "importance_ranking"),
  *candidate_terms.WHOLE,
  "sampled_cross_entropy", "dist", "rkd_distance", "rkd_angle", "similarity_preserving",
  "correlation_congruence", "probabilistic_transfer", "cka", "topology", "group_topology",
  "info_nce", "crd", "contrastive", "experts",
)  # fmt: skip


@pytest.mark.parametrize("name", loss_terms.LANGUAGE)
def test_micro_batches_add_up_to_the_batch(name):
  """Totals over counts are means only if both run over the same positions."""
  value = term_of(f"{name}:1")
  other = jnp.asarray(np.random.default_rng(1).normal(size=(ITEMS, WIDTH)), jnp.float32)
  # Compiled for the count alone where that is all: what it does not need is left out.
  of = (lambda mean: mean.count) if name in WITHIN else lambda mean: mean
  whole, first, second = (
    jax.jit(lambda rows=rows: of(value(rows, other)))() for rows in (WHOLE, *HALVES)
  )
  added = jax.tree.map(jnp.add, first, second)
  np.testing.assert_allclose(
    jnp.stack(jax.tree.leaves(whole)), jnp.stack(jax.tree.leaves(added)), rtol=1e-4
  )
  assert float(jax.tree.leaves(whole)[-1]) > 0


def test_terms_are_the_losses_of_the_library():
  batch, features, table = tables()
  other = jnp.asarray(np.random.default_rng(1).normal(size=(ITEMS, WIDTH)), jnp.float32)
  student, teacher = features["query"] @ table.T, features["query"] @ other.T
  where = batch["labels"] >= 0
  tokens, written = jnp.maximum(batch["labels"], 0), batch["written"][:, None]
  log_probs = [
    np.take_along_axis(np.asarray(jax.nn.log_softmax(x / 2)), np.asarray(tokens)[..., None], -1)
    for x in (student, teacher)
  ]
  mine = np.asarray(where & written)
  reward = np.where(mine, (log_probs[1] - log_probs[0])[..., 0], 0.0)
  after = lambda x: x[:, ::-1].cumsum(axis=1)[:, ::-1] - x  # noqa: E731
  returns = after(reward) / np.maximum(after(mine.astype(float)), 1)
  plain = np.asarray(jax.nn.log_softmax(student))
  nats = -np.take_along_axis(plain, np.asarray(tokens)[..., None], -1)[..., 0]
  given = np.asarray(where & ~written)
  texts = np.where(given, batch["segments"], 0).max(axis=1).sum()
  expected = {
    "policy": losses.policy_loss(
      student, teacher, tokens, jnp.asarray(returns), temperature=2.0, where=jnp.asarray(mine)
    ),
    "sequence": np.sum(nats[given]) / texts,
    "kl": losses.kl_loss(student, teacher, temperature=2.0, where=where),
    "logit_mse": losses.logit_mse_loss(student, teacher, where=where),
    "decoupled": losses.decoupled_loss(student, teacher, tokens, temperature=2.0, where=where),
    "self_relation@block_0": 0.0,
    "attention_transfer": 0.0,
  }
  for name, value in expected.items():
    found = term_of(f"{name}:1", temperature=2.0)(WHOLE, other).compute()
    assert float(found) == pytest.approx(float(value), rel=1e-5, abs=1e-6), name


def test_features_are_named_by_their_models():
  with pytest.raises(ValueError, match="the student has no feature 'block_9'; it has block_0_att"):
    term_of("hint@block_9:1")(WHOLE)
  with pytest.raises(ValueError, match="which may differ in the last axis only"):
    term_of("hint@query=block_0_attention:1")(WHOLE)


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


def test_weights_adapt_by_flags(teacher, tmp_path):
  losses = {"label_weight": 0.2, "distill_losses": ("kl:0.5", "hint@block_0:0.1")}
  fit = dataclasses.replace(tiny.FIT, epochs=1)
  for how, logged in (("uncertainty", "train/kl_alone"), ("gradient_norm", "train/kl_factor")):
    config = tiny.distill_config(
      teacher,
      fit=fit,
      balance=how,
      balance_on=("block_0",) if how == "gradient_norm" else (),
      **losses,
    )
    distill.run(config, tmp_path / how)
    line = json.loads((tmp_path / how / "metrics.jsonl").read_text().splitlines()[-1])
    assert line[logged] > 0
    assert line[logged] != line.get("train/kl") != 1
  alone = {"label_weight": 0.0, "distill_losses": ("kl:0.5",)}
  wrong = [
    ({**alone, "balance": "uncertainty"}, "--balance=uncertainty: there is one loss alone"),
    (
      {**losses, "balance": "gradient_norm", "balance_on": ("block_7",)},
      "--balance_on=block_7: there are block_0",
    ),
  ]
  for number, (options, said) in enumerate(wrong):
    with pytest.raises(ValueError, match=said):
      distill.run(tiny.distill_config(teacher, fit=fit, **options), tmp_path / str(number))
