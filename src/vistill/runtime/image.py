"""From bytes, a path or a PIL image to the array a model reads: the only preprocessing in vistill.

Training, evaluation, export, the runtime and the server all call the functions below, so a picture looks the
same to a model wherever it is met.

    source -> read_image -> RGB, upright PIL image -> to_array -> float32 [3, H, W]

Pictures are hostile until proven otherwise: bytes are counted before they are read, pixels before they are
decoded, only the formats of `formats.FORMATS` are ever opened (none of them runs a program), and whatever a
decoder raises comes out as one `ImageError` with a reason out of `REASONS`.
"""

import errno
import hashlib
import io
import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vistill.errors import ConfigError, ImageError
from vistill.runtime.formats import ends_early, open_header, sniff

REASONS: dict[str, str] = {
    "missing": "there is no such file",
    "not_a_file": "the path is a folder, pipe, socket or device",
    "unreadable": "the file exists but cannot be read (permissions, a loop of links, a failing disk)",
    "empty": "there are no bytes",
    "too_many_bytes": "more bytes than the limit",
    "too_many_pixels": "more pixels than the limit, by the header",
    "not_an_image": "the bytes are of no picture format",
    "unsupported_format": "the bytes are of a known format that is not decoded here",
    "truncated": "the file ends before the picture does",
    "corrupt": "the bytes name a format but do not follow it",
    "out_of_memory": "decoding needs more memory than there is",
}

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_RESIZE = ("squash", "crop", "pad")


@dataclass(frozen=True)
class Preprocess:
    """How an RGB picture becomes an array. Stored in every bundle and checkpoint.

    size: (H, W) in pixels. mean, std: of R, G, B on the 0..1 scale.
    resize: "squash" scales the full frame to H x W; "crop" scales until H x W is covered and keeps the
    centre; "pad" scales until it fits and fills the rest with the mean colour (zero in the array).
    interpolation: "nearest", "bilinear", "bicubic" or "lanczos", with antialiasing (Pillow's resize).
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str = "squash"
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if len(self.size) != 2 or any(not isinstance(n, int) or n < 1 for n in self.size):
            raise ConfigError(f"preprocess.size must be two positive integers (H, W), got {self.size!r}")
        for key in ("mean", "std"):
            values = getattr(self, key)
            if len(values) != 3 or not all(math.isfinite(v) for v in values):
                raise ConfigError(f"preprocess.{key} must be three finite numbers, got {values!r}")
        if min(self.std) <= 0:
            raise ConfigError(f"preprocess.std must be above 0, got {self.std!r}")
        if self.resize not in _RESIZE:
            raise ConfigError(f"preprocess.resize must be one of {', '.join(_RESIZE)}, got {self.resize!r}")
        if self.interpolation not in _RESAMPLE:
            known = ", ".join(_RESAMPLE)
            raise ConfigError(f"preprocess.interpolation must be one of {known}, got {self.interpolation!r}")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values (tuples as lists), for a manifest."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocess":
        """The reverse of `to_dict`. Raises ConfigError on an unknown or missing key or a wrong value."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        missing = sorted({"size", "mean", "std"} - set(values))
        if unknown or missing:
            raise ConfigError(f"preprocess: unknown keys {unknown}, missing keys {missing}")
        try:
            tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return cls(**tuples)
        except TypeError as error:
            raise ConfigError(f"preprocess: a value has a wrong type: {dict(values)!r}") from error

    def hash(self) -> str:
        """sha256 (hex) of the canonical JSON: equal exactly when pictures are treated alike."""
        numbers = {k: [float(n) for n in v] if k in ("mean", "std") else v for k, v in self.to_dict().items()}
        text = json.dumps(numbers, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Limits:
    """What a picture may ask for. The defaults take any phone or scanner picture up to 67 megapixels.

    max_pixels is compared with the size in the header, before a pixel is decoded: a GIF of 425 bytes can ask
    for 68 million. A decoded pixel takes 4 bytes. Pillow itself refuses TIFF and WebP above 179 megapixels.
    """

    max_bytes: int = 128 * 2**20
    max_pixels: int = 2**26

    def __post_init__(self) -> None:
        for key in ("max_bytes", "max_pixels"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} must be at least 1, got {getattr(self, key)}")


DEFAULT_LIMITS = Limits()


def read_image(
    source: bytes | str | Path | Image.Image,
    limits: Limits = DEFAULT_LIMITS,
    target: tuple[int, int] | None = None,
) -> Image.Image:
    """Decode `source` (encoded bytes, a path, or a PIL image) to an upright RGB picture.

    The first frame or page counts. EXIF orientation is applied; transparency is laid on white; CMYK goes
    through its colour profile where it has one; 16-bit grey is scaled to 8. RGB profiles are not applied.
    target: (H, W) that the picture will be resized to; lets JPEG decode at a half, quarter or eighth, never
    below twice the target. A PIL image that is upright RGB already comes back itself, uncopied.

    Raises ImageError, and nothing else, when the picture cannot or must not be decoded.
    """
    if isinstance(source, Image.Image):
        return _guarded("picture", b"", lambda: _upright_rgb(source, "picture", limits))
    name = "picture" if isinstance(source, bytes) else printable(source)
    data = source if isinstance(source, bytes) else _read_file(source, limits)
    if not data:
        raise ImageError("empty", f"{name} has no bytes")
    if len(data) > limits.max_bytes:
        raise ImageError(
            "too_many_bytes", f"{name} has {len(data):,} bytes, the limit is {limits.max_bytes:,}"
        )
    return _guarded(name, data, lambda: _decode(data, name, limits, target))


def to_array(image: Image.Image, spec: Preprocess) -> NDArray[np.float32]:
    """Resize an RGB picture and normalise it: float32 [3, H, W], C-contiguous."""
    if image.mode != "RGB":
        raise ValueError(f"to_array takes an RGB picture (see read_image), got mode {image.mode}")
    out = np.empty((3, *spec.size), dtype=np.float32)
    planes = _resize(image, spec).split()  # three planes [H, W] uint8: twice as fast as a strided [H, W, 3]
    for channel, (plane, mean, std) in enumerate(zip(planes, spec.mean, spec.std, strict=True)):
        np.multiply(np.asarray(plane), np.float32(1 / (255 * std)), out=out[channel])
        out[channel] -= np.float32(mean / std)
    return out


def preprocess(
    source: bytes | str | Path | Image.Image, spec: Preprocess, limits: Limits = DEFAULT_LIMITS
) -> NDArray[np.float32]:
    """`read_image` and `to_array` in one: float32 [3, H, W]. Raises ImageError."""
    return to_array(read_image(source, limits, target=spec.size), spec)


@dataclass(frozen=True)
class AugmentSpec:
    """How far `augment` may go.

    crop_scale: range of the kept share of the area. aspect: range of the stretch of the crop relative to the
    picture's own aspect. flip: probability of a mirror image. brightness, contrast, saturation: a factor is
    drawn from [1 - x, 1 + x].
    """

    crop_scale: tuple[float, float] = (0.7, 1.0)
    aspect: tuple[float, float] = (0.8, 1.25)
    flip: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ConfigError(f"augment.crop_scale must be 0 < low <= high <= 1, got {self.crop_scale!r}")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ConfigError(f"augment.aspect must be 0 < low <= high, got {self.aspect!r}")
        for key in ("flip", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"augment.{key} must lie in 0..1, got {getattr(self, key)!r}")


def augment(image: Image.Image, spec: AugmentSpec, seed: int) -> tuple[Image.Image, bool]:
    """A random crop, mirroring and colour change of an RGB picture, decided by `seed` alone.

    Returns the picture (its size is the crop's; `to_array` resizes it) and whether it was mirrored, so that
    the caller can swap "left" and "right" in its captions.
    """
    rng = np.random.default_rng(seed)
    area = rng.uniform(*spec.crop_scale)
    stretch = math.exp(rng.uniform(math.log(spec.aspect[0]), math.log(spec.aspect[1])))
    width = max(1, round(image.width * min(1.0, math.sqrt(area * stretch))))
    height = max(1, round(image.height * min(1.0, math.sqrt(area / stretch))))
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    flipped = bool(rng.random() < spec.flip)
    brightness, contrast, saturation = (
        1 + rng.uniform(-1, 1) * reach for reach in (spec.brightness, spec.contrast, spec.saturation)
    )
    image = image.crop((left, top, left + width, top + height))
    if flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if spec.brightness or spec.contrast or spec.saturation:
        image = _jitter(image, brightness, contrast, saturation)
    return image, flipped


def printable(path: str | Path) -> str:
    """A path as text that is safe to print: control and undecodable characters are escaped."""
    text = os.fspath(path)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _read_file(path: str | Path, limits: Limits) -> bytes:
    """The bytes of a regular file, at most one more than `limits.max_bytes`. Raises ImageError."""
    name = printable(path)
    try:
        status = os.stat(path)
        # Looked at before opening: opening a pipe would wait for its writer for ever.
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("not_a_file", f"{name} is not a regular file")
        if status.st_size > limits.max_bytes:
            size = f"{status.st_size:,} bytes, the limit is {limits.max_bytes:,}"
            raise ImageError("too_many_bytes", f"{name} has {size}")
        with open(path, "rb") as file:
            return file.read(limits.max_bytes + 1)
    except OSError as error:
        gone = error.errno in (errno.ENOENT, errno.ENOTDIR)
        text = error.strerror or type(error).__name__
        raise ImageError("missing" if gone else "unreadable", f"{name}: {text}") from error
    except ValueError as error:  # a null byte in the name
        raise ImageError("missing", f"{name}: {error}") from error


def _guarded(name: str, data: bytes, decode: Callable[[], Image.Image]) -> Image.Image:
    """Run a decoder; whatever it raises leaves as ImageError.

    Broken files make Pillow raise nearly anything (OSError, SyntaxError, ValueError, struct.error,
    IndexError, OverflowError, zlib.error ...), which is why Exception is caught: here is the fault line.
    """
    try:
        return decode()
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError("out_of_memory", f"{name}: decoding needs more memory than there is") from error
    except Image.DecompressionBombError as error:
        raise ImageError("too_many_pixels", f"{name}: {error}") from error
    except Exception as error:
        text = f"{error}" or type(error).__name__
        early = "truncated" in text.lower() or ends_early(data)
        raise ImageError("truncated" if early else "corrupt", f"{name}: {text}") from error


def _decode(data: bytes, name: str, limits: Limits, target: tuple[int, int] | None) -> Image.Image:
    kind = sniff(data, name)
    image = open_header(kind, data, name)
    if kind == "TIFF":  # a small picture may be stored in one enormous tile
        sides = [image.tag_v2.get(tag, 1) for tag in (322, 323)]
        if not all(isinstance(side, int) for side in sides):
            raise ImageError("corrupt", f"{name}: the tile size is not a number")
        _check_pixels(sides[0] * sides[1], f"{name}, in one tile,", limits)
    _check_pixels(image.width * image.height, name, limits)
    if kind == "JPEG" and target is not None:
        image.draft(None, (2 * max(target), 2 * max(target)))
    return _upright_rgb(image, name, limits)


def _check_pixels(pixels: int, name: str, limits: Limits) -> None:
    if pixels < 1:
        raise ImageError("corrupt", f"{name} has no pixels")
    if pixels > limits.max_pixels:
        raise ImageError(
            "too_many_pixels", f"{name} has {pixels:,} pixels, the limit is {limits.max_pixels:,}"
        )


def _upright_rgb(image: Image.Image, name: str, limits: Limits) -> Image.Image:
    _check_pixels(image.width * image.height, name, limits)
    image.load()
    _check_pixels(image.width * image.height, name, limits)
    turn = _UPRIGHT.get(_orientation(image))
    image = _to_rgb(image)
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where the EXIF block is absent or broken.

    A broken block is not reported: the pixels are whole, and nothing else of EXIF is used.
    """
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
        return int(value) if value in _UPRIGHT else 1
    except Exception:  # noqa: BLE001
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any decoded picture as 8-bit RGB of the same size."""
    mode = image.mode
    if mode.startswith(("I", "F")):
        return Image.fromarray(_grey8(np.asarray(image), sixteen=mode != "F")).convert("RGB")
    if mode in ("CMYK", "LAB"):
        return _through_profile(image)
    if image.has_transparency_data:
        image = image.convert("LA") if mode == "La" else image
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if mode == "RGB" else image.convert("RGB")


def _grey8(values: NDArray[Any], sixteen: bool) -> NDArray[np.uint8]:
    """Deep grey [H, W] as uint8.

    Integers in 0..65535 count as 16-bit samples, floats in 0..1 as shares of white, floats in 0..255 as
    8-bit samples; any other range is stretched from its lowest to its highest value.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return np.rint(np.arange(65536) / 257).astype(np.uint8)[values]
    values = np.nan_to_num(values.astype(np.float32), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= (65535 if sixteen else 255):
        low, high = 0.0, 65535.0 if sixteen else (1.0 if high <= 1 else 255.0)
    scaled = (values - low) * (255 / max(high - low, 1e-12))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _through_profile(image: Image.Image) -> Image.Image:
    """CMYK or LAB to sRGB with LittleCMS; CMYK without a usable profile by the plain formula."""
    from PIL import ImageCms  # 5 ms to import, and few pictures need it

    embedded = image.info.get("icc_profile")
    if image.mode == "LAB":
        profile: Any = ImageCms.createProfile("LAB")
    elif embedded:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
            if profile.profile.xcolor_space.strip() != "CMYK":
                return image.convert("RGB")
        except (OSError, ImageCms.PyCMSError):  # a broken profile over good pixels
            return image.convert("RGB")
    else:
        return image.convert("RGB")
    srgb = ImageCms.createProfile("sRGB")
    try:
        converted = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
    except ImageCms.PyCMSError:
        if image.mode == "LAB":
            raise
        return image.convert("RGB")
    assert converted is not None  # it is None only for in-place conversion
    return converted


def _resize(image: Image.Image, spec: Preprocess) -> Image.Image:
    """The RGB picture at exactly spec.size.

    No step is larger than the source or the result: 10000 x 1 pixels cost no more than any other picture.
    """
    height, width = spec.size
    resample = _RESAMPLE[spec.interpolation]
    box: tuple[float, float, float, float] = (0, 0, image.width, image.height)
    inner = (width, height)
    if spec.resize == "crop":
        scale = max(width / image.width, height / image.height)
        across, down = min(width / scale, image.width), min(height / scale, image.height)
        left, top = (image.width - across) / 2, (image.height - down) / 2
        box = (left, top, left + across, top + down)
    elif spec.resize == "pad":
        scale = min(width / image.width, height / image.height)
        inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    gap = None if spec.interpolation == "nearest" else 2.0
    resized = image.resize(inner, resample, box=box, reducing_gap=gap)
    if inner == (width, height):
        return resized
    mean = tuple(max(0, min(255, round(255 * m))) for m in spec.mean)
    canvas = Image.new("RGB", (width, height), mean)
    canvas.paste(resized, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def _jitter(image: Image.Image, brightness: float, contrast: float, saturation: float) -> Image.Image:
    """Brightness, contrast about the mean grey, saturation about each pixel's grey, in this order.

    All three are affine in RGB, so they are one colour matrix: one pass, one rounding, one clipping.
    """
    grey = (0.299, 0.587, 0.114)
    mean = float(np.asarray(image.convert("L")).mean())
    gain = brightness * contrast
    offset = (1 - contrast) * brightness * mean
    matrix: list[float] = []
    for row in range(3):
        matrix += [gain * (saturation * (row == col) + (1 - saturation) * grey[col]) for col in range(3)]
        matrix.append(offset)
    return image.convert("RGB", tuple(matrix))
