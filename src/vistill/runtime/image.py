"""From bytes, a path or a PIL image to the array a model reads: the only preprocessing in vistill.

Training, evaluation, export, the runtime and the server all call the functions below, so a picture looks the
same to a model wherever it is met.

    source -> read_image -> RGB, upright PIL image -> to_array -> float32 [3, H, W]

Pictures are hostile until proven otherwise: bytes are counted before they are read, pixels before they are
decoded, only the formats of `FORMATS` are ever opened (none of them runs a program), and whatever a decoder
raises comes out as one `ImageError` with a reason out of `REASONS`.
"""

import errno
import hashlib
import importlib
import io
import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from vistill.errors import ConfigError, ImageError

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

# Format -> Pillow module, class, and the optional codec it needs. The classes are called directly and not
# through Image.open: that skips the import of 45 plugins, the global MAX_IMAGE_PIXELS (ours is an argument),
# and, for JPEG, the multi-picture index whose faults must not cost us the first picture.
FORMATS: dict[str, tuple[str, str, str | None]] = {
    "JPEG": ("JpegImagePlugin", "JpegImageFile", None),
    "PNG": ("PngImagePlugin", "PngImageFile", None),
    "GIF": ("GifImagePlugin", "GifImageFile", None),
    "WEBP": ("WebPImagePlugin", "WebPImageFile", "webp"),
    "TIFF": ("TiffImagePlugin", "TiffImageFile", None),
    "BMP": ("BmpImagePlugin", "BmpImageFile", None),
    "PPM": ("PpmImagePlugin", "PpmImageFile", None),
    "JPEG2000": ("Jpeg2KImagePlugin", "Jpeg2KImageFile", "jpg_2000"),
    "AVIF": ("AvifImagePlugin", "AvifImageFile", "avif"),
}

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"BM", "BMP"),
    *((b"P%d" % n, "PPM") for n in range(1, 7)),
)

# Recognised so that the message can say what the file is.
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript document"),
    (b"8BPS", "a Photoshop document"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML or SVG document"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\0\0\x01\0", "an icon"),
    (b"icns", "an icon"),
    (b"qoif", "a QOI picture"),
    (b"DDS ", "a DDS texture"),
    (b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (b"FUJIFILMCCD-RAW", "a camera raw file"),
    (b"\x1aE\xdf\xa3", "a video"),
)

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
    resize: "squash" scales the full frame to H x W; "crop" scales until H x W is covered and keeps the centre;
    "pad" scales until it fits and fills the rest with the mean colour (zero in the array).
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
    for 68 million. A decoded pixel takes 4 bytes.
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

    Returns the picture (its size is the crop's; `to_array` resizes it) and whether it was mirrored, so that the
    caller can swap "left" and "right" in its captions.
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


def _guarded(name: str, data: bytes, decode: Any) -> Image.Image:
    """Run a decoder; whatever it raises leaves as ImageError.

    Broken files make Pillow raise nearly anything (OSError, SyntaxError, ValueError, struct.error, IndexError,
    OverflowError, zlib.error ...), which is why Exception is caught: the decoder is the fault line.
    """
    try:
        image: Image.Image = decode()
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError("out_of_memory", f"{name}: decoding needs more memory than there is") from error
    except Image.DecompressionBombError as error:
        raise ImageError("too_many_pixels", f"{name}: {error}") from error
    except Exception as error:
        text = f"{error}" or type(error).__name__
        early = "truncated" in text.lower() or _ends_early(data)
        raise ImageError("truncated" if early else "corrupt", f"{name}: {text}") from error
    return image


def _decode(data: bytes, name: str, limits: Limits, target: tuple[int, int] | None) -> Image.Image:
    kind = _sniff(data, name)
    image = _open(kind, data, name)
    if kind == "TIFF":  # a small picture may be stored in one enormous tile
        tile = image.tag_v2.get(322, 1) * image.tag_v2.get(323, 1)
        _check_pixels(tile, f"{name}, in one tile,", limits)
    _check_pixels(image.width * image.height, name, limits)
    if kind == "JPEG" and target is not None:
        image.draft(None, (2 * max(target), 2 * max(target)))
    return _upright_rgb(image, name, limits)


def _sniff(data: bytes, name: str) -> str:
    """The format by the first bytes, never by the file's name. Raises ImageError for all but `FORMATS`."""
    for signature, kind in _SIGNATURES:
        if data.startswith(signature):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        length = min(int.from_bytes(data[:4], "big"), 256)
        brands = {data[8:12], *(data[i : i + 4] for i in range(16, length - 3, 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}:
            return "HEIC"
        raise ImageError("unsupported_format", f"{name} is a video or a camera raw file")
    for signature, what in _FOREIGN:
        if data.lstrip().startswith(signature) or data.startswith(signature):
            known = ", ".join(FORMATS)
            raise ImageError(
                "unsupported_format", f"{name} is {what}; decoded are {known}, HEIC with pillow-heif"
            )
    raise ImageError("not_an_image", f"{name} starts with {data[:8]!r}, which no picture format does")


def _open(kind: str, data: bytes, name: str) -> Any:
    """A lazily opened Pillow picture: the header is read, the pixels are not."""
    if kind == "HEIC":
        try:
            module: Any = importlib.import_module("pillow_heif")
        except ImportError as error:
            raise ImageError("unsupported_format", f"{name} is HEIC: pip install pillow-heif") from error
        return module.HeifImageFile(io.BytesIO(data))
    module_name, class_name, codec = FORMATS[kind]
    if codec is not None and not _has_codec(codec):
        raise ImageError("unsupported_format", f"{name} is {kind}, which this build of Pillow cannot decode")
    module = importlib.import_module(f"PIL.{module_name}")
    return getattr(module, class_name)(io.BytesIO(data))


def _has_codec(codec: str) -> bool:
    try:
        return bool(features.check(codec))
    except ValueError:  # a Pillow older than the codec
        return False


def _check_pixels(pixels: int, name: str, limits: Limits) -> None:
    if pixels < 1:
        raise ImageError("corrupt", f"{name} has no pixels")
    if pixels > limits.max_pixels:
        raise ImageError(
            "too_many_pixels", f"{name} has {pixels:,} pixels, the limit is {limits.max_pixels:,}"
        )


def _ends_early(data: bytes) -> bool:
    """Whether bytes that failed to decode lack their format's end; tells "truncated" from "corrupt"."""
    if data[:3] == b"\xff\xd8\xff" or data[:4] == b"\xff\x4f\xff\x51":
        return not data.rstrip(b"\0").endswith(b"\xff\xd9")
    if data[:4] == b"\x89PNG":
        return b"IEND" not in data[-64:]
    if data[:4] == b"GIF8":
        return not data.rstrip(b"\0").endswith(b"\x3b")
    if data[:4] == b"RIFF":
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    if data[:2] == b"BM":
        return len(data) < int.from_bytes(data[2:6], "little")
    if data[4:8] in (b"ftyp", b"jP  "):
        return _last_box_end(data) > len(data)
    return False


def _last_box_end(data: bytes) -> int:
    """Where the last top-level box of an ISO media file says that it ends."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # 0 means "to the end of the file"
            return len(data)
        at += size
    return at + (8 if at < len(data) else 0)


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
    except Exception:
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
    """Deep grey [H, W] as uint8. Integers in 0..65535 count as 16-bit samples, floats in 0..1 as shares of
    white, floats in 0..255 as 8-bit samples; any other range is stretched from its lowest to its highest value.
    """
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
    """The RGB picture at exactly spec.size. No step is larger than the source or the result, so that a picture
    of 10000 x 1 costs no more than any other."""
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
    """Brightness, contrast about the mean grey, saturation about each pixel's grey, in this order. All three are
    affine in RGB, so they are one colour matrix: one pass, one rounding, one clipping."""
    grey = (0.299, 0.587, 0.114)
    mean = float(np.asarray(image.convert("L")).mean())
    gain = brightness * contrast
    offset = (1 - contrast) * brightness * mean
    matrix: list[float] = []
    for row in range(3):
        matrix += [gain * (saturation * (row == col) + (1 - saturation) * grey[col]) for col in range(3)]
        matrix.append(offset)
    return image.convert("RGB", tuple(matrix))
