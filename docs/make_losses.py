"""Writes docs/losses.md from the docstrings of the losses, and what to say beside them.

python -m docs.make_losses
"""

import inspect
import pathlib
import re

from absl import app

from kdjax import losses

PAGE = pathlib.Path(__file__).with_name("losses.md")

# Section -> what one has there, and when to reach for each loss. Every public loss stands once.
SECTIONS: dict[str, dict[str, str]] = {
  "Logits of classes, tokens or items": {
    "kl_loss": "The default of distillation; a temperature of 1 for large vocabularies, 2 to 4 for "
    "few classes.",
    "reverse_kl_loss": "A student too small for all modes of the teacher keeps to some.",
    "jensen_shannon_loss": "Between the two KLs, and bounded; on-policy language models (GKD).",
    "skew_kl_loss": "Forward KL whose gradient stays small where the student says impossible.",
    "skew_reverse_kl_loss": "Reverse KL, likewise; the stronger of the two in DistiLLM.",
    "total_variation_loss": "When agreement of decisions counts, as in speculative decoding.",
    "cosine_probability_loss": "A bounded distance that looks at likely classes only.",
    "logit_mse_loss": "Regression of logits: the limit of KL at high temperature.",
    "standardized_kl_loss": "Teacher and student logits live on different scales.",
    "dist_loss": "A much stronger teacher: match the order of preferences, not probabilities.",
    "decoupled_loss": "Classification: the teacher is so sure that KL hides the other classes.",
    "normalized_decoupled_loss": "The same, with the target's part as a soft label.",
    "bernoulli_kl_loss": "Clicks and multi-label classes: one binary decision a logit.",
    "catalog_kl_loss": "KL over a whole catalogue or vocabulary, without the matrix of logits.",
    "catalog_reverse_kl_loss": "Reverse KL over a whole catalogue, likewise.",
    "catalog_jensen_shannon_loss": "Between the two, likewise.",
    "catalog_distillation_loss": "The same with cross-entropy on the labels in one sweep: the "
    "default of `experiments.distill` for sequence models.",
  },
  "Sparse teachers, cached or sampled": {
    "top_k_kl_loss": "The teacher's k best and its exact tail are on disk.",
    "top_k_reverse_kl_loss": "The same, mode-seeking.",
    "sampled_cross_entropy_loss": "A few draws of the teacher a position, and unbiased gradients.",
    "catalog_top_k_kl_loss": "As `top_k_kl_loss`, over a catalogue without the matrix of logits.",
    "catalog_top_k_reverse_kl_loss": "As `top_k_reverse_kl_loss`, likewise.",
    "catalog_sampled_cross_entropy_loss": "As `sampled_cross_entropy_loss`, likewise.",
    "catalog_cached_distillation_loss": "With cross-entropy on the labels in one sweep: default of "
    "`experiments.distill --teacher_cache` at a temperature of 1.",
  },
  "Sequences of tokens": {
    "sequence_loss": "Only what the teacher wrote is known, not its probabilities.",
    "policy_loss": "The student learns from what it writes itself (MiniLLM).",
    "universal_logit_loss": "Teacher and student have different tokenizers.",
    "ctc_loss": "Speech and other frames without alignment.",
  },
  "Scores of candidates: recommenders and search": {
    "listnet_loss": "The teacher scores a short list; its probabilities matter.",
    "listmle_loss": "Only the teacher's order is to be trusted.",
    "plackett_luce_loss": "Its order, as far as it is sure of it.",
    "relaxed_ranking_loss": "Top of a large catalogue: order the interesting, the rest below (RRD, "
    "DCD).",
    "ranknet_loss": "Soft preferences between pairs.",
    "pairwise_hinge_loss": "Pairs with a margin; noisy scores.",
    "lambda_loss": "NDCG is what will be judged.",
    "margin_mse_loss": "Search: a cross-encoder scored a positive and negatives for each query.",
    "ranking_distillation_loss": "The teacher's best items as weighted positives (RD).",
    "collaborative_loss": "Soft clicks on items sampled by rank (CD, BD).",
    "stratified_pair_loss": "The teacher favours the popular and the student should not (UnKD).",
    "importance_ranking_loss": "A language model recommends, and is not always right (DLLM2Rec).",
  },
  "Features": {
    "hint_loss": "The default; with `projector` where widths differ, with `experts` for DE.",
    "cosine_feature_loss": "Directions matter, lengths do not: embeddings for retrieval.",
    "patient_loss": "[CLS] states of a BERT, layer by layer.",
    "variational_loss": "Some channels of the teacher cannot be known; learn which.",
    "attention_mse_loss": "Transformers with as many heads (TinyBERT).",
    "attention_relation_loss": "Transformers of any width and number of heads (MiniLM).",
    "self_relation_loss": "The same, of values (MiniLM), or of any feature with itself.",
    "attention_transfer_loss": "Convolutional maps: where the teacher looks.",
    "fsp_loss": "How two layers go together: the way, not the stations.",
    "channel_correlation_loss": "Channels of a map and their correlations (ICKD).",
    "neuron_selectivity_loss": "What each neuron fires for (NST).",
    "factor_transfer_loss": "Compressed factors of the teacher (`factor_encoder`).",
    "activation_boundary_loss": "On and off only: initialising a student before training.",
    "overhaul_loss": "Convolutional features before the ReLU (OFD).",
    "hierarchical_context_loss": "Several stages at once, fused by `reviewer` (ReviewKD).",
    "cka_loss": "Widths differ, and no projector should be learned.",
  },
  "Relations between examples": {
    "rkd_distance_loss": "Embeddings whose distances matter, of any width.",
    "rkd_angle_loss": "The same by angles; often with `rkd_distance_loss`.",
    "similarity_preserving_loss": "Which examples of the batch excite the teacher alike.",
    "correlation_congruence_loss": "Similarities through a kernel.",
    "probabilistic_transfer_loss": "Neighbourhoods as probabilities: retrieval.",
    "topology_loss": "Recommenders: all user and item similarities (FTD).",
    "group_topology_loss": "A student too small for all of them: groups first (HTD).",
    "info_nce_loss": "Each student embedding should find its teacher's in the batch.",
    "crd_loss": "The same against thousands of negatives in memory.",
  },
  "Supervised partners": {
    "cross_entropy_loss": "Labels are classes.",
    "soft_cross_entropy_loss": "Labels are distributions: mixed, refined, annotated by many.",
    "binary_cross_entropy_loss": "Clicks, and several labels at once.",
    "catalog_cross_entropy_loss": "The next item of a whole catalogue, without the matrix.",
    "sampled_softmax_loss": "The same for catalogues too large even for that.",
    "nce_loss": "The same, with a normaliser that is not needed at serving.",
    "bpr_loss": "A positive against sampled negatives.",
    "contrastive_loss": "Embeddings by class.",
  },
}

PICKER = (
  ("the teacher's logits over a few classes", "`kl_loss`, `decoupled_loss`, `dist_loss`"),
  ("both models' factored logits over a catalogue", "`catalog_distillation_loss`"),
  ("the teacher's best items a user, and no scores", "`relaxed_ranking_loss`"),
  ("the teacher's scores of a candidate list", "`listnet_loss`, `margin_mse_loss`"),
  ("teacher embeddings only", "`cosine_feature_loss`, `info_nce_loss`, `rkd_distance_loss`"),
  ("its hidden states", "`hint_loss` with a `projector`, `self_relation_loss`"),
  ("its top-k probabilities on disk", "`top_k_kl_loss`, over a catalogue `catalog_top_k_kl_loss`"),
  ("text that it wrote", "`sequence_loss`"),
  ("click probabilities", "`bernoulli_kl_loss`"),
)

# Independent packages that the tests compare with, beside the float64 oracle that every loss has.
PACKAGES = {
  "activation_boundary_loss": "torchdistill",
  "attention_mse_loss": "TextBrewer",
  "attention_transfer_loss": "torchdistill",
  "bernoulli_kl_loss": "torch",
  "binary_cross_entropy_loss": "torch, optax",
  "bpr_loss": "torch",
  "catalog_cross_entropy_loss": "liger-kernel",
  "catalog_distillation_loss": "liger-kernel",
  "channel_correlation_loss": "torchdistill",
  "correlation_congruence_loss": "torchdistill",
  "crd_loss": "torchdistill",
  "cross_entropy_loss": "torch, optax",
  "dist_loss": "torchdistill, scipy",
  "factor_transfer_loss": "torchdistill",
  "fsp_loss": "torchdistill, TextBrewer",
  "hierarchical_context_loss": "torchdistill",
  "hint_loss": "TextBrewer",
  "jensen_shannon_loss": "scipy, trl",
  "kl_loss": "torch, torchdistill, TextBrewer, trl",
  "lambda_loss": "rax",
  "listmle_loss": "rax",
  "listnet_loss": "rax",
  "logit_mse_loss": "torch",
  "neuron_selectivity_loss": "TextBrewer",
  "pairwise_hinge_loss": "rax",
  "patient_loss": "TextBrewer",
  "probabilistic_transfer_loss": "torchdistill",
  "ranknet_loss": "rax",
  "reverse_kl_loss": "trl",
  "rkd_angle_loss": "torchdistill",
  "rkd_distance_loss": "torchdistill",
  "similarity_preserving_loss": "torchdistill",
  "standardized_kl_loss": "torchdistill",
  "universal_logit_loss": "trl",
  "variational_loss": "torchdistill",
}


def section_of(name: str, heading: str) -> str:
  """One section of a docstring, its lines joined."""
  text = inspect.getdoc(getattr(losses, name)) or ""
  found = re.search(rf"^{heading}:\n(.*?)(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE)
  return " ".join(found.group(1).split()) if found else ""


def needs(name: str) -> str:
  """What stands before the options of a loss."""
  parameters = inspect.signature(getattr(losses, name)).parameters.values()
  before = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
  return ", ".join(f"`{p}`" for p in before)


def entry(name: str, when: str) -> str:
  """Name, formula, what it needs, when, paper and oracle of one loss."""
  text = inspect.getdoc(getattr(losses, name)) or ""
  summary = text.split("\n")[0]
  formulas = re.findall(r"\$\$.*?\$\$", text, re.DOTALL)
  checked = "float64 NumPy oracle" + (f"; {PACKAGES[name]}" if name in PACKAGES else "")
  return "\n\n".join(
    [
      f"### `{name}`",
      f"{summary} *{when}*",
      *formulas,
      f"- needs {needs(name)}\n- from {section_of(name, 'Reference')}\n- checked by {checked}",
    ]
  )


def page() -> str:
  """The whole page."""
  public = [name for name in losses.__all__ if name.endswith("_loss")]
  checked = [name for name in public if name in PACKAGES]
  parts = [
    "# Losses",
    "Made from the docstrings by `python -m docs.make_losses`; do not edit.",
    f"{len(public)} losses, each with an oracle in float64 NumPy written from its paper, "
    f"{len(checked)} also compared with an independent package. All take `where` and `reduce_fn` "
    "(see `kdjax.reduce`), return float32, and send no gradient to the teacher.",
    "## Which one?",
    "| you have | use |\n|---|---|\n" + "\n".join(f"| {a} | {b} |" for a, b in PICKER),
  ]
  for heading, entries in SECTIONS.items():
    parts += [f"## {heading}", *(entry(name, when) for name, when in entries.items())]
  return "\n\n".join(parts) + "\n"


def main(argv):
  """Writes the page."""
  del argv
  PAGE.write_text(page(), encoding="utf-8")
  print(f"wrote {PAGE}")


if __name__ == "__main__":
  app.run(main)
