"""What transformers made of pictures and sounds, recorded: pixels, places, embeddings, logits and text are the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import minillm
from minillm.engine.batching.engine import Engine
from minillm.media import sources
from tests.conftest import shared
from tests.media.recorded import CASES, WITH_MEDIA, expected, greedy, loaded, messages, outputs, run

# Another implementation's own noise against fp64 is up to 2.2e-5 in these; the smallest mistake moves logits by 1e-3.
NEAR = 1e-4


@pytest.mark.parametrize(("name", "case"), WITH_MEDIA)
def test_what_a_tower_is_given_and_gives(name: str, case: str) -> None:
    llm, wanted = loaded(name), expected(name, case)
    _, found = sources.taken(messages(name, case))
    seen = [llm.prompts.reader.seen(each) for each in found]
    pixels = next(wanted[key] for key in ("pixel_values", "input_features") if key in wanted)
    if pixels.dim() == 2:  # patches
        assert (torch.cat([each.values[0] for each in seen]) - pixels).abs().max() <= 1e-6
    for each, their in zip(seen, pixels, strict=False):
        if pixels.dim() == 3:  # a spectrogram
            # What transformers itself computes on another processor: its FFT rounds otherwise, up to 6.3e-6. Samples
            # divided by 32767 would be 3.4e-5 away.
            assert (each.values - their).abs().max() <= 1e-5
        elif pixels.dim() == 4 and each.grid is not None:
            embed = llm.prompts.reader.media.encoder.embed
            rows = unpatched(each.values[0], each.grid, embed.side, embed.merge)  # type: ignore[union-attr]
            assert (rows - their[:, : rows.shape[1], : rows.shape[2]]).abs().max() <= 1e-6
    read = [llm.prompts.reader.read(each) for each in seen]
    embeddings = next(wanted[key] for key in ("image_features", "audio_features") if key in wanted).flatten(0, -2)
    assert (torch.cat([each.embeddings for each in read]) - embeddings).abs().max() <= NEAR
    deep = [key for key in wanted if key.startswith("image_deepstack.")]
    assert len(deep) == len(read[0].deep)
    for index in range(len(deep)):
        made = torch.cat([each.deep[index] for each in read])
        assert (made - wanted[f"image_deepstack.{index}"]).abs().max() <= NEAR


def unpatched(x: torch.Tensor, grid: tuple[int, int], side: int, merge: int) -> torch.Tensor:
    """A picture `[3, height, width]` of its patches."""
    rows, columns = grid
    whole = x.view(rows // merge, columns // merge, merge, merge, 3, side, side)
    return whole.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * side, columns * side)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_prompt(name: str, case: str) -> None:
    """Its text, its ids, and the three coordinates of each token."""
    llm, wanted = loaded(name), expected(name, case)
    seen, _ = sources.taken(messages(name, case))
    assert llm.chat_template().render(seen) == outputs(name)[0][case]["prompt"]
    prompt = llm.prompts.conversation(messages(name, case))
    assert prompt.ids == wanted["input_ids"].tolist()
    if "position_ids" in wanted:
        assert prompt.inserted is not None
        axes = llm.prompts.reader.media.axes
        assert axes is not None
        assert torch.equal(prompt.inserted.places, wanted["position_ids"][list(axes)].T)
        assert prompt.inserted.shift == int(wanted["rope_delta"])


@pytest.mark.parametrize("budget", [2048, 7, 1])
@pytest.mark.parametrize(("name", "case"), CASES)
def test_logits_and_text(name: str, case: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read at once, in pieces, and token by token."""
    llm, wanted, passes = loaded(name), expected(name, case), []
    monkeypatch.setattr(Engine, "_logits", counted(Engine._logits, passes))
    row = greedy(llm, 24, messages=messages(name, case))
    (logits,) = run(llm, [row], budget)
    assert (logits - wanted["logits"]).abs().max() <= NEAR
    assert row.token_ids == wanted["greedy_ids"].tolist()
    whole = row.inserted is not None and row.inserted.joint
    longest = max(span.last - span.first for span in row.inserted.spans) if row.inserted and whole else 1
    assert max(passes) == min(max(budget, longest), len(row.prompt))


def counted(method, passes: list[int]):
    def counts(self, work):
        passes.append(sum(count for _, count in work))
        return method(self, work)

    return counts


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "gemma3", "mistral3"])
def test_the_later_spelling(name: str, tmp_path: Path) -> None:
    """Names and sections as transformers 5 writes them: `model.visual`, `text_config`, one processor_config.json."""
    folder = tmp_path / name
    shutil.copytree(shared(f"media/{name}"), folder, ignore=shutil.ignore_patterns("expected"))
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    tensors = load_file(folder / "model.safetensors")
    save_file({renamed(key): value for key, value in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    if "text_config" not in config:
        outer = ("architectures", "model_type", "vision_config", "tie_word_embeddings", "torch_dtype")
        kept = {key: value for key, value in config.items() if key in outer or key.endswith("_token_id")}
        inner = {key: value for key, value in config.items() if key not in kept}
        config = {**kept, "text_config": {**inner, "model_type": f"{config['model_type']}_text"}}
    (folder / "config.json").write_text(json.dumps(config))
    stated = json.loads((folder / "preprocessor_config.json").read_text())
    if "min_pixels" in stated:
        stated["size"] = {"shortest_edge": stated.pop("min_pixels"), "longest_edge": stated.pop("max_pixels")}
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": stated}))
    llm = minillm.load(folder)
    row = greedy(llm, 24, messages=messages(name, "behind"))
    (logits,) = run(llm, [row])
    assert (logits - expected(name, "behind")["logits"]).abs().max() <= NEAR
    assert row.token_ids == expected(name, "behind")["greedy_ids"].tolist()


def renamed(name: str) -> str:
    if name.startswith("language_model.lm_head"):
        return name.removeprefix("language_model.")
    if name.startswith("language_model.model."):
        return f"model.language_model.{name.removeprefix('language_model.model.')}"
    if name.startswith("model."):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name if name.startswith("lm_head") else f"model.{name}"
