"""Sounds: the spectrogram is transformers', and what comes at another rate or in several channels is brought to one."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers

import minillm
from minillm.engine.completion import Completion
from minillm.engine.sampling import Sampling
from minillm.media import sound
from minillm.media.prompts import Seen
from minillm.media.settings import Sounds
from minillm.media.sources import Source
from tests.helpers import oracles_wrapped, tiny
from tests.media import models
from tests.media.recorded import run

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


HEARING = {
    "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 24, "num_mel_bins": 8,
    "max_source_positions": 20,
}  # fmt: skip
FRAMES = (40, 27)  # that have sound, of 40


def random_model(folder: Path) -> Any:
    """Every parameter drawn; read again as transformers does."""
    text = {**models.TEXT, "model_type": "qwen2"}
    config = transformers.Qwen2AudioConfig(audio_config=HEARING, text_config=text, audio_token_index=models.TOKEN)
    model = transformers.AutoModelForMultimodalLM.from_config(config, attn_implementation="eager")
    tiny.randomise(model)
    model.save_pretrained(folder)
    return oracles_wrapped.load(folder, dtype=torch.float32, attn_implementation="eager")


def logits_of(folder: Path, change: Any = lambda media, tower: (media, tower)) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a prompt with two sounds, ours and those of transformers."""
    theirs = random_model(folder)
    media, tower = change(*models.ours(folder))
    heard = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(0))
    counts = [((frames - 1) // 2 + 1) // 2 for frames in FRAMES]
    seen = [
        Seen(each, (1, count), None, frames, bytes([frames]), "audio")
        for each, count, frames in zip(heard, counts, FRAMES, strict=True)
    ]
    ids = [5, 6, *[models.TOKEN] * counts[0], 7, *[models.TOKEN] * counts[1], 8]
    at = [index for index, token in enumerate(ids) if token == models.TOKEN]
    row = Completion(ids, Sampling(), 1, inserted=models.reader(media, tower).inserted(seen, at, len(ids)))
    (logits,) = run(minillm.load(folder), [row])
    mask = torch.tensor([[int(index < frames) for index in range(40)] for frames in FRAMES])
    given = {"input_features": heard, "feature_attention_mask": mask, "attention_mask": torch.ones(1, len(ids)).long()}
    return logits, theirs(input_ids=torch.tensor([ids]), **given).logits[0]


@torch.no_grad()
def test_a_random_model(tmp_path: Path) -> None:
    logits, wanted = logits_of(tmp_path)
    assert (logits - wanted).abs().max() <= 2e-5


def norm_of_gathered(media: Any, tower: Any) -> Any:
    tower.projector.spec = replace(tower.projector.spec, norm_of="each")
    return media, tower


def all_heard(media: Any, tower: Any) -> Any:
    usual = tower.of_sound

    def of_sound(values: torch.Tensor, heard: int) -> Any:
        made, count = usual(values, values.shape[1]), ((heard - 1) // 2 + 1) // 2
        return made._replace(embeddings=made.embeddings[:count])

    tower.of_sound = of_sound
    return media, tower


@torch.no_grad()
@pytest.mark.parametrize("mistake", [norm_of_gathered, all_heard])
def test_mistakes(mistake: Any, tmp_path: Path) -> None:
    """Normalised in front of the average; silence heard."""
    logits, wanted = logits_of(tmp_path, mistake)
    assert (logits - wanted).abs().max() > 2e-4
