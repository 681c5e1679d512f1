"""The speech task: what was said in a recording, character by character (speech_gru)."""

import functools
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from experiments import logit_terms, loss_terms
from experiments.config import DataConfig
from experiments.loss_view import DenseLogits, View
from experiments.tasks import Judgement, Task, label_loss_of, predict
from kdjax import losses, metrics
from kdjax.data.speech import SpeechDataset, load_speech, make_speech
from kdjax.reduce import totals
from kdjax.train.objective import Term
from kdjax.types import Array, Batch


@functools.lru_cache(maxsize=2)
def load(config: DataConfig) -> SpeechDataset:
  """The recordings that --dataset names: a folder of wav files, or `synthetic`.

  Raises:
    DataError: naming the file and the mend.
  """
  if config.dataset == "synthetic":
    return make_speech(config.synthetic_users, seed=config.data_seed)
  return load_speech(config.dataset, valid_fraction=config.valid_fraction)


def describe(dataset: SpeechDataset) -> str:
  """One line: how many recordings in which part, how long, of which characters."""
  counts = ", ".join(f"{name} {len(part.labels):,}" for name, part in dataset.parts.items())
  longest = dataset.parts["train"].segments.shape[1] * 0.02
  characters = "".join(dataset.characters)
  return f"recordings of up to {longest:.1f} s in {characters!r} | {counts} | {dataset.note}"


def make_task(dataset: SpeechDataset, family: str) -> Task:
  """The speech task: `ctc_loss` on transcripts; a student learns the teacher's frames."""
  rows = {name: part._asdict() for name, part in dataset.parts.items()}
  inputs = {name: _inputs(part) for name, part in rows.items()}
  test = inputs["test"]

  def judge(apply, params, part) -> Judgement:
    logits, real = predict(apply, params, inputs[part], size=64), rows[part]["segments"] > 0
    labels = rows[part]["labels"]
    truth = [label[label > 0].tolist() for label in labels]
    found = metrics.ctc_decode(logits, real)
    wrong = np.array([metrics.edit_distance(*pair) for pair in zip(found, truth, strict=True)])
    loss = losses.ctc_loss(
      jnp.asarray(logits),
      jnp.asarray(labels),
      frame_where=jnp.asarray(real),
      label_where=jnp.asarray(labels > 0),
      reduce_fn=None,
    )
    per_case = {"accuracy": (wrong == 0).astype(np.float64), "log_loss": np.float64(loss)}
    rate = float(wrong.sum() / sum(map(len, truth)))
    return Judgement(
      per_case,
      {"character_error_rate": rate},
      None,
      lambda cases: jnp.asarray(np.concatenate([logits[i][real[i]] for i in cases])),
      None,
    )

  return Task(
    name="speech",
    arrays=rows["train"],
    num_examples=len(rows["train"]["labels"]),
    sizes={"num_classes": 1 + len(dataset.characters)},
    augment=lambda fit: None,
    label_term=lambda fit, weight: Term(
      label_loss_of(fit, "ctc", ("ctc",), family), label_loss, weight
    ),
    distill_term=lambda distill, fit: logit_terms.make_term(distill, _real),
    metric="accuracy",
    judge=judge,
    serve=lambda apply: lambda params, batch: apply(params, batch).logits,
    request=lambda count: {
      name: np.resize(values, (count, *values.shape[1:])) for name, values in test.items()
    },
    flag_terms=lambda distill, fit, **counts: loss_terms.make_terms(
      loss_terms.SPEECH, make_view(len(rows["train"]["labels"])), distill, **counts
    ),
    valid=rows["valid"],
  )


def _inputs(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """What a model reads of them."""
  return {name: rows[name] for name in ("frames", "segments")}


def label_loss(student, teacher, batch):
  """CTC of the transcript."""
  del teacher
  return losses.ctc_loss(
    student.logits,
    batch["labels"],
    frame_where=_real(batch),
    label_where=batch["labels"] > 0,
    reduce_fn=totals,
  )


def make_view(num_rows: int) -> View:
  """How --distill_losses reads it: positions are frames of sound, whose classes nobody knows."""

  def unknown(batch: Batch) -> Array:
    return jnp.zeros_like(batch["segments"])

  return View(
    logits=lambda outputs, batch: DenseLogits(outputs.logits),
    labels=unknown,
    items=unknown,
    where=_real,
    real=_real,
    num_rows=num_rows,
  )


def _real(batch: Batch) -> Array:
  """Frames of sound."""
  return batch["segments"] > 0
