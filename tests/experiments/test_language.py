"""Language model to language model: on-policy, from a teacher's best logits, across tokenizers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import tiny

from experiments import distill, families, generate, problems, stored, texts
from experiments.config import DistillConfig
from experiments.teachers import join_teachers
from kdjax import losses
from kdjax.data.errors import DataError
from kdjax.data.tokens import load_tokenizer
from kdjax.train import teacher_tokens

FIT = dataclasses.replace(tiny.FIT, epochs=1, learning_rate=0.01)
OTHER = dataclasses.replace(tiny.TEXTS, vocab_size=300, max_length=20)


def made(folder, data, family="decoder"):
  """A teacher that has learned nothing: as good as any to be learned from."""
  task = problems.make_task(data, family)
  sizes = families.model_sizes(dataclasses.replace(tiny.TEACHER, model=family), task)
  batch = {name: jnp.asarray(values[:1]) for name, values in task.arrays.items()}
  params = jax.jit(families.make_model(family, sizes).init)(jax.random.key(0), batch)
  stored.save_model(folder, family, sizes, jax.tree.map(lambda x: 3 * x, params), data)
  if family == "decoder":
    texts.save_tokenizer(data, folder, texts.tokenizer(data))
  return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  return made(tmp_path_factory.mktemp("teacher"), tiny.TEXTS)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
  """A teacher whose tokens are others."""
  return made(tmp_path_factory.mktemp("stranger"), OTHER)


def student(teacher, folder, fit=FIT, **options):
  """The last line of the metrics of a student."""
  distill.run(tiny.distill_config(teacher, "decoder", fit, **options), folder)
  return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize(
  "options",
  [{"train_bits": 8}, {"accumulate": 2}, {"parallel": "pmap", "data_devices": 2}],
  ids=lambda options: next(iter(options)),
)
def test_on_policy_beside_other_flags(teacher, tmp_path, options):
  fit = dataclasses.replace(FIT, **options)
  line = student(
    teacher, tmp_path, fit, on_policy=1.0, prompt_tokens=3, distill_losses=("reverse_kl:1",)
  )
  assert line["train/cross_entropy"] == 0
  assert 0 < line["train/reverse_kl"] < np.inf


def test_on_policy_by_flags(teacher, tmp_path):
  entries = ("reverse_kl:0.2", "jensen_shannon:0.2", "policy:0.1", "sequence:0.1")
  line = student(teacher, tmp_path, on_policy=1.0, prompt_tokens=3, distill_losses=entries)
  assert line["train/cross_entropy"] == 0  # Labels say nothing of what the student wrote.
  assert line["train/sequence"] == 0  # No text was given.
  assert np.isfinite(line["train/policy"])
  assert all(line[f"train/{entry.split(':')[0]}"] > 0 for entry in entries[:2])
  assert (
    distill.distill_terms(
      problems.make_task(tiny.TEXTS, "decoder"), DistillConfig(on_policy=0.5), FIT
    )[0].name
    == "cross_entropy"
  )  # Apart from the KL, as it may be left out.


@pytest.mark.parametrize("family", ["decoder", "sasrec"])
def test_the_best_logits_of_all_are_the_live_teacher(family, tmp_path, capsys):
  data = tiny.data_for(family)
  task = problems.make_task(data, family)
  saved = stored.load_model(made(tmp_path, data, family), flag="--teacher")
  size = task.sizes["vocab_size" if family == "decoder" else "num_items"]
  rows, length = task.arrays["labels"].shape
  sizes = families.model_sizes(dataclasses.replace(tiny.STUDENT, model=family), task)
  own = families.make_model(family, sizes)
  batch = {name: jnp.asarray(values[-3:]) for name, values in task.arrays.items()}
  student = jax.jit(lambda batch: own.apply(own.init(jax.random.key(1), batch), batch))(batch)

  def values(**options):
    """The terms on some rows, by name, and the teacher's outputs, as an objective gets them."""
    config = DistillConfig(temperature=2.0, **options)
    apply, params, arrays = join_teachers(task, FIT, config, [saved])
    batch = {name: jnp.asarray(values[-3:]) for name, values in arrays.items()}
    outputs, terms = jax.jit(apply)(params, batch), distill.distill_terms(task, config, FIT)
    means = {term.name: jax.jit(term.loss)(student, outputs, batch) for term in terms}
    return {name: float(mean.compute()) for name, mean in means.items()}, outputs.logits

  live, logits = values(distill_losses=("kl:0.5",))
  kept, _ = values(cache_top_k=size, distill_losses=("kl:0.5", "top_k_kl:0.5"))
  megabytes = rows * length * ((6 if size > 256 else 5) * size + 8) / 1e6
  said = f"best {size} of {rows:,} x {length} positions: {megabytes:,.1f} MB"
  assert said in capsys.readouterr().out
  assert kept["kl"] == kept["top_k_kl"] == pytest.approx(live["kl"], rel=1e-5)
  few, found = values(cache_top_k=5, label_weight=0.0)
  assert 0 < few["distill_kl"] < live["kl"]  # A lower bound.
  expected = losses.top_k_targets(logits.dense(), 5, temperature=2.0)
  np.testing.assert_array_equal(found.indices, expected.indices)
  np.testing.assert_allclose(found.values, expected.values, atol=1e-5)
  np.testing.assert_allclose(found.log_normalizer, expected.log_normalizer, atol=1e-5)


def test_a_teacher_of_other_tokens(stranger, tmp_path):
  config = tiny.distill_config(stranger, "decoder", FIT)
  with pytest.raises(DataError, match=r"other tokens .* or --distill_losses=universal_logit:1"):
    distill.run(config, tmp_path / "refused")
  line = student(stranger, tmp_path / "uld", distill_losses=("universal_logit:1.5",))
  assert 0 < line["train/universal_logit"] < 2
  with pytest.raises(ValueError, match="--on_policy: a teacher of other tokens"):
    student(stranger, tmp_path / "own", distill_losses=("universal_logit:1",), on_policy=0.5)


def test_rows_beside_hold_the_same_texts(stranger):
  """By hand: each text encoded alone by both tokenizers, and judged alone by the teacher."""
  task = problems.make_task(tiny.TEXTS, "decoder")
  rows = task.retokenize(stranger, OTHER.max_length)
  other = load_tokenizer(stranger / "tokenizer.json")
  mine = texts.tokenizer(tiny.TEXTS)
  written = texts.load(tiny.TEXTS, labels=False).parts["train"].texts
  other.enable_truncation(OTHER.max_length)
  mine.enable_truncation(tiny.TEXTS.max_length)
  expected = sorted((mine.encode(t).ids[:-1], other.encode(t).ids[:-1]) for t in written)
  found, arrays = [], task.arrays
  for row in range(len(arrays["tokens"])):
    for segment in range(1, arrays["segments"][row].max() + 1):
      ours, theirs = arrays["segments"][row] == segment, rows["segments"][row] == segment
      found.append((arrays["tokens"][row][ours].tolist(), rows["tokens"][row][theirs].tolist()))
      first = np.flatnonzero(theirs)[0]
      places = rows["places"][row][ours]
      number = np.arange(len(places))
      np.testing.assert_array_equal(places, np.where(number < theirs.sum(), first + number, -1))
  assert sorted(found) == expected
  assert (rows["places"][arrays["segments"] == 0] == -1).all()
  saved = stored.load_model(stranger, flag="--teacher")
  model = families.make_model(saved.family, saved.sizes)
  batch = {f"teacher_{name}": jnp.asarray(values[:2]) for name, values in rows.items()}
  beside = jax.jit(teacher_tokens.with_own_tokens(model.apply))(saved.params, batch).logits.dense()
  assert beside.shape == (2, tiny.TEXTS.max_length, 300)
  one = np.asarray(rows["tokens"][0][rows["segments"][0] == 1])[None]
  alone = {"tokens": one, "segments": np.ones_like(one), "positions": np.arange(one.size)[None]}
  logits = jax.jit(model.apply)(saved.params, alone).logits.dense()
  where = (arrays["segments"][0] == 1) & (rows["places"][0] >= 0)
  np.testing.assert_allclose(beside[0][where], logits[0][: where.sum()], atol=1e-4)


def writing(teacher, **options):
  return generate.Config(
    str(teacher), count=20, prompt_tokens=3, texts_per_call=8, progress=False, data=tiny.TEXTS,
    **options,
  )  # fmt: skip


def test_written_texts_are_a_dataset(teacher, tmp_path, monkeypatch, capsys):
  result = generate.run(writing(teacher), tmp_path / "whole")
  assert "20 texts" in capsys.readouterr().out
  found = pl.read_parquet(tmp_path / "whole" / "train.parquet")
  assert len(found) == result["texts"] == 20
  assert found["tokens"].sum() == result["tokens"]
  assert found["tokens"].max() <= tiny.TEXTS.max_length - 1
  # Stopped after two calls, it goes on to the same.
  write = generate.write
  monkeypatch.setattr(generate, "write", lambda *args: write(*args) if args[-1] < 2 else 1 / 0)
  with pytest.raises(ZeroDivisionError):
    generate.run(writing(teacher), tmp_path / "parts")
  monkeypatch.setattr(generate, "write", lambda *args: write(*args) if args[-1] == 2 else 1 / 0)
  generate.run(writing(teacher), tmp_path / "parts")
  assert pl.read_parquet(tmp_path / "parts" / "train.parquet").equals(found)
  # A student reads it, and is judged by the texts that nobody wrote.
  data = dataclasses.replace(
    tiny.TEXTS, dataset=str(tmp_path / "whole"), tokenizer=str(tmp_path / "whole")
  )
  given, read = texts.load(tiny.TEXTS, labels=False), texts.load(data, labels=False)
  assert read.parts["test"].texts == given.parts["test"].texts
  assert read.parts["valid"].texts == given.parts["valid"].texts
  assert read.parts["train"].texts == tuple(found["text"])
  words = texts.tokenizer(tiny.TEXTS)
  beginnings = {tuple(words.encode(t).ids[:3]) for t in given.parts["train"].texts}
  assert {tuple(words.encode(t).ids[:3]) for t in found["text"]} <= beginnings
  assert texts.other_tokenizer(tmp_path / "whole", texts.tokenizer(tiny.TEXTS)) is None


def test_the_likeliest_tokens_are_written_by_hand(teacher, tmp_path):
  """Greedy texts, from the whole forward pass of one row after the other."""
  config = dataclasses.replace(writing(teacher, temperature=0.0), count=2, texts_per_call=2)
  generate.run(config, tmp_path)
  found = pl.read_parquet(tmp_path / "train.parquet")["text"]
  saved, words = stored.load_model(teacher, flag="--"), texts.tokenizer(tiny.TEXTS)
  apply = jax.jit(families.make_model(saved.family, saved.sizes).apply)
  given = texts.load(tiny.TEXTS, labels=False).parts["train"].texts
  order = np.random.default_rng(0).permutation(len(given))[:2]
  for text, number in zip(found, order, strict=True):
    tokens = words.encode(given[number]).ids[:3]
    while len(tokens) < tiny.TEXTS.max_length and tokens[-1] != words.token_to_id("[SEP]"):
      row = np.pad(tokens, (0, tiny.TEXTS.max_length - len(tokens)), constant_values=-1)[None]
      batch = {"tokens": row, "segments": (row >= 0) * 1, "positions": np.arange(row.size)[None]}
      tokens.append(int(apply(saved.params, batch).logits.dense()[0, len(tokens) - 1].argmax()))
    assert text == words.decode(tokens)


def test_a_writer_that_cannot_write_is_named(teacher, tmp_path):
  with pytest.raises(ValueError, match="either --model_dir or --checkpoint"):
    generate.run(dataclasses.replace(writing(teacher), model_dir=""), tmp_path / "a")
  longer = dataclasses.replace(writing(teacher), prompt_tokens=12)
  with pytest.raises(ValueError, match="--prompt_tokens=12 leaves nothing of --max_length=12"):
    generate.run(longer, tmp_path / "b")
  other = dataclasses.replace(tiny.TEXTS, data_seed=1)
  with pytest.raises(ValueError, match=r"--model_dir=.* was trained on another split: --data_seed"):
    generate.run(dataclasses.replace(writing(teacher), data=other), tmp_path / "c")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"distill_losses": ("policy:1",)}, "policy learns from texts that the student writes"),
    (
      {"distill_losses": ("policy:1",), "on_policy": 0.5, "sample_temperature": 0.5},
      "--sample_temperature=1, as --temperature",
    ),
    ({"on_policy": 0.5, "prompt_tokens": 12}, "--prompt_tokens=12 leaves nothing"),
    ({"on_policy": 0.5, "cache_top_k": 3}, "--on_policy: what --cache_top_k keeps"),
    ({"cache_top_k": 321}, "--cache_top_k=321: there are 320 to choose from"),
    ({"cache_top_k": 3, "distill_losses": ("reverse_kl:1",)}, "keeps enough for kl, top_k_kl"),
    ({"cache_top_k": 3, "distill_loss": "mse"}, "keeps enough for kl, top_k_kl"),
    ({"cache_top_k": 3, "cache_queries": True}, "keep the same teacher"),
  ],
)
def test_flags_that_do_not_go_together(teacher, tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    student(teacher, tmp_path, **options)


def test_tasks_without_texts_say_so():
  task = problems.make_task(tiny.DATA, "sasrec")
  with pytest.raises(ValueError, match="--on_policy: the sequence task has no texts to write"):
    distill.distill_terms(task, DistillConfig(on_policy=0.5), FIT)
  with pytest.raises(ValueError, match="--cache_top_k: no fixed positions in the pair task"):
    distill.distill_terms(problems.make_task(tiny.DATA, "mf"), DistillConfig(cache_top_k=5), FIT)
