"""From a picture file to patches: decoded within limits, brought to a size, coloured as the tower knows it.

Pillow resizes as transformers does without torchvision, bit for bit. With torchvision transformers resizes otherwise:
where one side shrinks and the other grows a fifth of all values differ, a few by 15 of 255 levels.
"""

from __future__ import annotations

import io
import math
import threading
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from minillm.media.settings import Crops, Settings
from minillm.media.sources import Source

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 64_000_000  # of a picture as it comes: it is decoded whole before it is made smaller
MAX_RATIO = 200
# One picture at a time, whoever asks: a large one takes a gigabyte; and Python keeps warnings for all threads together.
DECODING = threading.RLock()
DEFAULT_MOST = 1_310_720  # pixels that a picture has at most where nobody says: 1,280 by 1,024


def opened(source: Source) -> Image:
    """Upright and in RGB; what is transparent lies over white. Raises ValueError for what is no picture, has no format
    of FORMATS, or is too large, which its header says before anything is decoded."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ValueError("pictures need Pillow: pip install -e '.[media]' in the clone") from None
    name, value = source.name, source.value
    if isinstance(value, np.ndarray):
        value = _of_array(value, name)
    elif not isinstance(value, (bytes, Image.Image)):
        raise ValueError(f"{name}: a {type(value).__name__}, expected a path, bytes, a Pillow image or an array")
    try:
        with DECODING, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, and of sizes that are refused here
            image = Image.open(io.BytesIO(value), formats=FORMATS) if isinstance(value, bytes) else value
            within(image.size, name)
            image.load()
            return _upright(image, Image, ImageOps, name)
    except Image.DecompressionBombError:
        raise ValueError(f"{name}: more pixels than the {MAX_PIXELS:,} that are decoded; give a smaller one") from None
    except ValueError as error:
        if str(error).startswith(f"{name}: "):
            raise
        raise _broken(name) from None
    except (OSError, SyntaxError, MemoryError, ArithmeticError, LookupError, TypeError, AttributeError):
        raise _broken(name) from None  # what Pillow's decoders raise for files that are cut or made up


def _broken(name: str) -> ValueError:
    return ValueError(f"{name}: no picture that can be read; supported are whole {', '.join(FORMATS)} files")


def within(size: tuple[int, int], name: str) -> None:
    """Raises ValueError for a width and height of no pixels, of too many, or of nearly a line of them."""
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"{name}: {width} x {height} pixels, there is nothing in it")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name}: {width:,} x {height:,} pixels, the limit is {MAX_PIXELS:,}; give a smaller one")
    if max(size) > MAX_RATIO * min(size):
        raise ValueError(f"{name}: {width:,} x {height:,}, one side over {MAX_RATIO} times the other; cut it first")


def _of_array(value: NDArray[Any], name: str) -> Any:
    """An array of levels, uint8 `[height, width]` or `[height, width, 3 or 4]`, as a picture."""
    from PIL import Image

    if value.dtype != np.uint8 or not (value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (3, 4))):
        raise ValueError(f"{name}: an array of {value.dtype} {list(value.shape)}, expected uint8 [height, width, 3]")
    within((value.shape[1], value.shape[0]), name)
    return Image.fromarray(value)


def _upright(image: Any, pillow: Any, operations: Any, name: str) -> Image:
    image = operations.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow and transformers take every level above 255 for white
        image = pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"{name}: levels of mode {image.mode}, which have no greatest; convert it to 8 bits")
    return over_white(image)


def over_white(image: Any) -> Image:
    """In RGB; what is transparent lies over white."""
    from PIL import Image as pillow

    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = pillow.new("RGBA", image.size, (255, 255, 255, 255))
        image = pillow.alpha_composite(white, image)
    made: Image = image.convert("RGB")
    return made


def by_area(height: int, width: int, block: int, least: int, most: int) -> tuple[int, int]:
    """Sides that are multiples of a block, the nearest ones (half to even) unless the area then is below `least` or
    above `most` pixels (transformers' smart_resize)."""
    high, wide = round(height / block) * block, round(width / block) * block
    if high * wide > most:
        factor = math.sqrt(height * width / most)
        high, wide = (max(block, math.floor(side / factor / block) * block) for side in (height, width))
    elif high * wide < least:
        factor = math.sqrt(least / (height * width))
        high, wide = (math.ceil(side * factor / block) * block for side in (height, width))
    return high, wide


def by_edge(height: int, width: int, block: int, longest: int) -> tuple[int, int]:
    """No side above `longest`, then up to the next multiples of a block."""
    if (ratio := max(height / longest, width / longest)) > 1:
        height, width = math.floor(height / ratio), math.floor(width / ratio)
    return tuple(max(-(-side // block), 1) * block for side in (height, width))  # type: ignore[return-value]


def by_budget(height: int, width: int, block: int, most: int) -> tuple[int, int]:
    """The largest sides that are multiples of a block, with about the picture's proportions, on at most so many
    pixels: a picture that is smaller grows. Raises ValueError where not one block fits."""
    factor = math.sqrt(most / (height * width))
    high, wide = (math.floor(factor * side / block) * block for side in (height, width))
    longest = most // block**2 * block
    if not high:
        return block, min(width // height * block, longest)
    return (min(height // width * block, longest), block) if not wide else (high, wide)


def size_of(height: int, width: int, settings: Settings) -> tuple[int, int]:
    """The height and width that a picture is brought to."""
    if settings.sizing == "fixed":
        return settings.fixed
    if settings.sizing == "budget":
        return by_budget(height, width, settings.block, settings.most)
    if settings.sizing == "edge":
        return by_edge(height, width, settings.block, settings.most)
    return by_area(height, width, settings.block, settings.least, settings.most)


def cropped(image: Image, crops: Crops) -> list[Image]:
    """The parts that a long picture is seen in beside the whole; of others none."""
    width, height = image.size
    long, short = max(image.size), min(image.size)
    if long / short < crops.ratio:
        return []
    count = min(max(min(long // crops.least, math.floor(long / short + 0.5)), 2), crops.most)
    side = -(-long // count)
    if min(side, short) < crops.least:
        return []
    edges = [(at * side, min((at + 1) * side, long)) for at in range(count)]
    boxes = [(one, 0, other, height) if width >= height else (0, one, width, other) for one, other in edges]
    return [image.crop(box) for box in boxes]


def pixels(image: Image, settings: Settings) -> Tensor:
    """fp32 `[3, height, width]`: levels from 0 to 1 less the mean, over the deviation of each colour."""
    high, wide = size_of(image.height, image.width, settings)
    if image.size != (wide, high):
        image = image.resize((wide, high), resample=settings.resample)
    levels = (np.asarray(image).astype(np.float64) * settings.scale).astype(np.float32)
    values = (levels - np.asarray(settings.mean, np.float32)) / np.asarray(settings.deviation, np.float32)
    return torch.from_numpy(values).permute(2, 0, 1)


def patches(picture: Tensor, side: int, merge: int, frames: int) -> tuple[Tensor, tuple[int, int]]:
    """Of a picture `[3, height, width]`, its own next frames, the patches `[1, N, 3 frames side²]` in the order of
    `turning.places`, and how many rows and columns of them there are."""
    grid = picture.shape[1] // side, picture.shape[2] // side
    repeated = picture[:, None].expand(-1, frames, -1, -1)
    return rearrange(repeated, "c t (r p y) (q s x) -> 1 (r q p s) (c t y x)", p=merge, s=merge, y=side, x=side), grid
