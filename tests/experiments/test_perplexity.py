"""Perplexity as the language task tells it: exp of the mean nats of a token, in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from experiments import families, problems, texts
from kdjax.data.tokens import encode

DATA = dataclasses.replace(tiny.TEXTS, synthetic_users=60)


@pytest.fixture(scope="module")
def made():
  """The task, a model and params that are far from even odds."""
  task = problems.make_task(DATA, "decoder")
  sizes = families.model_sizes(dataclasses.replace(tiny.STUDENT, model="decoder"), task)
  model = families.make_model("decoder", sizes)
  batch = {name: jnp.asarray(values[:1]) for name, values in task.arrays.items()}
  params = jax.jit(model.init)(jax.random.key(0), batch)
  return task, model.apply, jax.tree.map(lambda x: 4 * x, params)


def nats(logits, labels):
  """Of each label, float64."""
  z = np.asarray(logits, np.float64)
  z -= z.max(axis=-1, keepdims=True)
  log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
  return -np.take_along_axis(log_p, np.asarray(labels)[..., None], axis=-1)[..., 0]


def alone(made, part):
  """Nats and tokens of every text of a part, each read alone, without padding."""
  _, apply, params = made
  run, found = jax.jit(apply), []
  words = texts.tokenizer(DATA)
  for text in texts.load(DATA, labels=False).parts[part].texts:
    size = int(encode(words, [text], max_length=DATA.max_length)["segments"].sum())
    row = encode(words, [text], max_length=size)
    batch = {name: jnp.asarray(row[name]) for name in ("tokens", "segments", "positions")}
    logits = run(params, batch).logits.dense()[0]
    found.append((nats(logits[:-1], row["tokens"][0, 1:]).sum(), size - 1))
  return np.array(found).T


@pytest.mark.parametrize("part", ["valid", "test"])
def test_padding_does_not_count(made, part):
  task, apply, params = made
  total, tokens = alone(made, part)
  assert len(set(tokens)) > 1, "texts of one length have no padding"
  judged = task.judge(apply, params, part)
  perplexity = np.exp(total.sum() / tokens.sum())
  assert judged.scalars["perplexity"] == pytest.approx(perplexity, rel=1e-5)
  np.testing.assert_allclose(judged.per_case["log_likelihood"], -total / tokens, rtol=1e-5)
  # A mean over texts, or one over padding, would be another number.
  assert abs(perplexity - np.exp(np.mean(total / tokens))) > 1e-3 * perplexity


def test_packed_rows_are_as_perplexing(made):
  task, apply, params = made
  total, tokens = alone(made, "train")
  perplexity = np.exp(total.sum() / tokens.sum())
  assert task.arrays["segments"].max() > 1, "no row holds two texts"
  assert (task.arrays["segments"] == 0).any(), "no row is padded"
  labels = task.arrays["labels"]
  outputs = jax.jit(apply)(params, {n: jnp.asarray(x) for n, x in task.arrays.items()})
  assert (labels >= 0).sum() == tokens.sum()
  packed = nats(outputs.logits.dense(), np.maximum(labels, 0))[labels >= 0]
  assert np.exp(packed.mean()) == pytest.approx(perplexity, rel=1e-5)
  batch = {name: jnp.asarray(values) for name, values in task.arrays.items()}
  loss = task.label_term(tiny.FIT, 1.0).loss(outputs, None, batch).compute()
  assert np.exp(float(loss)) == pytest.approx(perplexity, rel=1e-5)
  assert task.judge(apply, params, "train").scalars["perplexity"] == pytest.approx(
    perplexity, rel=1e-5
  )
