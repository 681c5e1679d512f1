"""The options that the experiments share, as frozen dataclasses."""

import dataclasses
from typing import Literal

from kdjax.flags import group, option

CheckpointDtype = Literal["float32", "bfloat16", "as_stored"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which interaction log, and how it is prepared and split."""

  dataset: str = option(
    "synthetic",
    "A file or folder holding an interaction log (for a resnet a folder of idx images, for a "
    "speech_gru a folder of wav files with a metadata.csv of file_name and transcription, for text "
    "models a table of texts and labels, or a folder with train.tsv and test.tsv; for search a folder "
    "of BEIR or of Cranfield), "
    "'tfds:<name>/<config>', or 'synthetic', the embedded generator.",
  )
  format: Literal[
    "auto", "csv", "movielens", "sasrec", "sequences", "json_lines", "recbole", "parquet"
  ] = option("auto", "The file's format; 'auto' tells it from names and contents.")
  separator: str = option("", "Field separator of a CSV; found by itself when not given.")
  user_column: str = option(
    "", "Name of the user column; well-known names are found by themselves, here and below."
  )
  item_column: str = option("", "Name of the item column.")
  timestamp_column: str = option("", "Name of the time column (seconds).")
  rating_column: str = option("", "Name of the rating column.")
  label_column: str = option("", "Name of the label column: clicks (0 or 1), or classes of texts.")
  text_column: str = option("", "Name of the text column.")
  objective: Literal["auto", "masked"] = option(
    "auto",
    "What is learned of texts. auto: their labels, by a decoder the next token; masked: tokens of "
    "them that are hidden (bert), which needs no labels.",
  )
  tokenizer: str = option(
    "",
    "Texts: a tokenizer.json, or a checkpoint folder with one; learned from the training texts when "
    "not given. Where it puts nothing behind texts, those of a decoder end with the eos_token_id of "
    "the folder's generation_config.json or config.json.",
  )
  vocab_size: int = option(8000, "Tokens at most of a tokenizer that is learned.", lower=300)
  items_path: str = option("", "A file of item attributes, where it is not beside the log.")
  prepared_dir: str = option(
    "",
    "Logs and texts: a folder where they are kept, prepared, with the rows made of them, and "
    "memory-mapped from: made by the first run (by the first of several processes), read piece by "
    "piece by all after.",
  )
  min_rating: float | None = option(None, "Drop events rated below this.")
  label_threshold: float | None = option(
    None, "Click models: label 1 where the rating is at least this (when there is no label column)."
  )
  k_core: int = option(0, "Keep only users and items with this many events, repeatedly.", lower=0)
  deduplicate: Literal["exact", "pair", "none"] = option(
    "exact",
    "exact keeps the first of events with the same user, item and time; pair a user's first event "
    "with an item; none keeps all.",
  )
  min_sequence: int = option(
    4, "Users with fewer events stay in training whole (leave_one_out and ratio).", lower=3
  )
  split: Literal["leave_one_out", "time", "ratio"] = option(
    "leave_one_out",
    "leave_one_out: each user's last item is the test, the one before it validation; time: by global "
    "time; ratio: the end of each user's history.",
  )
  valid_fraction: float = option(
    0.1, "Share of validation in split time or ratio.", lower=0, upper=1
  )
  test_fraction: float = option(0.1, "Share of test in split time or ratio.", lower=0, upper=1)
  max_length: int = option(
    64, "Positions of a history (tokens of a text) that a model sees.", lower=1
  )
  all_windows: bool = option(
    True, "Train on every window of a history longer than --max_length, not only the last."
  )
  query_length: int = option(32, "Search: tokens of a query that a model sees.", lower=3)
  fold: int = option(
    0,
    "Search: which fifth of the queries tests, where judgements come in one piece (Cranfield); the "
    "next fifth validates.",
    lower=0,
    upper=4,
  )
  mining: Literal["bm25", "random"] = option(
    "bm25", "Search: negatives of a training query are drawn from BM25's 50 best, or from all."
  )
  mined_negatives: int = option(
    7, "Search: negatives of each pair of a training query and a relevant document.", lower=1
  )
  pseudo_queries: bool = option(
    False, "Search: also train on titles as queries for their documents; needs no judgements."
  )
  rerank: int = option(
    100, "Search: how many of BM25's best documents a cross_encoder ranks when judged.", lower=1
  )
  synthetic_users: int = option(1500, "Users (search: queries) of the embedded data.", lower=1)
  synthetic_items: int = option(1000, "Items (search: documents) of the embedded data.", lower=2)
  synthetic_length: int = option(40, "Mean history length of the embedded data.", lower=1)
  data_seed: int = option(0, "Seed of the embedded data and of the packing of rows.")


Family = Literal[
  "sasrec",
  "bert4rec",
  "gru4rec",
  "two_tower",
  "mf",
  "ncf",
  "mlp",
  "resnet",
  "speech_gru",
  "bert",
  "text_gru",
  "text_cnn",
  "static",
  "decoder",
  "bi_encoder",
  "cross_encoder",
]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A model family and its sizes."""

  model: Family = option(
    "sasrec",
    "Model family. Sequences: sasrec, bert4rec, gru4rec, two_tower; user-item pairs: mf, ncf; "
    "clicks: mlp; images: resnet; recordings of speech: speech_gru; texts: bert, text_gru, text_cnn, "
    "static; the next token of texts: decoder; search: bi_encoder, cross_encoder.",
  )
  encoder: Literal["bert", "text_gru", "text_cnn", "static"] = option(
    "bert", "bi_encoder: what encodes queries and documents, both with the same params."
  )
  cell: Literal["gru", "lstm"] = option(
    "gru", "text_gru (also as a bi_encoder's encoder): what its recurrent layers are."
  )
  checkpoint: str = option(
    "",
    "bert (also as a bi_encoder or cross_encoder), decoder: a Hugging Face checkpoint folder; the "
    "model takes its sizes and starts as it is, a head of as many labels too. Give --tokenizer the same "
    "folder.",
  )
  checkpoint_dtype: CheckpointDtype = option(
    "float32",
    "Type that the numbers of --checkpoint become, are trained and saved in; as_stored keeps the "
    "file's. What the model computes in is --dtype.",
  )
  start: str = option(
    "",
    "Workdir of a finished run to start from: every array that has its path and shape there; the "
    "rest is fresh (with --checkpoint, the checkpoint's). Sizes are not taken from it: give them, or "
    "its --checkpoint, again.",
  )
  item_embeddings: tuple[str, ...] = option(
    (),
    "sasrec: tables of item embeddings (of texts, images, ...), workdirs of experiments.embed or .npz "
    "files with ids and embeddings; adapted and added to those of the ids.",
  )
  id_embeddings: bool = option(
    True,
    "Whether items have embeddings of their ids beside --item_embeddings; without, the model knows "
    "them by their texts alone, and experiments.transfer moves it whole to another log.",
  )
  fold_item_embeddings: bool = option(
    False,
    "Keep only the sum of ids and adapted --item_embeddings: learned with them, served without.",
  )
  dim: int = option(
    64, "Width of embeddings and of the residual stream (of a resnet's first stage).", lower=1
  )
  embedding: Literal["full", "hashed", "quotient_remainder"] = option(
    "full",
    "Tables of items and users (sasrec, gru4rec, two_tower, mf, ncf): a row each; the sum of hashed "
    "rows of a smaller table; or of a quotient's and a remainder's row, a pair for each id.",
  )
  embedding_rows: int | None = option(
    None,
    "--embedding: rows of the hashed table, by default an eighth as many as ids; or how many "
    "remainders there are, by default the root of the number of ids.",
    lower=1,
  )
  embedding_hashes: int = option(2, "--embedding=hashed: rows that are summed for an id.", lower=1)
  embedding_product: bool = option(
    False, "--embedding=quotient_remainder: multiply the two rows instead of adding them."
  )
  layers: int = option(
    2, "Blocks (or recurrent layers, or hidden layers, or blocks of each stage).", lower=0
  )
  heads: int = option(1, "Attention heads; they divide --dim.", lower=1)
  mlp_dim: int | None = option(
    None,
    "Width of the feed-forward layers; 4 x dim when not given (a resnet: that of the stage; a "
    "text_gru's or speech_gru's states and a text_cnn's channels: --dim).",
  )
  profile_dim: int = option(
    0,
    "sasrec, gru4rec, bert4rec: width of a head for users' profiles, beside recommending, which "
    "--distill_losses=profile:0.5 teaches (as wide as the teacher's queries); 0 for none.",
    lower=0,
  )
  similarity_dim: int = option(
    0,
    "Likewise of a head for items, whose cosines tell which are alike "
    "(--distill_losses=similarity:0.5); 0 for none.",
    lower=0,
  )
  demand: bool = option(
    False,
    "Likewise whether a head tells each item's share of demand (--distill_losses=demand:0.1).",
  )
  dropout: float = option(0.2, "Dropout rate in training.", lower=0, upper=1)


Optimizer = Literal["adam", "adamw", "adagrad", "lion", "sgd"]


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
  """How the processes of one run find each other; no part of what is run."""

  coordinator_address: str = option(
    "",
    "Several processes: host and port of the first one, such as 10.0.0.1:1234, the same for all.",
  )
  num_processes: int | None = option(None, "How many processes run this together.", lower=1)
  process_id: int | None = option(None, "Which of them this is, from 0.", lower=0)
  distributed: Literal["off", "auto"] = option(
    "off",
    "auto lets JAX find what the three flags do not say in the environment of the cluster (Slurm, "
    "Open MPI, Kubernetes, Cloud TPU).",
  )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """The devices that a model is split over."""

  data_devices: int | None = option(
    None,
    "Devices that share each batch and hold the same parameters; 0, or no number, for all that the "
    "next two flags leave.",
    lower=0,
  )
  fsdp_devices: int = option(
    1,
    "Devices that share each batch and the parameters, with the optimizer's state where there is one "
    "(fully sharded; jit only).",
    lower=1,
  )
  model_devices: int = option(
    1,
    "Devices over which embedding tables, attention heads and hidden layers are split (jit only).",
    lower=1,
  )


@dataclasses.dataclass(frozen=True)
class LoadConfig:
  """How a pretrained model is read, and where to."""

  checkpoint_dtype: CheckpointDtype = option(
    "float32",
    "Type that the numbers of a checkpoint become, and that it computes in; as_stored keeps the "
    "file's.",
  )
  # One device: what these binaries compute in a call is seldom worth more, and may not divide.
  mesh: MeshConfig = group(MeshConfig, data_devices=1)


@dataclasses.dataclass(frozen=True)
class FitConfig(MeshConfig):
  """How a model is trained."""

  seed: int = option(0, "Seed of initialisation, shuffles, dropout and sampling.")
  epochs: int = option(100, "Passes over the training data at most.", lower=1)
  batch_size: int = option(128, "Histories (or pairs, or clicks) of a step, on average.", lower=1)
  optimizer: Optimizer = option("adamw", "The optax optimizer.")
  learning_rate: float = option(1e-3, "Peak learning rate.", lower=0)
  schedule: Literal["constant", "cosine"] = option(
    "constant", "Learning rate after warm-up: constant, or a cosine down to 0 at the last epoch."
  )
  warmup_steps: int = option(100, "Steps of linear warm-up.", lower=0)
  weight_decay: float = option(0.0, "Decoupled weight decay (adamw and lion).", lower=0)
  clip_norm: float | None = option(None, "Clip the gradient's global norm to this.")
  freeze: tuple[str, ...] = option(
    (),
    "Parameters that stay as they start, by the beginnings of their paths: token_embedding, block_0, "
    "block_1/attention. A wrong one lists what there is.",
  )
  lora_rank: int = option(
    0,
    "Train low-rank adapters of this rank instead of a pretrained model's matrices (with --checkpoint "
    "or --start), and what is fresh, such as a new head; they are merged when training ends. 0 trains "
    "all parameters.",
    lower=0,
  )
  lora_alpha: float = option(16.0, "Adapters count --lora_alpha / --lora_rank.", lower=0)
  lora_select: tuple[str, ...] = option(
    (),
    "Matrices that get adapters, by parts of their paths: attention, query, block_0/up. All that are "
    "multiplied when not given.",
  )
  accumulate: int = option(1, "Micro-batches summed before each update.", lower=1)
  dtype: Literal["float32", "bfloat16"] = option(
    "float32", "Type that the models compute in while training; parameters stay float32."
  )
  logits_dtype: Literal["same", "float32", "bfloat16"] = option(
    "same",
    "Type of the products with the whole catalogue in training, --dtype by default. bfloat16 pays on "
    "processors with matrix units for it even where a small model's body does not gain.",
  )
  train_bits: int = option(
    0,
    "Train through weights of 8 or 4 bits, the very products that experiments.quantize --bits will "
    "serve (quantization-aware training); validation judges those too. 0 trains in floats.",
  )
  label_loss: Literal["auto", "cross_entropy", "sampled_softmax", "bpr", "nce", "bce", "ctc"] = (
    option(
      "auto",
      "Loss on the labels. auto: full-catalogue cross_entropy for sequence models, bpr for mf, bce for "
      "ncf and mlp, ctc for speech, cross_entropy for images, texts and search (of a query's "
      "candidates, and for a bi_encoder of those of all queries of the batch).",
    )
  )
  num_negatives: int = option(
    256, "Sampled negatives: shared by a batch of sequences; for pairs, this many for each pair."
  )
  lazy_tables: bool = option(
    False,
    "Update embedding tables by rows: a step touches those that its batch reads, with Adam's decay "
    "and movement of the steps that they were skipped, to the same result (adam and adamw). For "
    "catalogues of millions: mf and ncf, and sequence models with a sampled --label_loss.",
  )
  patience: int | None = option(10, "Stop after this many validations without a better one.")
  validate_every: int | None = option(None, "Steps between validations; an epoch when not given.")
  steps_per_call: int | None = option(
    None,
    "Steps of one compiled call. When not given, 32; on a CPU 1 for a resnet and a text_cnn, since "
    "convolutions inside of a compiled loop are ten times slower there, or more.",
    lower=1,
  )
  group_by_length: bool = option(
    False,
    "Classes of texts, and search: batches of texts (or documents) of like length, cut to it, so that "
    "short ones cost what they hold; not with --stream.",
  )
  stream: bool = option(False, "Stream the training rows instead of keeping them on the device.")
  parallel: Literal["jit", "pmap"] = option("jit", "How several devices run the step.")
  tensorboard: bool = option(True, "Write TensorBoard files.")
  wandb: Literal["disabled", "offline", "online"] = option("disabled", "Weights & Biases mode.")
  progress: bool = option(True, "Draw progress bars.")


@dataclasses.dataclass(frozen=True)
class DistillConfig:
  """What a student learns from its teacher: L = label_weight CE + distill_weight T^2 KL + hints."""

  distill_loss: Literal["kl", "bernoulli_kl", "mse"] = option(
    "kl", "Softened KL over the catalogue (or candidates), Bernoulli KL (clicks), or logit MSE."
  )
  label_weight: float = option(0.5, "Weight of the loss on the labels.", lower=0)
  distill_weight: float = option(0.5, "Weight of the distillation loss.", lower=0)
  temperature: float = option(1.0, "Temperature T of the softened distributions.", lower=1e-3)
  distill_losses: tuple[str, ...] = option(
    (),
    "Losses on the teacher instead of --distill_loss, --distill_weight and hints: "
    "name[@student_feature[=teacher_feature]][#teacher]:weight[>final_weight], such as "
    "kl:0.8,rkd_distance@query:10>1. Features are those that the models name; item, the label's row "
    "of the item table; and blocks, each block of the student beside one of the teacher's, evenly "
    "spread. A wrong name lists what there is. A decoder's teacher may have a tokenizer of its own "
    "where universal_logit stands alone.",
  )
  cache_queries: bool = option(
    False,
    "Run the teacher over the training rows once and keep its query of every position in memory "
    "(positions x its dim values), instead of running it in every step: sequence models; of texts and "
    "images its logits. A search teacher's scores are always kept; this keeps the embeddings of a "
    "bi_encoder, too.",
  )
  cache_scores: bool = option(
    True,
    "Search: write what the teacher says of the training rows beside its run, once, for other "
    "students and for a run that is taken up again; false runs it every time.",
  )
  scores_dir: str = option(
    "",
    "Folder of --cache_scores, in place of that in the teacher's workdir; a Hugging Face folder is "
    "not written to, and what it says is kept in memory without this.",
  )
  cache_top_k: int = option(
    0,
    "Run the teacher over the training rows once and keep its best so many logits of every position "
    "in memory, with the exact mass of the rest; the KL to those is then learned. 0 runs it in every "
    "step; sequence models and decoders.",
    lower=0,
  )
  teacher_cache: str = option(
    "",
    "Workdir of experiments.cache_teacher: what it kept of a teacher stands for --teacher (KL and "
    "losses on the features it kept). With --stream it stays on disk.",
  )
  sampled_rest: bool = option(
    False,
    "With --cache_top_k or --teacher_cache (without draws): what a sequence model gives to the items "
    "beyond the teacher's best is estimated from the sampled negatives of its labels (--label_loss, "
    "--num_negatives), so that the time of a step does not grow with the catalogue.",
  )
  teacher_mesh: tuple[int, ...] = option(
    (),
    "Over how many devices a live teacher is split, as <fsdp>,<model>, such as 4,2: fully sharded, "
    "and by tables, heads and hidden layers. As the student when not given.",
  )
  on_policy: float = option(
    0.0,
    "decoder: share of the steps in which the student itself continues the beginnings of training "
    "texts, for the teacher to judge; labels take no part in those.",
    lower=0,
    upper=1,
  )
  prompt_tokens: int = option(
    8, "--on_policy: tokens of a beginning; the student writes up to --max_length.", lower=1
  )
  sample_temperature: float = option(
    1.0,
    "--on_policy: temperature that the student writes with; 0 for the likeliest token.",
    lower=0,
  )
  inherit_tables: bool = option(
    False,
    "Start a new student's embedding tables from the teacher's, brought to its width by truncated "
    "singular value decomposition.",
  )
  cached_rankings: str = option(
    "",
    "Workdir of experiments.rank_titles, or an .npz file like its: rankings of a teacher that is too "
    "slow to run beside the student (a language model), learned with or without --teacher.",
  )
  ranking_weight: float = option(
    0.5, "Weight of --cached_rankings (importance-aware ranking distillation).", lower=0
  )
  user_embeddings: str = option(
    "",
    "Workdir of experiments.embed_users, or an .npz file like its: what a teacher of another domain "
    "knows of its users; the student's queries learn it of those that it shares, with or without "
    "--teacher.",
  )
  user_weight: float = option(
    0.1, "Weight of --user_embeddings (cosine after a learned map).", lower=0
  )
  balance: Literal["fixed", "uncertainty", "gradient_norm"] = option(
    "fixed",
    "How the weights of several losses adapt: not at all; by learned uncertainties; or so that all "
    "pull alike on --balance_on, those that have learned less a little more (GradNorm).",
  )
  balance_on: tuple[str, ...] = option(
    (),
    "--balance=gradient_norm: parameters that all losses share, by the beginnings of their paths, "
    "such as block_1 or norm; the later, the cheaper. All when not given.",
  )
  hint_weight: float = option(0.0, "Weight of the MSE between projected features.", lower=0)
  hint_features: str = option(
    "query:query", "Which features the hint compares, as <student's name>:<teacher's name>."
  )


@dataclasses.dataclass(frozen=True)
class PruneConfig:
  """How much is removed, and when."""

  sparsity: float = option(
    0.5, "Share of each weight matrix set to 0 by magnitude.", lower=0, upper=1
  )
  prune_method: Literal["cubic", "one_shot", "rigl", "set"] = option(
    "cubic",
    "cubic raises the sparsity over --ramp; one_shot masks at the first step; rigl and set keep the "
    "sparsity and move the masks until --ramp, by gradients or at random.",
  )
  prune_criterion: Literal["magnitude", "movement", "saliency", "fisher"] = option(
    "magnitude",
    "What makes a weight worth keeping (cubic and one_shot): its size; or sums over the steps of "
    "gradient times weight (movement), their magnitudes (saliency), or squares (fisher).",
  )
  prune_distribution: Literal["uniform", "erdos_renyi_kernel", "global"] = option(
    "uniform",
    "How the sparsity spreads over the matrices: the same share of each; wide ones lose more; or the "
    "worst of all together (cubic and one_shot).",
  )
  keep_mlp: float = option(1.0, "Share of feed-forward width kept; the arrays shrink.", upper=1)
  keep_heads: float = option(1.0, "Share of attention heads kept; the arrays shrink.", upper=1)
  keep_dim: float = option(1.0, "Share of embedding dimensions kept; the arrays shrink.", upper=1)
  keep_layers: tuple[int, ...] = option(
    (),
    "Blocks (recurrent layers) that stay, from 0, in their new order; 1,3 makes a model of two "
    "blocks that start as the second and the fourth. All when not given.",
  )
  prune_tables: bool = option(True, "Whether embedding tables take part in the masks.")
  ramp: float = option(
    0.5, "Share of the epochs over which sparsity grows, or masks move.", lower=0, upper=1
  )
  mask_every: int = option(20, "Steps between new masks.", lower=1)
