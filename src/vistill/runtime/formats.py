"""Which picture formats are opened, how a file's format is told, and where its bytes should end."""

import importlib
import io
from typing import Any

from PIL import features

from vistill.errors import ImageError

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


def sniff(data: bytes, name: str) -> str:
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


def open_header(kind: str, data: bytes, name: str) -> Any:
    """A lazily opened Pillow picture: the header is read, the pixels are not."""
    if kind == "HEIC":
        try:
            module: Any = importlib.import_module("pillow_heif")
        except ImportError as error:
            raise ImageError("unsupported_format", f"{name} is HEIC: pip install pillow-heif") from error
        return module.HeifImageFile(io.BytesIO(data))
    module_name, class_name, codec = FORMATS[kind]
    if codec is not None and not features.check(codec):
        raise ImageError("unsupported_format", f"{name} is {kind}, which this build of Pillow cannot decode")
    module = importlib.import_module(f"PIL.{module_name}")
    return getattr(module, class_name)(io.BytesIO(data))


def ends_early(data: bytes) -> bool:
    """Whether bytes that failed to decode lack their format's end; tells "truncated" from "corrupt"."""
    tail = data[-4096:].rstrip(b"\0")
    if data[:3] == b"\xff\xd8\xff" or data[:4] == b"\xff\x4f\xff\x51":
        return not tail.endswith(b"\xff\xd9")
    if data[:4] == b"\x89PNG":
        return b"IEND" not in tail[-64:]
    if data[:4] == b"GIF8":
        return not tail.endswith(b"\x3b")
    if data[:4] == b"RIFF":
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    if data[:2] == b"BM":
        return len(data) < int.from_bytes(data[2:6], "little")
    if data[4:8] in (b"ftyp", b"jP  "):
        return _last_box_end(data) > len(data)
    if data[:4] in (b"II*\0", b"MM\0*"):
        return int.from_bytes(data[4:8], "little" if data[:1] == b"I" else "big") + 2 > len(data)
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
