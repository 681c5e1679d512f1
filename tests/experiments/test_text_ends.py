"""Texts of tokenizers without an end of their own end as the checkpoint's folder says."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import tiny
import tokenizers
import tokenizers.processors

from experiments import families, generate, problems, texts, train
from experiments.config import DistillConfig, ModelConfig
from kdjax import models
from kdjax.data.ends import stop_tokens
from kdjax.models import hub

FIT = dataclasses.replace(tiny.FIT, epochs=1)
SIZES = {"vocab_size": 320, "max_length": 16, "dim": 8, "num_layers": 1, "num_heads": 2}


def make_folder(folder, **config):
  """A decoder and a tokenizer that puts nothing around texts; `config` is said of it, too."""
  one = jnp.ones([1, 1], jnp.int32)
  batch = {"tokens": one, "segments": one, "positions": 0 * one}
  params = jax.jit(models.make_decoder(**SIZES).init)(jax.random.key(0), batch)
  params = jax.tree.map(lambda x: 3 * x, params)
  hub.save(folder, hub.Checkpoint("llama", "decoder", SIZES, params, {}))
  words = tokenizers.Tokenizer.from_str(texts.tokenizer(tiny.TEXTS).to_str())
  words.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
  (folder / "tokenizer.json").write_text(words.to_str())
  said = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(said | config))
  return folder


def data_of(folder):
  return dataclasses.replace(tiny.TEXTS, tokenizer=str(folder))


def write(folder, workdir, data, *, flag="checkpoint"):
  """The greedy texts, and how many tokens were written of each."""
  config = generate.Config(
    **{flag: str(folder)}, count=30, prompt_tokens=2, texts_per_call=30, temperature=0.0,
    progress=False, data=data,
  )  # fmt: skip
  generate.run(config, workdir)
  return pl.read_parquet(workdir / "train.parquet")


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
  """A folder that names no end, what it writes, and the tokens drawn for each text."""
  root = tmp_path_factory.mktemp("endless")
  folder = make_folder(root / "model")
  found = write(folder, root / "written", data_of(folder))
  assert (found["tokens"] == tiny.TEXTS.max_length - 2).all()
  config = generate.Config(
    checkpoint=str(folder), prompt_tokens=2, temperature=0.0, data=data_of(folder)
  )
  writer = generate.load_writer(config)
  assert writer.stop == ()
  given = texts.load(tiny.TEXTS, labels=False).parts["train"].texts
  order = np.random.default_rng(0).permutation(len(given))[:30]
  rows = generate.encode(writer.tokenizer, [given[i] for i in order], max_length=12)
  return root, np.asarray(writer.go_on(rows, jax.random.fold_in(jax.random.key(0), 0))[1])


@pytest.mark.parametrize("flag", ["checkpoint", "model_dir"])
@pytest.mark.parametrize("several", [False, True], ids=["one", "list"])
def test_writing_stops_at_any_of_them(endless, tmp_path, several, flag):
  _, drawn = endless
  tokens, counts = np.unique(drawn[:, 3:], return_counts=True)
  stop = [int(token) for token in tokens[np.argsort(-counts)][: 1 + several]]
  folder = make_folder(tmp_path / "model", eos_token_id=stop if several else stop[0])
  if flag == "model_dir":  # A run keeps what ends its texts.
    fit = dataclasses.replace(FIT, learning_rate=0.0, weight_decay=0.0)
    model = ModelConfig("decoder", checkpoint=str(folder))
    train.run(train.Config(data_of(folder), model, fit), tmp_path / "run")
    assert stop_tokens(tmp_path / "run") == tuple(stop)
  made_by = tmp_path / "run" if flag == "model_dir" else folder
  found = write(made_by, tmp_path / "written", data_of(folder), flag=flag)
  ends = np.isin(drawn, stop)
  expected = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, drawn.shape[1])
  assert len(set(expected)) > 1
  np.testing.assert_array_equal(found["tokens"], expected)
  assert stop_tokens(tmp_path / "written") == tuple(stop)
  # What is read again ends, and holds the end once.
  words = texts.load_tokenizer(tmp_path / "written")
  for text in found["text"]:
    assert not np.isin(words.encode(text).ids[-1:], stop).any()


def test_training_texts_end(endless, tmp_path):
  root, _ = endless
  folder = make_folder(tmp_path / "model", eos_token_id=[5, 9])
  plain = problems.make_task(data_of(root / "model"), "decoder")
  ended = problems.make_task(data_of(folder), "decoder")
  words = texts.load_tokenizer(folder)
  given = texts.load(tiny.TEXTS, labels=False).parts["train"].texts
  sizes = np.array([len(words.encode(text).ids) for text in given])
  cut = sizes >= tiny.TEXTS.max_length
  assert 0 < cut.sum() < len(given)
  assert not (plain.arrays["labels"] == 5).any()
  assert (ended.arrays["labels"] == 5).sum() == (~cut).sum()
  # The end is said, never read: every text is one window.
  assert not (ended.arrays["tokens"] == 5).any()
  assert (ended.valid["tokens"] == 5).any(axis=1).mean() > 0.5


def test_students_stop_as_they_write(endless, tmp_path):
  root, _ = endless

  def written(folder):
    task = problems.make_task(data_of(folder), "decoder")
    loaded = hub.load(folder, head="tokens")
    distill = DistillConfig(on_policy=1.0, prompt_tokens=2, sample_temperature=0.0)
    sample = task.sampler(distill, families.make_cached(loaded.sizes))
    batch = {name: jnp.asarray(values[:8]) for name, values in task.arrays.items()}
    return np.asarray(jax.jit(sample)(loaded.params, batch, jax.random.key(0))["labels"])

  plain = written(root / "model")
  tokens, counts = np.unique(plain[:, 3:-1], return_counts=True)
  stop = int(tokens[np.argmax(np.where(tokens >= 0, counts, 0))])
  ended = written(make_folder(tmp_path / "model", eos_token_id=[1, stop]))
  assert (ended == stop).any()
  for row in ended:
    if stop in row:
      assert (row[row.tolist().index(stop) + 1 :] == -1).all()
