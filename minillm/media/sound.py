"""From a sound file to a log-mel spectrogram as Whisper has it (Radford et al., arXiv:2212.04356)."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minillm.guard.screen import note
from minillm.media.settings import Sounds
from minillm.media.sources import Source

FORMATS = ("WAV", "FLAC", "OGG", "MP3")
MAX_SECONDS = 600  # of a sound as it comes, which is decoded as a whole
MAX_CHANNELS = 8
MOST, LEAST = 384_000, 1_000  # samples a second


def opened(source: Source, settings: Sounds) -> NDArray[np.float32]:
    """Samples from -1 to 1, of one channel, at the rate of the settings: the first `seconds` of them. Raises ValueError
    for what is no sound, has no format of FORMATS, or is too long, which its header says before it is decoded."""
    name, value = source.name, source.value
    if isinstance(value, np.ndarray):
        if value.ndim != 1 or value.dtype.kind != "f" or not np.isfinite(value).all():
            said = f"an array of {value.dtype} {list(value.shape)}"
            raise ValueError(f"{name}: {said}, expected finite samples from -1 to 1, a float for each")
        return _cut(value.astype(np.float32), settings, name)
    if not isinstance(value, bytes):
        raise ValueError(f"{name}: a {type(value).__name__}, expected a path, bytes or an array")
    try:
        import soundfile
    except ImportError:
        raise ValueError("sounds need soundfile: pip install -e '.[media]' in the clone") from None
    try:
        with soundfile.SoundFile(io.BytesIO(value)) as file:
            _within(file, name)
            wanted = -(-settings.seconds * file.samplerate) + file.samplerate
            samples = file.read(min(wanted, file.frames), dtype="float32", always_2d=True).mean(axis=1)
            longer = file.frames > settings.seconds * file.samplerate
            rate = file.samplerate
    except (soundfile.SoundFileError, RuntimeError, OSError, TypeError, MemoryError):
        raise ValueError(f"{name}: no sound that can be read; supported are whole {', '.join(FORMATS)} files") from None
    if not np.isfinite(samples).all():
        raise ValueError(f"{name}: samples that are no numbers; convert it again")
    if longer:
        note(f"{name}: the first {settings.seconds} seconds are heard, which is all that the tower takes")
    return _cut(resampled(samples, rate, settings.rate), settings, "")


def _within(file: Any, name: str) -> None:
    if file.format not in FORMATS:
        raise ValueError(f"{name}: {file.format[:20]} is not supported; give one of {', '.join(FORMATS)}")
    if not LEAST <= file.samplerate <= MOST or not 1 <= file.channels <= MAX_CHANNELS:
        raise ValueError(f"{name}: {file.samplerate} samples a second in {file.channels} channels; convert it first")
    if file.frames > MAX_SECONDS * file.samplerate:
        seconds = file.frames // file.samplerate
        raise ValueError(f"{name}: {seconds:,} seconds, the limit is {MAX_SECONDS}; cut it first")


def _cut(samples: NDArray[np.float32], settings: Sounds, name: str) -> NDArray[np.float32]:
    most = settings.seconds * settings.rate
    if name and len(samples) > most:
        note(f"{name}: the first {settings.seconds} seconds are heard, which is all that the tower takes")
    return samples[:most]


def resampled(samples: NDArray[np.float32], rate: int, wanted: int, zeros: int = 24) -> NDArray[np.float32]:
    """Samples at another rate, each a sum of those around it weighed by a sinc under a Hann window of `zeros` zeros to
    each side; what the new rate cannot hold is filtered out."""
    if rate == wanted or not len(samples):
        return samples
    count = max(int(len(samples) * wanted / rate), 1)
    cutoff = min(1.0, wanted / rate)
    reach = int(np.ceil(zeros / cutoff))
    padded = np.concatenate((np.zeros(reach), samples.astype(np.float64), np.zeros(reach + 1)))
    made, taps = np.empty(count), np.arange(1 - reach, reach + 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach)
    common = math.gcd(rate, wanted)
    period, step = wanted // common, rate // common
    for phase in range(min(period, count)):  # every sample of a phase has the same weights
        near, ahead = divmod(phase * rate, wanted)
        x = (ahead / wanted - taps) * cutoff
        weights = cutoff * np.sinc(x) * np.where(np.abs(x) < zeros, 0.5 + 0.5 * np.cos(np.pi * x / zeros), 0)
        of_phase = made[phase::period]
        of_phase[:] = windows[near + 1 :: step][: len(of_phase)] @ weights
    return made.astype(np.float32)


def mel(hertz: Any) -> NDArray[np.float64]:
    """Slaney's scale: linear below 1 kHz, which is 15 mel, then logarithmic."""
    hertz = np.asarray(hertz, np.float64)
    above = 15 + 27 * np.log(np.maximum(hertz, 1e-9) / 1000) / np.log(6.4)
    return np.where(hertz < 1000, 3 * hertz / 200, above)


def hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `mel`."""
    return np.where(mels < 15, 200 * mels / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))


def filters(bands: int, bins: int, rate: int) -> NDArray[np.float64]:
    """`[bins, bands]`: triangles from 0 to 8,000 Hz, evenly over the mel scale, each of area 1."""
    corners = hertz(np.linspace(mel(0), mel(8000), bands + 2))
    at = np.linspace(0, rate // 2, bins)[:, None]
    rising = (at - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - at) / (corners[2:] - corners[1:-1])
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (corners[2:] - corners[:-2])


def spectrogram(samples: NDArray[np.float32], made: Sounds) -> tuple[Tensor, int]:
    """fp32 `[bands, frames]` of `seconds`, filled up with silence, and how many frames hold sound: the power in each
    band, its log10 no more than 8 below the greatest, as (x + 4) / 4."""
    padded = torch.zeros(made.seconds * made.rate)
    padded[: len(samples)] = torch.from_numpy(samples)
    given = made.window, made.hop
    spectrum = torch.stft(padded, *given, window=torch.hann_window(made.window), return_complex=True)[:, :-1]
    bank = torch.from_numpy(filters(made.bands, made.window // 2 + 1, made.rate)).float()
    log = (bank.T @ spectrum.abs() ** 2).clamp(min=1e-10).log10()
    return (torch.maximum(log, log.max() - 8) + 4) / 4, -(-len(samples) // made.hop)
