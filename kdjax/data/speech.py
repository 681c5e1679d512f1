"""Recordings of speech with what was said in them, as frames and characters; and made-up ones."""

import pathlib
import re
import struct
import warnings
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy.io import wavfile

from kdjax.data.errors import DataError

NUM_MELS, STACK = 40, 2
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Speech(NamedTuple):
  """Recordings of at most T positions, each `STACK` frames of 10 ms side by side.

  Attributes:
    frames: float32 `[N, T, F]`, 0 after the end.
    segments: int32 `[N, T]`, 1 where there is sound, then 0.
    labels: int32 `[N, S]`, characters from 1, -1 after the end.
  """

  frames: np.ndarray
  segments: np.ndarray
  labels: np.ndarray

  def take(self, which: slice | np.ndarray) -> "Speech":
    """Some of them."""
    return Speech(*(values[which] for values in self))


class SpeechDataset(NamedTuple):
  """Recordings in three parts, and how they were made.

  Attributes:
    parts: by name, `train`, `valid` and `test`.
    characters: character i is class i + 1; class 0 is the blank.
    note: of the split, in words.
  """

  parts: dict[str, Speech]
  characters: tuple[str, ...]
  note: str


def log_mel(samples: np.ndarray, rate: int, *, num_mels: int = NUM_MELS) -> np.ndarray:
  r"""How much power a recording has in bands of pitch, every 10 ms.

  $\log \max(\sum_k M_{mk} |\mathrm{FFT}(h \odot x_t)_k|^2, 10^{-10})$, with windows x_t of 25 ms,
  Hann's h, and triangles M whose corners are evenly spread on the mel scale
  $2595 \log_{10}(1 + f / 700)$ from 0 to half the rate.

  Args:
    samples: float `[n]`, in [-1, 1]; padded to one window where shorter.
    rate: samples a second.
    num_mels: bands.

  Returns:
    float32 `[T, num_mels]`.

  Reference:
    S. Davis, P. Mermelstein, IEEE Transactions on Acoustics, Speech, and Signal Processing, 1980.

  Example:
    >>> tone = np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)
    >>> log_mel(tone, 8000).shape, int(log_mel(tone, 8000).mean(axis=0).argmax())
    ((98, 40), 18)
  """
  window, hop = round(0.025 * rate), round(0.010 * rate)
  samples = np.pad(samples, (0, max(0, window - len(samples))))
  frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
  size = 1 << (window - 1).bit_length()
  power = np.abs(np.fft.rfft(frames * np.hanning(window), size)) ** 2
  top = 2595 * np.log10(1 + rate / 2 / 700)
  corners = 700 * (10 ** (np.linspace(0, top, num_mels + 2) / 2595) - 1)
  low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
  pitch = np.arange(size // 2 + 1) * rate / size
  rising, falling = (pitch - low) / (centre - low), (high - pitch) / (high - centre)
  bands = np.maximum(0, np.minimum(rising, falling))
  return np.log(np.maximum(power @ bands.T, 1e-10)).astype(np.float32)


def frames_of(samples: np.ndarray, rate: int) -> np.ndarray:
  """What models read: log-mel bands of mean 0 and variance 1 in each recording, `STACK` a position.

  Returns:
    float32 `[T, STACK * NUM_MELS]`; frames at the end that do not fill a position are left out.

  Reference:
    H. Sak et al., Fast and Accurate Recurrent Neural Network Acoustic Models for Speech
    Recognition, Interspeech 2015, arXiv:1507.06947 (stacked frames).
  """
  mels = log_mel(samples, rate)
  mels = (mels - mels.mean(axis=0)) / (mels.std(axis=0) + 1e-3)
  mels = np.pad(mels, ((0, max(0, STACK - len(mels))), (0, 0)))
  return mels[: len(mels) // STACK * STACK].reshape(-1, STACK * NUM_MELS)


def read_wav(path: str | pathlib.Path) -> tuple[np.ndarray, int]:
  """The samples of a wav file, its channels averaged: float32 `[n]` in [-1, 1], and the rate.

  Raises:
    DataError: naming the file, if it is none, is cut short, or holds no sound.
  """
  try:
    with warnings.catch_warnings():
      warnings.filterwarnings("error", message="Reached EOF")
      warnings.filterwarnings("ignore", message="Chunk")
      rate, samples = wavfile.read(path)
  except (ValueError, OSError, struct.error, wavfile.WavFileWarning) as error:
    raise DataError(f"{path}: no readable wav file: {error}") from error
  if not len(samples) or rate <= 0:
    raise DataError(f"{path}: no sound in it")
  if samples.dtype.kind in "iu":
    middle = 128 if samples.dtype == np.uint8 else 0
    samples = (samples.astype(np.float32) - middle) / -float(np.iinfo(samples.dtype).min or -128)
  samples = samples.astype(np.float32)
  return (samples.mean(axis=1) if samples.ndim > 1 else samples), rate


def load_speech(folder: str | pathlib.Path, *, valid_fraction: float = 0.1) -> SpeechDataset:
  """Reads a folder of wav files and what was said in them.

  Either it holds a `metadata.csv` with columns `file_name` and `transcription`, and perhaps `split`
  (`train`, `validation`, `test`; without it the last fifth is for testing), or files (or a folder
  `recordings` of them) called `{digit}_{speaker}_{take}.wav`, as the Free Spoken Digit Dataset has
  them, whose takes 0 to 4 are for testing. Where nothing else says so, validation is the end of
  training. Transcriptions are read in lower case.

  Args:
    folder: of the recordings.
    valid_fraction: share of the training recordings that validate.

  Raises:
    DataError: naming what is missing or damaged.
  """
  folder = pathlib.Path(folder)
  listed = folder / "metadata.csv"
  if listed.exists():
    paths, texts, splits = _read_list(listed)
    note = "parts as metadata.csv has them"
    if splits is None:
      cut = len(paths) * 4 // 5
      splits = ["train"] * cut + ["test"] * (len(paths) - cut)
      note = f"first {cut:,} train, the rest test: not an official split"
  else:
    paths, texts, splits = _read_names(folder)
    note = "takes 0 to 4 are the test"
  if "validation" not in splits:
    train = [i for i, split in enumerate(splits) if split == "train"]
    for i in train[len(train) - max(1, round(valid_fraction * len(train))) :]:
      splits[i] = "validation"
  sounds = [(path, *read_wav(path)) for path in paths]
  rates = {rate: path for path, _, rate in sounds}
  if len(rates) > 1:
    (one, path), (other, second), *_ = rates.items()
    raise DataError(f"{path} has {one} samples a second, {second} {other}; resample to one rate")
  return _dataset([frames_of(samples, rate) for _, samples, rate in sounds], texts, splits, note)


def make_speech(count: int = 300, *, seed: int = 0) -> SpeechDataset:
  """Made-up recordings: one to three letters of four, each a chord of its own, in noise.

  Example:
    >>> data = make_speech(50)
    >>> {name: len(part.labels) for name, part in data.parts.items()}, data.characters
    ({'train': 36, 'valid': 4, 'test': 10}, ('a', 'b', 'c', 'd'))
  """
  rng = np.random.default_rng(seed)
  rate, frames, texts = 4000, [], []
  for nth in range(count):
    word = "abcd" if nth == 0 else "".join(rng.choice(list("abcd"), rng.integers(1, 4)))
    sound = [rng.normal(size=200)]
    for letter in word:
      time = np.arange(rng.integers(240, 480)) / rate
      pitch = 300 * (1 + "abcd".index(letter))
      sound += [8 * np.sin(2 * np.pi * pitch * time), np.zeros(80)]
    samples = np.concatenate(sound)
    frames.append(frames_of(0.05 * (samples + rng.normal(size=len(samples))), rate))
    texts.append(word)
  train, valid = count * 4 // 5 - round(0.08 * count), round(0.08 * count)
  splits = ["train"] * train + ["validation"] * valid + ["test"] * (count - train - valid)
  return _dataset(frames, texts, splits, "made up")


def _read_list(path: pathlib.Path) -> tuple[list[pathlib.Path], list[str], list[str] | None]:
  """Paths, transcriptions and parts of a metadata.csv."""
  try:
    table = pl.read_csv(path, infer_schema=False)
  except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
    raise DataError(f"{path}: no readable table: {str(error).splitlines()[0]}") from error
  missing = {"file_name", "transcription"} - set(table.columns)
  if missing:
    raise DataError(f"{path} has no column {sorted(missing)[0]}; it has {', '.join(table.columns)}")
  names = table["file_name"].to_list()
  texts = [(text or "").lower() for text in table["transcription"]]
  for number, (name, text) in enumerate(zip(names, texts, strict=True), 2):
    if not name or not (path.parent / name).is_file():
      raise DataError(f"{path}, line {number}: no file {name!r} beside it")
    if not text:
      raise DataError(f"{path}, line {number}: {name} has no transcription")
  splits = table["split"].to_list() if "split" in table.columns else None
  unknown = {str(split) for split in splits or ()} - {"train", "validation", "test"}
  if unknown:
    raise DataError(f"{path}: split {min(unknown)!r} is none of train, validation, test")
  return [path.parent / name for name in names], texts, splits


def _read_names(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[str], list[str]]:
  """The same of files whose names say it, the newest take last."""
  inner = folder / "recordings"
  paths = sorted((inner if inner.is_dir() else folder).glob("*.wav"))
  if not paths:
    raise DataError(f"{folder}: neither metadata.csv nor wav files in it")
  named = []
  for path in paths:
    found = re.fullmatch(r"(\d)_(\w+)_(\d+)", path.stem)
    if not found:
      raise DataError(
        f"{path} is not called digit_speaker_take.wav; say what was said in a metadata.csv with "
        "columns file_name and transcription"
      )
    named.append((int(found[3]), path, DIGITS[int(found[1])]))
  named.sort()
  splits = ["test" if take < 5 else "train" for take, _, _ in named]
  return [path for _, path, _ in named], [text for _, _, text in named], splits


def _dataset(
  frames: list[np.ndarray], texts: list[str], splits: Iterable[str], note: str
) -> SpeechDataset:
  characters = tuple(sorted(set("".join(texts))))
  class_of = {character: 1 + i for i, character in enumerate(characters)}
  whole = Speech(
    _padded(frames, 0.0),
    _padded([np.ones(len(x), np.int32) for x in frames], 0),
    _padded([np.array([class_of[c] for c in text], np.int32) for text in texts], -1),
  )
  part_of = np.array(list(splits))
  parts = {name[:5]: whole.take(part_of == name) for name in ("train", "validation", "test")}
  for name, part in parts.items():
    if not len(part.labels):
      raise DataError(f"too few recordings: none of {len(texts)} for {name}")
  return SpeechDataset(parts, characters, note)


def _padded(rows: list[np.ndarray], fill: float) -> np.ndarray:
  """Rows `[n_i, ...]` as `[N, max n, ...]`."""
  shape = (len(rows), max(map(len, rows)), *rows[0].shape[1:])
  padded = np.full(shape, fill, rows[0].dtype)
  for place, row in zip(padded, rows, strict=True):
    place[: len(row)] = row
  return padded
