"""Losses and learned parts against torchdistill and TextBrewer, through stored golden values.

Where a package departs from the paper by a factor, the test says by which one, and why.
"""

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses

NAME = "torch_distill_losses"


@pytest.fixture(scope="module")
def golden():
  return golden_files.load(NAME)


def directions(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def standardized(z, g):
  """They divide by the deviation with one degree of freedom less, and leave out T**2."""
  classes, temperature = z.shape[-1], float(g["temperature"])
  warmer = temperature * (classes / (classes - 1)) ** 0.5
  loss = losses.standardized_kl_loss(z, g["logits_t"], temperature=warmer)
  return loss / warmer**2


def attention_code(z, g):
  """The mean of squared differences over the positions, in place of the paper's norm."""
  distance = losses.attention_transfer_loss(z, g["map_t"], reduce_fn=None)
  return jnp.mean(distance**2) / (z.shape[1] * z.shape[2])


def channel_similarity(z, g):
  """A sum over C**2 entries and B examples, divided by C B**2."""
  loss = losses.channel_correlation_loss(z, g["map_t"], unit_rows=True)
  return loss * z.shape[-1] / len(z)


def variational(z, g):
  helper = losses.variational_regressor(5, 5, hidden_dim=6)
  layers = [{"kernel": g[f"weight_vid_{i}_kernel"][0, 0], "bias": 0.0} for i in range(3)]
  mean, variance = helper.apply({"mean": layers, "variance": g["weight_vid_variance"]}, z)
  return losses.variational_loss(mean, variance, g["map_t"])


def probabilistic(z, g):
  """They let each example be its own neighbour, and divide by B**2 in place of B.

  KL groups: with itself or another, and then which other; the latter is the published loss.
  """

  def others(x):
    unit = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    alike = jnp.sum((unit @ unit.T + 1) / 2, -1) - 1
    return alike / (1 + alike)

  s, t = others(z), others(g["vectors_t"])
  with_itself = t * jnp.log(t / s) + (1 - t) * jnp.log((1 - t) / (1 - s))
  each = losses.probabilistic_transfer_loss(z, g["vectors_t"], reduce_fn=None)
  return jnp.mean(with_itself + t * each) / len(z)


def congruence(z, g):
  """The norm of the difference over B**2, in place of its square."""
  square = losses.correlation_congruence_loss(z, g["vectors_t"]) * len(z) ** 2
  return jnp.sqrt(square) / len(z) ** 2


def crd(z, g):
  """Both sides, each with the normaliser of the first batch."""

  def side(embeddings, memory):
    z = losses.memory_normalizer(embeddings, memory, g["ids"])
    return losses.crd_loss(embeddings, memory, g["ids"], normalizer=z)

  teacher = side(g["embeddings_t"], g["weight_memory_student"])
  return side(z, g["weight_memory_teacher"]) + teacher


def attention_mse(z, g):
  """A mean over all pairs of tokens, so that long sequences weigh more, and over heads."""
  tokens = g["tokens"]
  keys = np.broadcast_to(tokens[:, None, None], z.shape)
  queries = np.broadcast_to(tokens[:, None], z.shape[:-1])
  options = {"support": keys, "where": queries, "reduce_fn": None}
  each = losses.attention_mse_loss(z, g["attention_t"], **options)
  lengths = tokens.sum(-1)
  return jnp.sum(each * lengths[:, None, None]) / np.sum(lengths**2) / z.shape[1]


def selectivity(z, g):
  """The mean over pairs of positions: NST with the polynomial kernel is the distance of Grams."""
  return losses.neuron_selectivity_loss(z, g["early_t"]) / z.shape[1] ** 2


# Name in the golden file -> the input it is a function of, and what ours must equal.
OURS = {
  # They leave out T**2.
  "kd": ("logits_s", lambda z, g: losses.kl_loss(z, g["logits_t"], temperature=2.0) / 4),
  # They multiply by T**2, which the paper does not.
  "dist": ("logits_s", lambda z, g: losses.dist_loss(z, g["logits_t"], temperature=2.0) * 4),
  "logit_standardization": ("logits_s", standardized),
  "attention_paper": ("map_s", lambda z, g: losses.attention_transfer_loss(z, g["map_t"])),
  "attention_code": ("map_s", attention_code),
  # They add up channels and positions, 4 * 3 * 5 numbers an example.
  "activation_boundary": (
    "map_s",
    lambda z, g: losses.activation_boundary_loss(z, g["map_t"]) * 60,
  ),
  "channel_similarity": ("map_s", channel_similarity),
  "hierarchical_context": (
    "large_s",
    lambda z, g: losses.hierarchical_context_loss(z, g["large_t"]),
  ),
  # They take the mean of 4 * 3 * 5 absolute differences, the paper their sum.
  "factor_transfer": ("map_s", lambda z, g: losses.factor_transfer_loss(z, g["map_t"]) / 60),
  "fsp": (
    "map_s",
    lambda z, g: losses.fsp_loss(g["first_s"], z, g["first_t"], g["map_t"]),
  ),
  "variational": ("map_s", variational),
  # Theirs with Euclidean rows, as in the paper: the package divides them by their L1 norm.
  "similarity": (
    "vectors_s",
    lambda z, g: losses.similarity_preserving_loss(z, g["vectors_t"]),
  ),
  # They count the pairs and triplets of equal examples too, whose difference is 0.
  "rkd_distance": (
    "vectors_s",
    lambda z, g: losses.rkd_distance_loss(z, g["vectors_t"]) * (5 * 4) / 5**2,
  ),
  "rkd_angle": (
    "vectors_s",
    lambda z, g: losses.rkd_angle_loss(z, g["vectors_t"]) * (5 * 4 * 3) / 5**3,
  ),
  "probabilistic": ("vectors_s", probabilistic),
  "correlation_congruence": ("vectors_s", congruence),
  "crd": ("embeddings_s", crd),
  "hidden_mse": (
    "tokens_s",
    lambda z, g: losses.hint_loss(z, g["tokens_t"], where=g["tokens"]),
  ),
  "attention_mse": ("attention_s", attention_mse),
  # The cross-entropy is the KL plus the entropy of the teacher's attention.
  "attention_ce": (
    "attention_s",
    lambda z, g: losses.kl_loss(z, g["attention_t"]) + g["value_attention_entropy"],
  ),
  "patient": ("tokens_s", lambda z, g: losses.patient_loss(z[:, 0], g["tokens_t"][:, 0])),
  # They take the mean over the 4 * 8 entries, the paper their sum.
  "token_fsp": (
    "tokens_s",
    lambda z, g: (
      losses.fsp_loss(g["early_s"], z, g["early_t"], g["tokens_t"], support=g["tokens"]) / 32
    ),
  ),
  "selectivity": ("tokens_s", selectivity),
}


@pytest.mark.parametrize("name", OURS)
def test_value_and_gradient_equal_the_package(name, golden):
  student, ours = OURS[name]
  value, gradient = jax.value_and_grad(ours)(jnp.asarray(golden[student]), golden)
  np.testing.assert_allclose(value, golden[f"value_{name}"], rtol=2e-5)
  scale = np.abs(golden[f"gradient_{name}"]).max()
  np.testing.assert_allclose(
    gradient / scale, golden[f"gradient_{name}"] / scale, rtol=2e-4, atol=2e-5
  )


def test_golden_file_holds_no_more_and_no_less(golden):
  assert {key[9:] for key in golden if key.startswith("gradient_")} == set(OURS)
  assert str(golden["made_with"]).startswith("torch ")


def test_memory_moves_as_in_torchdistill(golden):
  bank = losses.MemoryBank(golden["weight_memory_student"], golden["weight_memory_teacher"])
  embeddings = directions(golden["embeddings_s"]), directions(golden["embeddings_t"])
  moved = losses.update_memory(bank, *embeddings, golden["ids"][:, 0], momentum=0.5)
  np.testing.assert_allclose(moved.student, golden["weight_memory_student_after"], atol=1e-6)
  np.testing.assert_allclose(moved.teacher, golden["weight_memory_teacher_after"], atol=1e-6)


def test_factor_encoder_and_decoder_equal_torchdistill(golden):
  def params(part):
    names = ("kernel", "bias")
    return [{name: golden[f"weight_{part}_{i}_{name}"] for name in names} for i in range(3)]

  encoder, decoder = losses.factor_encoder(5, 2), losses.factor_decoder(2, 5)
  for helper, part in ((encoder, "encoder"), (decoder, "decoder")):
    expected = jax.tree.map(jnp.shape, params(part))
    assert jax.tree.map(jnp.shape, helper.init(jax.random.key(0))) == expected
  factors = encoder.apply(params("encoder"), jnp.asarray(golden["map_t"]))
  np.testing.assert_allclose(factors, golden["weight_factors"], rtol=1e-4, atol=1e-5)
  paraphrased = decoder.apply(params("decoder"), factors)
  np.testing.assert_allclose(paraphrased, golden["weight_paraphrased"], rtol=1e-4, atol=1e-5)


def test_reviewer_equals_torchdistill(golden):
  helper = losses.reviewer([2, 3], [6, 7], hidden_dim=4)

  def params(part, stages):
    kernels = [golden[f"weight_review_{stage}_{part}_kernel"] for stage in stages]
    # Theirs leave the bias to the batch normalisation, except in the gates.
    biases = [golden.get(f"weight_review_{stage}_{part}_bias", 0.0) for stage in stages]
    kernels = [k[0, 0] if k.shape[0] == 1 else k for k in kernels]
    return [{"kernel": k, "bias": jnp.asarray(b)} for k, b in zip(kernels, biases, strict=True)]

  both = ("shallow", "deep")
  own = {
    "reduce": params("reduce", both),
    "attend": params("attend", ("shallow",)),
    "expand": params("expand", both),
  }
  stages = [jnp.asarray(golden[f"stage_{stage}"]) for stage in both]
  for stage, output in zip(both, helper.apply(own, stages), strict=True):
    np.testing.assert_allclose(output, golden[f"weight_review_{stage}"], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # The packages' own are not ours to mend.
def test_golden_file_is_what_its_script_makes(golden):
  golden_files.check_script(
    NAME,
    golden,
    packages=("torch", "torchdistill", "textbrewer"),
    groups=("values", "gradients", "weights"),
  )
