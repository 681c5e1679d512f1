"""Makes torch_distill_losses.npz: golden values of torchdistill's and TextBrewer's losses.

The packages are no dependencies of kdjax. Run it where they are installed:
python tests/golden/torch_distill_losses.py
(torch 2.13.0 and numpy; torchdistill 1.1.5 and textbrewer 0.2.1.post1, without dependencies).
Maps are stored channels last, as kdjax has them, and turned round for torch.
"""

import importlib.metadata
import importlib.util
import pathlib
import sys
import types

import numpy as np
import torch
import torch.nn.functional as F


def without_init(package):
  """Lets modules of a package be imported although its own __init__ needs more than they do."""
  spec = importlib.util.find_spec(package)
  module = types.ModuleType(package)
  module.__path__ = list(spec.submodule_search_locations)
  sys.modules[package] = module


without_init("textbrewer")  # Its trainers want tensorboard.
without_init("torchdistill.models")  # Its model zoo wants torchvision.

from textbrewer import losses as brewer  # noqa: E402
from torchdistill.losses import mid_level as torchdistill  # noqa: E402
from torchdistill.models import wrapper  # noqa: E402

rng = np.random.default_rng(30)


def normal(*shape):
  return rng.normal(scale=1.5, size=shape).astype(np.float32)


inputs = {
  "logits_s": normal(6, 7),
  "logits_t": normal(6, 7),
  "map_s": normal(4, 4, 3, 5),
  "map_t": normal(4, 4, 3, 5),
  "first_s": normal(4, 4, 3, 2),
  "first_t": normal(4, 4, 3, 2),
  "large_s": normal(2, 5, 6, 2),
  "large_t": normal(2, 5, 6, 2),
  "vectors_s": normal(5, 8),
  "vectors_t": normal(5, 6),
  "embeddings_s": normal(4, 6),
  "embeddings_t": normal(4, 6),
  "tokens_s": normal(3, 5, 8),
  "tokens_t": normal(3, 5, 8),
  "early_s": normal(3, 5, 4),
  "early_t": normal(3, 5, 4),
  "attention_s": normal(3, 2, 5, 5),
  "attention_t": normal(3, 2, 5, 5),
  "stage_deep": normal(2, 2, 2, 3),
  "stage_shallow": normal(2, 4, 4, 2),
}
inputs["tokens"] = np.arange(5) < np.array([[5], [3], [4]])
inputs["ids"] = np.stack([rng.permutation(16)[:5] for _ in range(4)])
TEMPERATURE = 2.0
inputs["temperature"] = np.float32(TEMPERATURE)

values, gradients, weights = {}, {}, {}
x = {name: torch.tensor(value) for name, value in inputs.items()}


def add(name, student, loss):
  """`loss(leaf)` and its gradient in the input named `student`."""
  leaf = torch.tensor(inputs[student], requires_grad=True)
  value = loss(leaf)
  value.backward()
  values[name], gradients[name] = np.float32(value.item()), leaf.grad.numpy()


def keep(name, tensor):
  weights[name] = tensor.detach().numpy().copy()
  return tensor


def seeded(module):
  """The module with weights of ours, which do not depend on the version of torch."""
  for parameter in module.parameters():
    draw = rng.normal(scale=0.4, size=parameter.shape).astype(np.float32)
    parameter.data = torch.tensor(draw)
  return module


def first(features):
  """Channels first."""
  return features.movedim(-1, 1)


def torch_kernel(name, convolution):
  """Keeps the kernel as [*window, in, out], and the bias; a transposed one is turned round."""
  kernel = convolution.weight
  if isinstance(convolution, torch.nn.ConvTranspose2d):
    kernel = kernel.flip(2, 3).transpose(0, 1)
  keep(f"{name}_kernel", kernel.permute(2, 3, 1, 0))
  if convolution.bias is not None:
    keep(f"{name}_bias", convolution.bias)


def out(tensor):
  return {"x": {"output": tensor}}


IO = ("x", "output", "x", "output")
PAIR = {"pair": {side: {"path": "x", "io": "output"} for side in ("student", "teacher")}}


def pair_loss(loss, teacher):
  """A torchdistill loss as a function of the student's output alone."""
  return lambda student: loss(out(student), out(teacher))


# Losses on logits.
kd = torchdistill.KDLoss(*IO, temperature=TEMPERATURE, beta=1.0)
add("kd", "logits_s", pair_loss(kd, x["logits_t"]))
dist = torchdistill.DISTLoss(*IO, tau=TEMPERATURE)
add("dist", "logits_s", pair_loss(dist, x["logits_t"]))
standard = torchdistill.LogitStdKDLoss(*IO, temperature=TEMPERATURE, beta=1.0)
add("logit_standardization", "logits_s", pair_loss(standard, x["logits_t"]))

# Losses on maps.
map_t = first(x["map_t"])
for mode in ("paper", "code"):
  attention = pair_loss(torchdistill.ATLoss(PAIR, mode=mode), map_t)
  add(f"attention_{mode}", "map_s", lambda z, loss=attention: loss(first(z)))
boundary = pair_loss(torchdistill.AltActTransferLoss(PAIR, margin=1.0, reduction="mean"), map_t)
add("activation_boundary", "map_s", lambda z: boundary(first(z)))
channels = pair_loss(torchdistill.ChSimLoss(PAIR), map_t)
add("channel_similarity", "map_s", lambda z: channels(first(z).contiguous()))
context = torchdistill.HierarchicalContextLoss(*IO)
add(
  "hierarchical_context",
  "large_s",
  lambda z: context(out((first(z), None)), out(first(x["large_t"]))),
)


def factor(z):
  student = {"translator": {"output": first(z)}}
  return torchdistill.FTLoss(p=1)(student, {"paraphraser": {"output": map_t}})


add("factor_transfer", "map_s", factor)


def flow(z):
  """Their matrices, under the paper's squared norm: their own adds up the columns' norms."""
  matrix = torchdistill.FSPLoss.compute_fsp_matrix
  student = matrix(first(x["first_s"]), first(z))
  teacher = matrix(first(x["first_t"]), map_t)
  return ((student - teacher) ** 2).sum((1, 2)).mean()


add("fsp", "map_s", flow)

regressor = seeded(wrapper.Regressor4VID(5, 6, 5, eps=1e-5, init_pred_var=2.0))
for i in range(3):
  torch_kernel(f"vid_{i}", regressor.regressor[2 * i])
keep("vid_variance", regressor.soft_plus_param)
vid = pair_loss(torchdistill.VIDLoss(PAIR), map_t)
add("variational", "map_s", lambda z: vid(regressor(first(z))))


# Losses between examples.
class EuclideanRows(torchdistill.SPKDLoss):
  """Rows of Euclidean length 1, as in the paper: theirs passes p = 1 where it means dim = 1."""

  def matmul_and_normalize(self, z):
    return F.normalize(z @ z.T, dim=1)


relational = {
  "similarity": EuclideanRows("x", "x", reduction="batchmean"),
  "rkd_distance": torchdistill.RKDLoss("x", "x", 1.0, 0.0, reduction="mean"),
  "rkd_angle": torchdistill.RKDLoss("x", "x", 0.0, 1.0, reduction="mean"),
  "probabilistic": torchdistill.PKTLoss(*IO),
}
for name, loss in relational.items():
  add(name, "vectors_s", pair_loss(loss, x["vectors_t"]))
gaussian = {"type": "gaussian", "gamma": 0.4, "max_p": 2}
congruence = torchdistill.CCKDLoss("x", "x", gaussian, reduction="batchmean")
congruence = pair_loss(congruence, F.normalize(x["vectors_t"]))
add("correlation_congruence", "vectors_s", lambda z: congruence(F.normalize(z)))


def contrast(z):
  own, ids = x["ids"][:, 0], x["ids"]
  supplement = {"input": {"pos_idx": own, "contrast_idx": ids}}
  student = {"s": {"output": F.normalize(z)}, "empty": supplement}
  return crd(student, {"t": {"output": F.normalize(x["embeddings_t"])}})[0]


# Sixteen: its table of aliases fails for numbers whose inverse rounds.
crd = torchdistill.CRDLoss("s", "empty", "t", 6, 16, 4, 16)
crd.memory_v1, crd.memory_v2 = (torch.tensor(normal(16, 6) / 4) for _ in range(2))
keep("memory_student", crd.memory_v1)
keep("memory_teacher", crd.memory_v2)
add("crd", "embeddings_s", contrast)
keep("memory_student_after", crd.memory_v1)
keep("memory_teacher_after", crd.memory_v2)

# Learned parts, as outputs for one input.
paraphraser = seeded(wrapper.Paraphraser4FactorTransfer(0.4, 5, uses_bn=False))
for i in range(3):
  torch_kernel(f"encoder_{i}", paraphraser.encoder[2 * i])
  torch_kernel(f"decoder_{i}", paraphraser.decoder[2 * i])
factors = paraphraser.encoder(map_t)
keep("factors", factors.movedim(1, -1))
keep("paraphrased", paraphraser.decoder(factors).movedim(1, -1))

review = {
  "deep": wrapper.AttentionBasedFusion(3, 4, 7, uses_attention=False),
  "shallow": wrapper.AttentionBasedFusion(2, 4, 6, uses_attention=True),
}
for name, fusion in review.items():
  for part, block in (("reduce", fusion.conv1), ("expand", fusion.conv2)):
    block[1] = torch.nn.Identity()  # For the batch normalisation, which kdjax leaves out.
    torch_kernel(f"review_{name}_{part}", seeded(block)[0])
seeded(review["shallow"].attention_conv)
torch_kernel("review_shallow_attend", review["shallow"].attention_conv[0])
deep, residue = review["deep"](first(x["stage_deep"]))
shallow, _ = review["shallow"](first(x["stage_shallow"]), residue, 4)
keep("review_deep", deep.movedim(1, -1))
keep("review_shallow", shallow.movedim(1, -1))

# TextBrewer.
mask, all_tokens = x["tokens"], torch.ones(3, 5)
add("hidden_mse", "tokens_s", lambda z: brewer.hid_mse_loss(z, x["tokens_t"], mask))
add("attention_mse", "attention_s", lambda z: brewer.att_mse_loss(z, x["attention_t"], mask))
add("attention_ce", "attention_s", lambda z: brewer.att_ce_loss(z, x["attention_t"], all_tokens))
entropy = brewer.att_ce_loss(x["attention_t"], x["attention_t"], all_tokens)
values["attention_entropy"] = np.float32(entropy.item())
add("patient", "tokens_s", lambda z: brewer.pkd_loss(z, x["tokens_t"]))
early = [x["early_s"], x["early_t"]]
add(
  "token_fsp",
  "tokens_s",
  lambda z: brewer.fsp_loss([early[0], z], [early[1], x["tokens_t"]], mask),
)


def selectivity(z):
  student, teacher = F.normalize(z, dim=1), F.normalize(x["early_t"], dim=1)
  return brewer.mmd_loss([student, student], [teacher, teacher])


add("selectivity", "tokens_s", selectivity)

if __name__ == "__main__":
  packages = ("torch", "torchdistill", "textbrewer")
  versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
  np.savez_compressed(
    pathlib.Path(__file__).with_suffix(".npz"),
    made_with=np.array(f"{versions}, tests/golden/torch_distill_losses.py"),
    **inputs,
    **{f"value_{name}": value for name, value in values.items()},
    **{f"gradient_{name}": value for name, value in gradients.items()},
    **{f"weight_{name}": value for name, value in weights.items()},
  )
