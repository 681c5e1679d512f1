"""Recordings: bands of pitch, wav files of every kind, parts, what is wrong with a folder."""

import numpy as np
import pytest
from scipy.io import wavfile

from kdjax.data.errors import DataError
from kdjax.data.speech import load_speech, log_mel, make_speech, read_wav

RATE = 8000


def tone(pitch, seconds=0.3):
  return 0.5 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * RATE)) / RATE)


def write(path, samples, rate=RATE):
  path.parent.mkdir(exist_ok=True)
  wavfile.write(path, rate, (samples * 32767).astype(np.int16))


@pytest.mark.parametrize("pitch", [200, 700, 1500, 3200])
def test_a_tone_lies_in_its_band(pitch):
  """Bands are even on the mel scale, 2595 log10(1 + f / 700)."""

  def mel(f):
    return 2595 * np.log10(1 + f / 700)

  place = mel(pitch) / mel(RATE / 2) * 41 - 1  # Band m is centred at m + 1 of 41 steps.
  assert abs(log_mel(tone(pitch), RATE).mean(axis=0).argmax() - place) < 1


def test_bands_are_the_sum_of_power_under_triangles():
  samples = np.random.default_rng(0).normal(size=640)
  found = log_mel(samples, RATE, num_mels=6)
  assert found.shape == (6, 6)  # Windows of 200 samples every 80.
  spectrum = np.fft.fft(samples[160:360] * np.hanning(200), 256)[:129]
  edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), 8) / 2595) - 1)
  for band in range(6):
    triangle = np.interp(np.arange(129) * RATE / 256, edges[band : band + 3], [0, 1, 0])
    power = np.sum(triangle * np.abs(spectrum) ** 2)
    np.testing.assert_allclose(found[2, band], np.log(power), rtol=1e-5)


@pytest.mark.parametrize("kind", ["int16", "int32", "uint8", "float32"])
def test_every_kind_of_sample_reads_alike(tmp_path, kind):
  samples = tone(440)
  if kind == "uint8":
    stored = np.round(samples * 127 + 128).astype(np.uint8)
  elif kind == "float32":
    stored = samples.astype(np.float32)
  else:
    stored = (samples * np.iinfo(kind).max).astype(kind)
  wavfile.write(tmp_path / "a.wav", RATE, np.stack([stored, stored], axis=1))
  found, rate = read_wav(tmp_path / "a.wav")
  assert (rate, found.dtype) == (RATE, np.float32)
  np.testing.assert_allclose(found, samples, atol=1e-2 if kind == "uint8" else 1e-4)


def test_names_say_the_digit_and_the_take(tmp_path):
  for digit in (3, 7):
    for take in range(8):
      write(tmp_path / "recordings" / f"{digit}_ann_{take}.wav", tone(200 + 100 * digit))
  data = load_speech(tmp_path, valid_fraction=0.3)
  assert [len(data.parts[name].labels) for name in ("train", "valid", "test")] == [4, 2, 10]
  assert data.characters == ("e", "h", "n", "r", "s", "t", "v")
  words = [
    "".join(data.characters[c - 1] for c in row if c > 0) for row in data.parts["test"].labels
  ]
  assert words == ["three", "seven"] * 5
  frames, segments, _ = data.parts["train"]
  assert frames.shape == (4, 14, 80)
  assert segments.all()


def test_a_list_says_what_was_said_and_which_part(tmp_path):
  rows = [("a.wav", "Yes", "train"), ("b.wav", "no", "validation"), ("c.wav", "yes no", "test")]
  for nth, (name, _, _) in enumerate(rows):
    write(tmp_path / name, tone(300, 0.1 + 0.1 * nth))
  lines = ["file_name,transcription,split", *(",".join(row) for row in rows)]
  (tmp_path / "metadata.csv").write_text("\n".join(lines))
  data = load_speech(tmp_path)
  assert "".join(data.characters) == " enosy"
  assert data.parts["train"].labels.tolist() == [[6, 2, 5, -1, -1, -1]]
  assert [part.segments.sum() for part in data.parts.values()] == [4, 9, 14]
  assert not data.parts["train"].frames[0, 4:].any()


def test_what_is_wrong_is_named(tmp_path):
  with pytest.raises(DataError, match=r"neither metadata\.csv nor wav files"):
    load_speech(tmp_path)
  write(tmp_path / "hello.wav", tone(300))
  with pytest.raises(DataError, match=r"hello.wav is not called digit_speaker_take.wav"):
    load_speech(tmp_path)
  listed = tmp_path / "metadata.csv"
  listed.write_text("file,transcription\nhello.wav,hello\n")
  with pytest.raises(DataError, match="no column file_name; it has file, transcription"):
    load_speech(tmp_path)
  listed.write_text("file_name,transcription\nhello.wav,hello\ngone.wav,bye\n")
  with pytest.raises(DataError, match=r"line 3: no file 'gone.wav'"):
    load_speech(tmp_path)
  listed.write_text("file_name,transcription\nhello.wav,\n")
  with pytest.raises(DataError, match=r"line 2: hello.wav has no transcription"):
    load_speech(tmp_path)
  listed.write_text("file_name,transcription,split\nhello.wav,hello,dev\n")
  with pytest.raises(DataError, match="'dev' is none of train"):
    load_speech(tmp_path)
  listed.write_text("file_name,transcription\nhello.wav,hello\nother.wav,hello\n")
  write(tmp_path / "other.wav", tone(300), rate=16000)
  with pytest.raises(DataError, match=r"8000 samples a second.*other.wav 16000"):
    load_speech(tmp_path)
  listed.write_text("file_name,transcription\nhello.wav,hello\n")
  with pytest.raises(DataError, match="too few recordings"):
    load_speech(tmp_path)
  whole = (tmp_path / "hello.wav").read_bytes()
  for damaged in (b"", b"not sound", whole[:30], whole[:-100]):
    (tmp_path / "hello.wav").write_bytes(damaged)
    with pytest.raises(DataError, match=r"hello.wav: no readable wav file"):
      read_wav(tmp_path / "hello.wav")
  wavfile.write(tmp_path / "hello.wav", RATE, np.zeros(0, np.int16))
  with pytest.raises(DataError, match=r"hello.wav: no (sound|readable)"):
    read_wav(tmp_path / "hello.wav")


def test_made_up_recordings_are_the_same_every_time():
  one, two, other = make_speech(40), make_speech(40), make_speech(40, seed=1)
  for a, b in zip(one.parts["train"], two.parts["train"], strict=True):
    np.testing.assert_array_equal(a, b)
  assert not np.array_equal(one.parts["train"].labels, other.parts["train"].labels)


def test_real_digits(shared_data):
  data = load_speech(shared_data / "spoken-digits")
  assert [len(data.parts[p].labels) for p in ("train", "valid", "test")] == [810, 90, 300]
  assert "".join(data.characters) == "efghinorstuvwxz"
  counts = np.unique(data.parts["test"].labels, axis=0, return_counts=True)[1]
  assert counts.tolist() == [30] * 10
