"""Pretrained models in other types, and split over a mesh as they are read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import tiny

from experiments import (
  augment_texts,
  embed,
  fitting,
  generate,
  meshes,
  pretrained,
  rank_titles,
  rankings,
  stored,
  texts,
  train,
)
from experiments.config import DataConfig, LoadConfig, MeshConfig, ModelConfig
from kdjax import models, tree
from kdjax.data import tokens
from kdjax.models import hub
from kdjax.train import placement

SIZES = {"max_length": 64, "dim": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 336}
ONE = LoadConfig()
SPLIT = LoadConfig(mesh=MeshConfig(data_devices=2, fsdp_devices=2, model_devices=2))
HALF = LoadConfig(checkpoint_dtype="bfloat16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A BERT and a decoder with 16 rows more than tokens, in float32 and in bfloat16, and a log."""
  folder = tmp_path_factory.mktemp("pretrained")
  words = texts.tokenizer(tiny.TEXTS)
  one = jnp.ones([1, 1], jnp.int32)
  batch = {"tokens": one, "segments": one, "positions": 0 * one}
  for family, model_type, head in (("bert", "bert", "tokens"), ("decoder", "llama", "tokens")):
    sizes = SIZES | {"head": head}
    init = getattr(models, f"make_{family}")(**sizes).init
    params = jax.jit(init)(jax.random.key(0), batch)
    for dtype in ("float32", "bfloat16"):
      own = folder / (family if dtype == "float32" else f"{family}_16")
      stored_as = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), params)
      hub.save(own, hub.Checkpoint(model_type, family, sizes, stored_as, {}))
      (own / "tokenizer.json").write_text(words.to_str())
  rng = np.random.default_rng(0)
  lines = [f"{user} {item}" for user in range(20) for item in rng.permutation(24)[:7]]
  (folder / "log.txt").write_text("\n".join(lines) + "\n")
  said = texts.load(tiny.TEXTS, labels=False).parts["train"].texts
  table = "\n".join(f"{i}\t{said[i]}" for i in range(24))
  (folder / "titles.tsv").write_text(f"item\ttitle\n{table}\n")
  return folder


def log_of(folder):
  return DataConfig(
    dataset=str(folder / "log.txt"), items_path=str(folder / "titles.tsv"), max_length=8
  )


@pytest.mark.parametrize("family", ["bert", "decoder"])
def test_leaves_lie_as_the_rules_say(folder, family):
  mesh = meshes.mesh_of(SPLIT.mesh)
  whole = pretrained.load(folder / family, head="tokens", tokenizer=folder / family)
  split = pretrained.load(folder / family, head="tokens", tokenizer=folder / family, mesh=mesh)
  assert whole.sizes == split.sizes
  assert whole.sizes["vocab_size"] == 320
  places = placement.shardings(split.params, mesh)
  parts = set()
  for (path, one), (_, x), (_, place) in zip(
    *map(tree.leaves_with_path, (whole.params, split.params, places)), strict=True
  ):
    np.testing.assert_array_equal(one, x, err_msg="/".join(path))
    assert x.sharding.is_equivalent_to(place, x.ndim), path
    parts.add(x.size // x.addressable_shards[0].data.size)
  assert parts >= {2, 4}, "by either axis, and by both"


def test_types_are_those_asked_for(folder):
  def types(name, dtype):
    found = pretrained.load(folder / name, head="tokens", tokenizer=336, dtype=dtype)
    return {x.dtype.name for x in jax.tree.leaves(found.params)}, pretrained.dtype_of(found.params)

  assert types("decoder", "float32") == ({"float32"}, "float32")
  assert types("decoder", "bfloat16") == ({"bfloat16"}, "bfloat16")
  assert types("decoder", "as_stored") == ({"float32"}, "float32")
  assert types("decoder_16", "as_stored") == ({"bfloat16"}, "bfloat16")
  assert types("decoder_16", "float32") == ({"float32"}, "float32")


def embedded(folder, workdir, load, name):
  config = embed.Config(str(folder / name), load=load, data=log_of(folder))
  embed.run(config, workdir)
  with np.load(workdir / "embeddings.npz", allow_pickle=False) as found:
    return found["embeddings"]


@pytest.mark.parametrize("family", ["bert", "decoder"])
def test_embeddings(folder, tmp_path, family):
  plain = embedded(folder, tmp_path / "one", ONE, family)
  split = embedded(folder, tmp_path / "split", SPLIT, family)
  half = embedded(folder, tmp_path / "half", HALF, family)
  assert plain.std() > 0.1
  np.testing.assert_allclose(split, plain, atol=1e-5)
  assert np.abs(half - plain).max() > 1e-5, "computed in float32"
  cosine = np.sum(half * plain, axis=1)  # Rows have length 1.
  assert cosine.min() > 0.99
  stored_so = LoadConfig(checkpoint_dtype="as_stored")
  same = embedded(folder, tmp_path / "stored", stored_so, f"{family}_16")
  np.testing.assert_array_equal(same, half)


def test_written_texts(folder, tmp_path):
  data = dataclasses.replace(tiny.TEXTS, tokenizer=str(folder / "decoder"))

  def drawn(load):
    config = generate.Config(
      checkpoint=str(folder / "decoder"), count=16, prompt_tokens=4, texts_per_call=16,
      temperature=0.0, progress=False, load=load, data=data,
    )  # fmt: skip
    writer = generate.load_writer(config)
    given = list(texts.load(tiny.TEXTS, labels=False).parts["train"].texts[:16])
    rows = tokens.encode(writer.tokenizer, given, max_length=data.max_length)
    return np.asarray(writer.go_on(rows, jax.random.key(0))[1])

  plain = drawn(ONE)
  np.testing.assert_array_equal(drawn(SPLIT), plain)
  half = drawn(HALF)
  assert np.mean(half[:, 0] == plain[:, 0]) > 0.8
  config = generate.Config(
    checkpoint=str(folder / "decoder"), count=8, prompt_tokens=4, texts_per_call=8,
    progress=False, load=SPLIT, data=data,
  )  # fmt: skip
  assert generate.run(config, tmp_path)["texts"] == 8


def test_rankings(folder, tmp_path):
  data = log_of(folder)
  train.run(train.Config(data, tiny.TEACHER, tiny.FIT), tmp_path / "first")

  def scores(name, load):
    config = rank_titles.Config(
      checkpoint=str(folder / "decoder"), candidates_from=str(tmp_path / "first"), candidates=4,
      history=2, prompt="{history}, then", prompt_tokens=30, title_tokens=6, users_per_call=4,
      progress=False, load=load, data=data,
    )  # fmt: skip
    rank_titles.run(config, tmp_path / name)
    found = rankings.read(tmp_path / name)
    return np.take_along_axis(found.scores, np.argsort(found.items, axis=1), axis=1)

  plain = scores("one", ONE)
  np.testing.assert_allclose(scores("split", SPLIT), plain, atol=1e-4)
  half = scores("half", HALF)
  np.testing.assert_allclose(half, plain, rtol=0.06)  # Of 8 bits of mantissa, in two layers.
  assert 1e-4 < np.abs(half - plain).mean() < 0.06


def test_copies_of_texts(folder, tmp_path):
  data = dataclasses.replace(tiny.TEXTS, tokenizer=str(folder / "bert"))

  def copies(name, load):
    config = augment_texts.Config(
      checkpoint=str(folder / "bert"), copies=1, progress=False, load=load, data=data
    )
    augment_texts.run(config, tmp_path / name)
    return pl.read_parquet(tmp_path / name / "train.parquet")["text"].to_list()

  assert copies("split", SPLIT) == copies("one", ONE)


def test_students_start_on_the_mesh(folder, tmp_path):
  data = dataclasses.replace(tiny.TEXTS, tokenizer=str(folder / "decoder"))

  def trained(name, dtype="float32", **devices):
    model = ModelConfig(
      "decoder", checkpoint=str(folder / "decoder"), checkpoint_dtype=dtype, dropout=0.0
    )
    fit = dataclasses.replace(tiny.FIT, epochs=1, **devices)
    result = train.run(train.Config(data, model, fit), tmp_path / name)
    params = stored.load_model(tmp_path / name, flag="--").params
    return result["quality"]["perplexity"]["value"], {x.dtype.name for x in jax.tree.leaves(params)}

  plain, types = trained("one", data_devices=2)  # The same rows a step.
  assert types == {"float32"}
  split, _ = trained("split", data_devices=1, fsdp_devices=2, model_devices=2)
  assert split == pytest.approx(plain, rel=1e-4)
  half, types = trained("half", "bfloat16", data_devices=2)
  assert types == {"bfloat16"}
  assert half == pytest.approx(plain, rel=0.05)


def test_fresh_parameters_are_made_where_they_lie():
  mesh = meshes.mesh_of(SPLIT.mesh)
  model = models.make_decoder(**SIZES)
  one = jnp.ones([1, 1], jnp.int32)
  batch = {"tokens": one, "segments": one, "positions": 0 * one}
  key = jax.random.key(3)
  split = fitting._fresh(model.init, key, batch, mesh)
  places = placement.shardings(split, mesh)
  for x, place in zip(*map(jax.tree.leaves, (split, places)), strict=True):
    assert x.sharding.is_equivalent_to(place, x.ndim)
  alone = fitting._fresh(model.init, key, batch, None)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), alone, split)


def test_too_few_devices_are_named(folder, tmp_path):
  many = LoadConfig(mesh=MeshConfig(model_devices=16))
  with pytest.raises(ValueError, match=r"--model_devices: .* needs 16 devices, there are 8"):
    embedded(folder, tmp_path, many, "bert")
