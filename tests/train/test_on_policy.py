"""A student that writes texts of its own while it trains, for its teacher to judge."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax.data import batches
from kdjax.losses.catalog import catalog_cross_entropy_loss, catalog_kl_loss
from kdjax.models import generate
from kdjax.models.decoder import Cached
from kdjax.reduce import totals
from kdjax.train import loop, make_sampler, objective, parallel, placement, state, step
from kdjax.train.on_policy import beginnings
from kdjax.types import FactoredLogits, Outputs

VOCAB, LENGTH, PROMPT, STOP = 13, 12, 3, 12
KEY = jax.random.key(5)


def apply(params, batch, *, key=None):
  """The token that follows is told by the last one: enough to write, and quick to compile."""
  del key
  query = params["token"][jnp.maximum(batch["tokens"], 0)]
  return Outputs(FactoredLogits(query, params["next"]), {})


def init(key, width):
  first, second = jax.random.split(key)
  shape = (VOCAB, width)
  return {"token": jax.random.normal(first, shape), "next": jax.random.normal(second, shape)}


CACHED = Cached(
  lambda count, length: jnp.zeros([count, length]),
  lambda params, batch, cache: (apply(params, batch), cache),
)


@functools.cache
def rows():
  """Packed rows of texts of 2 to 9 tokens that end in STOP, eight of them."""
  rng = np.random.default_rng(0)
  sizes = rng.integers(2, 10, 40)
  tokens = np.concatenate([np.append(rng.integers(0, STOP, size - 1), STOP) for size in sizes])
  offsets = np.concatenate([[0], np.cumsum(sizes)])
  packed, _ = batches.pack_rows(tokens.astype(np.int32), offsets, length=LENGTH)
  return {"tokens" if name == "items" else name: x[:8] for name, x in packed.items()}


def label_loss(student, teacher, batch):
  del teacher
  labels = batch["labels"]
  where = (labels >= 0) & ~batch.get("written", jnp.zeros(len(labels), bool))[:, None]
  labels = jnp.maximum(labels, 0)
  return catalog_cross_entropy_loss(student.logits, labels, where=where, reduce_fn=totals)


def match(student, teacher, batch):
  where = batch["labels"] >= 0
  return catalog_kl_loss(student.logits, teacher.logits, where=where, reduce_fn=totals)


@functools.cache
def make():
  terms = [objective.Term("label", label_loss, 0.5), objective.Term("kl", match, 0.5)]
  goal = objective.make_objective(apply, terms, teacher_apply=apply)
  batch = jax.tree.map(jnp.asarray, rows())
  other = init(jax.random.key(1), 8)
  params = goal.init(KEY, init(jax.random.key(2), 4), other, batch)
  return goal, params, other, batch


def sampler(share=1.0, **options):
  return make_sampler(CACHED, share=share, prompt_tokens=PROMPT, stop=(STOP,), **options)


@functools.cache
def one_step(share=None, **options):
  goal, params, teacher, batch = make()
  tx = optax.sgd(0.1)
  sample = None if share is None else sampler(share)
  made = jax.jit(step.make_train_step(goal, tx, sample=sample, **options))
  return made(state.init_state(params, tx), teacher, batch, KEY)


@functools.cache
def written(share=1.0):
  """What the student makes of the batch in the first step, and with which key."""
  _, params, _, batch = make()
  own = jax.random.fold_in(jax.random.fold_in(KEY, 0), 2)
  return jax.device_get(jax.jit(sampler(share))(params["student"], batch, own)), own


def close(found, expected, **tolerance):
  jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, **tolerance), found, expected)


def test_rows_keep_their_prompts_and_go_on_as_generate_does():
  _, params, _, batch = make()
  own, key = written()
  _, text_key, write_key = jax.random.split(key, 3)
  begin = functools.partial(beginnings, prompt_tokens=PROMPT)
  prompts = jax.jit(begin)(batch, text_key)
  write = functools.partial(generate, CACHED, max_new=LENGTH - PROMPT, stop=(STOP,))
  tokens = jax.device_get(jax.jit(write)(params["student"], prompts, write_key))
  given, drawn = rows(), []
  for row in range(8):
    prompt = [t for t in np.asarray(prompts["tokens"])[row].tolist() if t >= 0]
    texts = [
      given["tokens"][row][given["segments"][row] == s].tolist()
      for s in range(1, given["segments"][row].max() + 1)
    ]
    drawn.append([text[:PROMPT] for text in texts].index(prompt))
    new = [t for t in tokens[row].tolist() if t >= 0]
    text = prompt + new
    pad = [-1] * (LENGTH - len(text))
    assert own["tokens"][row].tolist() == text + pad
    assert own["segments"][row].tolist() == [1] * len(text) + [0] * len(pad)
    assert own["positions"][row].tolist()[: len(text)] == list(range(len(text)))
    # The last prompt token predicts the first that was written.
    assert own["labels"][row].tolist() == [-1] * (len(prompt) - 1) + new + [-1, *pad]
    assert STOP not in new[:-1]
  assert len(set(drawn)) > 1  # Not always the first, which is the longest.
  assert own["written"].all()


def test_no_share_is_the_off_policy_step():
  jax.tree.map(np.testing.assert_array_equal, one_step(), one_step(0.0))


def test_the_step_learns_from_what_was_written_as_from_given_texts():
  """Labels count nothing of it; no gradient passes through the writing, or to the teacher."""
  goal, params, teacher, _ = make()
  own, _ = written()

  def value(params, teacher):
    return goal.means(params, teacher, own, None, {})[0]["kl"].compute()

  by_student, by_teacher = jax.jit(jax.grad(value, argnums=(0, 1)))(params, teacher)
  assert not any(g.any() for g in jax.tree.leaves(by_teacher))
  after, metrics = one_step(1.0)
  expected = jax.tree.map(lambda p, g: p - 0.1 * 0.5 * g, params, by_student)
  close(after.params, expected, atol=1e-6)
  assert float(metrics["label"].count) == 0
  assert float(metrics["kl"].count) == (own["labels"] >= 0).sum() > 0


def test_half_the_steps_are_the_students():
  _, params, _, batch = make()
  keys = jax.random.split(KEY, 64)
  own = jax.jit(jax.vmap(lambda key: sampler(0.5)(params["student"], batch, key)["written"]))(keys)
  own = np.asarray(own)
  assert 20 <= own.all(axis=1).sum() == own.any(axis=1).sum() <= 44


def test_micro_batches_and_devices_are_the_whole_batch():
  whole = one_step(1.0)
  close(one_step(1.0, accumulate=4), whole, rtol=1e-5, atol=1e-6)
  goal, params, teacher, _ = make()
  tx = optax.sgd(0.1)
  mesh = placement.make_mesh(data=8)
  runner = parallel.jit_runner(step.make_train_step(goal, tx, sample=sampler()), mesh=mesh)
  place = lambda tree: jax.device_put(tree, placement.shardings(tree, mesh))  # noqa: E731
  start = place(state.init_state(jax.tree.map(jnp.array, params), tx))
  many, _ = runner(start, place(teacher), rows(), np.arange(8, dtype=np.int32)[None], 1, KEY)
  close(many.params, whole[0].params, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
  goal, params, teacher, _ = make()
  tx = optax.adam(0.01)
  runner = parallel.jit_runner(step.make_train_step(goal, tx, sample=sampler(0.5)))

  def fit(name, num_steps):
    feed = loop.Feed(rows(), 4, seed=1)
    options = {"num_steps": num_steps, "key": KEY, "workdir": tmp_path / name, "progress": False}
    start = state.init_state(jax.tree.map(jnp.array, params), tx)
    return jax.device_get(loop.fit(runner, start, feed, teacher_params=teacher, **options)[0])

  whole = fit("whole", 6)
  fit("parts", 4)
  jax.tree.map(np.testing.assert_array_equal, fit("parts", 6), whole)


def test_what_is_wrong_is_named():
  with pytest.raises(ValueError, match="share=2 lies in"):
    make_sampler(CACHED, share=2)
  with pytest.raises(ValueError, match="prompt_tokens=0 is at least 1"):
    make_sampler(CACHED, prompt_tokens=0)
  _, params, _, batch = make()
  with pytest.raises(ValueError, match="prompt_tokens=12 fill rows of 12"):
    make_sampler(CACHED, prompt_tokens=12)(params["student"], batch, KEY)
