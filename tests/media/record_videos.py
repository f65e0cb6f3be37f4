"""Records what transformers makes of videos, for `test_videos.py`: which frames its processors look at and the sizes
they bring them to, and of three checkpoints the ids, patches, coordinates and logits of a prompt with a video.

    python -m tests.media.record_videos FOLDER_OF_CHECKPOINTS

Its video processors need torchvision, which the tests do without: install it where this runs.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tests.media import models

HERE = Path(__file__).parent / "videos"
CHECKPOINTS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
FRAMES, RATE, SIZE = 9, 3.0, (70, 100)
SAID = "user says"
STEP = 11  # of what there is much of, so many are left out each time


def video(seed: int = 0, frames: int = FRAMES, size: tuple[int, int] = SIZE) -> np.ndarray[Any, Any]:
    """Random levels, uint8 `[frames, height, width, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, (frames, *size, 3), dtype=np.uint8)


def messages(value: Any) -> list[dict[str, Any]]:
    part = {"type": "video", "video": value, "fps": RATE}
    return [{"role": "user", "content": [{"type": "text", "text": SAID}, part, {"type": "text", "text": "Lily"}]}]


def choices() -> list[dict[str, Any]]:
    """Random videos: numbers of frames, rates, sizes, and what a processor file may say."""
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
    from transformers.video_processing_utils import BaseVideoProcessor
    from transformers.video_utils import VideoMetadata

    sizes: list[tuple[int, int]] = []
    BaseVideoProcessor.resize = lambda self, image, size, **_: sizes.append((size.height, size.width))
    draw, found = random.Random(0), []
    for index in range(160):
        kind: Any = (Qwen2VLVideoProcessor, Qwen3VLVideoProcessor)[index % 2]
        count, rate = (
            draw.choice([2, 3, 5, 8, 31, 100, 977, 5000]),
            draw.choice([0.5, 1.0, 2.0, 3.0, 23.976, 24.0, 30.0]),
        )
        height, width = (draw.choice([9, 33, 64, 120, 360, 720, 1081]) for _ in range(2))
        cap, fps = draw.choice([True, False]), draw.choice([1.0, 2.0, 4.0])
        processor = kind(fps=fps, **({} if index % 5 else {"min_frames": 6, "max_frames": 20}))
        at = processor.sample_frames(VideoMetadata(total_num_frames=count, fps=rate)).tolist()
        frames = torch.zeros(1, 1, 1, 1, 1).expand(1, len(at), 3, height, width)
        factor = processor.patch_size * processor.merge_size
        processor.resize(frames, processor.size, 3, factor=factor, temporal_factor=2, cap_pixels_per_frame=cap)
        stated = {key: getattr(processor, key) for key in ("fps", "min_frames", "max_frames", "max_video_tokens")}
        given = {"count": count, "rate": rate, "height": height, "width": width, "cap_pixels_per_frame": cap, **stated}
        found.append(
            {
                "kind": ("qwen2_vl", "qwen3_vl")[index % 2],
                **given,
                "number": len(at),
                "indices": at[::STEP],
                "size": sizes[-1],
            }
        )
    return found


def continued(model: Any, inputs: Any, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of a prompt at these places, and the 12 tokens that follow."""
    ids, count = inputs["input_ids"], inputs["input_ids"].shape[1]
    made: torch.Tensor | None = None
    for _ in range(12):
        logits = model(**{**inputs, "input_ids": ids, "attention_mask": None}, position_ids=places[:, None]).logits[0]
        made = logits if made is None else made
        ids = torch.cat((ids, logits[-1].argmax()[None, None]), dim=1)
        places = torch.cat((places, (places.max() + 1).expand(3, 1)), dim=1)
    assert made is not None
    return made, ids[0, count:]


@torch.no_grad()
def prompts(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.video_utils import VideoMetadata

    tensors, said = {}, {}
    for name in CHECKPOINTS:
        processor = AutoProcessor.from_pretrained(folder / name)
        model = AutoModelForImageTextToText.from_pretrained(
            folder / name, dtype=torch.float32, attn_implementation="eager"
        )
        text = processor.apply_chat_template(messages(None), tokenize=False, add_generation_prompt=True)
        metadata = VideoMetadata(total_num_frames=FRAMES, fps=RATE)
        asked = {"do_sample_frames": True, "fps": 2, "cap_pixels_per_frame": True, "video_metadata": [metadata]}
        inputs = processor(text=[text], videos=[video()], return_tensors="pt", videos_kwargs=asked)
        inputs.pop("video_metadata", None)
        theirs, _ = model.model.get_rope_index(**{key: value for key, value in inputs.items() if "pixel" not in key})
        places, shift = models.behind_the_latest(theirs[:, 0], inputs["mm_token_type_ids"][0])
        logits, greedy = continued(model, inputs, places)
        kept = {"ids": inputs["input_ids"][0], "patches": inputs["pixel_values_videos"][::STEP], "logits": logits}
        kept |= {
            "grid": inputs["video_grid_thw"][0],
            "places": places,
            "shift": torch.tensor([shift]),
            "greedy": greedy,
        }
        tensors |= {f"{name}.{key}": value.contiguous() for key, value in kept.items()}
        said[name] = text
    return tensors, said


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    made, texts = prompts(Path(sys.argv[1]))
    save_file(made, HERE / "prompts.safetensors")
    (HERE / "choices.json").write_text(json.dumps({"texts": texts, "choices": choices()}) + "\n")
