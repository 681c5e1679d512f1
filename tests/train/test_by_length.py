"""Texts of like length in batches that are cut to it: less work, the same training."""

import jax
import numpy as np
import optax
import pytest

from kdjax import losses
from kdjax.data import batches
from kdjax.models import make_bert, make_text_cnn, make_text_gru
from kdjax.train import loop, objective, parallel, state, step

ROWS, LONGEST = 90, 16
MAKERS = {
  "bert": lambda **sizes: make_bert(**sizes, num_layers=1, num_heads=2, max_length=LONGEST),
  "text_gru": lambda **sizes: make_text_gru(**sizes, num_layers=1),
  "text_cnn": make_text_cnn,
}


def texts():
  rng = np.random.default_rng(0)
  sizes = np.minimum(rng.geometric(0.12, ROWS), LONGEST)
  real = np.arange(LONGEST)[None] < sizes[:, None]
  return {
    "tokens": np.where(real, rng.integers(0, 19, real.shape), -1).astype(np.int32),
    "segments": real.astype(np.int32),
    "positions": (np.arange(LONGEST) * real).astype(np.int32),
    "labels": rng.integers(0, 2, ROWS).astype(np.int32),
  }


def fit(workdir, family="bert", *, cut=("tokens", "segments", "positions"), num_steps=20, **feed):
  rows, seen = texts(), set()
  lengths = batches.round_lengths(rows["segments"].sum(axis=1), LONGEST, per_octave=2)
  model = MAKERS[family](vocab_size=19, dim=8, head="labels", num_labels=2, dropout=0.0)

  def label_loss(student, teacher, batch):
    del teacher
    seen.add(batch["tokens"].shape[1])  # While it is traced: a length is a program.
    return losses.cross_entropy_loss(student.logits, batch["labels"])

  goal = objective.make_objective(model.apply, [objective.Term("label", label_loss)])
  tx = optax.adamw(1e-2, eps=1e-3)
  start = goal.init(jax.random.key(1), model.init(jax.random.key(0), rows), None, rows)
  seen.clear()
  state_, _ = loop.fit(
    parallel.jit_runner(step.make_train_step(goal, tx)),
    state.init_state(start, tx),
    loop.Feed(rows, 6, seed=3, lengths=lengths, cut=cut, **feed),
    num_steps=num_steps, steps_per_call=4, workdir=workdir, key=jax.random.key(2), progress=False,
  )  # fmt: skip
  return jax.device_get(state_.params), seen, lengths


@pytest.mark.parametrize("family", list(MAKERS))
def test_cut_batches_train_as_padded_ones(tmp_path, family):
  cut, seen, lengths = fit(tmp_path / "cut", family)
  padded, whole, _ = fit(tmp_path / "padded", family, cut=())
  assert whole == {LONGEST}
  assert len(seen) > 2
  assert seen <= set(lengths.tolist())
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), cut, padded)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
  whole, _, _ = fit(tmp_path / "whole")
  fit(tmp_path / "parts", num_steps=7)
  parts, _, _ = fit(tmp_path / "parts")
  jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_streamed_rows_are_not_grouped(tmp_path):
  with pytest.raises(ValueError, match="keep them resident"):
    fit(tmp_path, resident=False)
