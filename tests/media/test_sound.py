"""Sounds: the spectrogram is transformers', and what comes at another rate or in several channels is brought to one."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
import transformers

from minillm.media import sound
from minillm.media.settings import Sounds
from minillm.media.sources import Source

HEARD = Sounds(16000, 128, 400, 160, 3)


@pytest.mark.parametrize("count", [1, 159, 160, 161, 20_000, 48_000])
def test_a_spectrogram(count: int) -> None:
    samples = np.random.default_rng(count).standard_normal(count).astype(np.float32) / 4
    extractor = transformers.WhisperFeatureExtractor(feature_size=128, chunk_length=3)
    their = extractor(samples, sampling_rate=16000, return_attention_mask=True)
    ours, heard = sound.spectrogram(samples, HEARD)
    assert np.abs(ours.numpy() - their["input_features"][0]).max() <= 1e-6
    assert heard == their["attention_mask"][0].sum()


def written(samples: np.ndarray, rate: int, kind: str = "WAV", subtype: str | None = None) -> Source:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return Source("audio", buffer.getvalue(), "one")


def tone(rate: int, hertz: float = 440.0, seconds: float = 0.5) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates(rate: int) -> None:
    """A tone stays the tone that it is at the tower's rate, but for the ends, where a filter sees nothing."""
    made = sound.opened(written(tone(rate), rate, subtype="FLOAT"), HEARD)
    wanted = tone(16000)
    assert len(made) == len(wanted)
    assert np.abs(made - wanted)[200:-200].max() < 2e-3


def test_what_a_lower_rate_cannot_hold() -> None:
    """Is filtered out, and does not come back as another tone."""
    made = sound.opened(written(tone(48000, 11_000), 48000, subtype="FLOAT"), HEARD)
    assert np.abs(made[200:-200]).max() < 1e-2


def test_channels_and_formats() -> None:
    both = np.stack((tone(16000), np.zeros(8000)), axis=1)
    for kind, subtype in (("WAV", "PCM_16"), ("WAV", "PCM_24"), ("FLAC", "PCM_16")):
        made = sound.opened(written(both, 16000, kind, subtype), HEARD)
        assert np.abs(made - tone(16000) / 2).max() < 1e-4


def test_more_than_is_heard(capsys: pytest.CaptureFixture[str]) -> None:
    made = sound.opened(written(tone(16000, seconds=4), 16000), HEARD)
    assert len(made) == 48_000
    assert "one: the first 3 seconds are heard" in capsys.readouterr().err


def test_weights_are_made_once_for_each_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sound of 384,000 samples a second has 1,152 in each sum: 30 seconds of it took 22 seconds."""
    made, usual = [], np.sinc
    monkeypatch.setattr(np, "sinc", lambda x: made.append(x.size) or usual(x))
    sound.resampled(np.zeros(384_000, np.float32), 384_000, 16_000)
    assert sum(made) == 1152
