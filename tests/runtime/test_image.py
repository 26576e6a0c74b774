"""Every kind of picture that people and attackers have, made here and read back."""

import io
import os
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile

from vistill.errors import ConfigError, ImageError
from vistill.runtime.formats import FORMATS
from vistill.runtime.image import (
    REASONS,
    AugmentSpec,
    Limits,
    Preprocess,
    augment,
    preprocess,
    printable,
    read_image,
    to_array,
)

SPEC = Preprocess((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PLAIN = Preprocess((8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
KINDS = sorted(FORMATS)


def photo(width: int = 60, height: int = 40) -> Image.Image:
    """Smooth, coloured, and unlike any of its mirror images."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1)
    blue = 255 * ((x > width * 0.6) & (y < height * 0.4))
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG of any declared size around any bytes: Pillow would refuse to write most of what we need."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = b"".join(chunk(e[:4], e[4:]) for e in extra) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def pixels(source: object, **options: object) -> np.ndarray:
    image = read_image(source, **options)  # type: ignore[arg-type]
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def reason_of(source: object, limits: Limits = Limits()) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(source, limits)  # type: ignore[arg-type]
    assert caught.value.reason in REASONS
    assert caught.value.detail
    return caught.value.reason


# --- formats, modes, orientation


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_reads_back(kind: str, tmp_path: Path) -> None:
    data = encode(photo(), kind)
    (tmp_path / "named.wrong").write_bytes(data)  # the bytes decide, not the suffix
    for source in (data, tmp_path / "named.wrong", str(tmp_path / "named.wrong")):
        assert np.abs(pixels(source) - np.asarray(photo())).mean() < 12


# Where the stored picture came from, by the EXIF standard: what has to be undone.
STORED = {
    1: lambda up: up,
    2: np.fliplr,
    3: lambda up: np.rot90(up, 2),
    4: np.flipud,
    5: lambda up: up.transpose(1, 0, 2),
    6: lambda up: np.rot90(up, 1),
    7: lambda up: np.rot90(up.transpose(1, 0, 2), 2),
    8: lambda up: np.rot90(up, -1),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_undone(kind: str, orientation: int) -> None:
    upright = np.asarray(photo())
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    data = encode(stored, kind, exif=exif)
    assert np.abs(pixels(data) - upright).mean() < 4
    with Image.open(io.BytesIO(data)) as opened:
        assert np.abs(pixels(opened) - upright).mean() < 4
    drafted = pixels(data, target=(4, 4))
    assert drafted.shape[1] > drafted.shape[0]


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_out_of_range_counts_as_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.abs(pixels(encode(photo(), "JPEG", exif=exif)) - np.asarray(photo())).mean() < 4


@pytest.mark.parametrize(
    "body", [b"", b"garbage", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 40]
)
def test_broken_exif_does_not_cost_the_picture(body: bytes) -> None:
    plain = encode(photo(), "JPEG")
    segment = b"Exif\0\0" + body
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]
    assert np.abs(pixels(data) - np.asarray(photo())).mean() < 4


def flat(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (16, 12), colour)  # type: ignore[arg-type]


def centre(source: object) -> tuple[int, ...]:
    values = pixels(source)
    assert values.shape == (12, 16, 3)
    return tuple(int(v) for v in values[6, 8])


def near(found: tuple[int, ...], wanted: tuple[int, ...], within: int = 3) -> bool:
    return max(abs(f - w) for f, w in zip(found, wanted, strict=True)) <= within


def test_cmyk_without_a_profile() -> None:
    assert near(centre(encode(flat("CMYK", (255, 0, 0, 0)), "TIFF")), (0, 255, 255))
    adobe = encode(flat("CMYK", (255, 0, 0, 0)), "JPEG", quality=95)
    assert near(centre(adobe), (0, 255, 255), 6)
    # Inverted ink is the custom, with Adobe's marker or without (browsers read it so too).
    at = adobe.index(b"\xff\xee")
    length = struct.unpack(">H", adobe[at + 2 : at + 4])[0]
    assert near(centre(adobe[:at] + adobe[at + 2 + length :]), (0, 255, 255), 6)


def cmyk_profile() -> bytes:
    """An ICC profile (lut8, two grid points an axis) in which black is black and cyan ink prints grey."""
    table = bytearray()
    for corner in range(16):
        cyan, black = corner >> 3 & 1, corner & 1
        table += bytes((0 if black else 128 if cyan else 255, 128, 128))  # Lab: L of 0, 50 or 100, no colour
    ramp = bytes(range(256))
    identity = b"".join(struct.pack(">i", 65536 * (i % 4 == 0)) for i in range(9))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + ramp * 4 + bytes(table) + ramp * 3
    lut += bytes(-len(lut) % 4)
    text = b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(80)
    text += bytes(-len(text) % 4)
    white = b"XYZ " + bytes(4) + struct.pack(">iii", 63190, 65536, 54061)
    offset = 128 + 4 + 3 * 12
    entries, body = b"", b""
    for name, part in ((b"desc", text), (b"wtpt", white), (b"A2B0", lut)):
        entries += name + struct.pack(">II", offset + len(body), len(part))
        body += part
    total = offset + len(body)
    header = struct.pack(">I4sI", total, bytes(4), 0x02400000) + b"prtrCMYKLab " + bytes(12) + b"acsp"
    header += bytes(68 - len(header)) + struct.pack(">iii", 63190, 65536, 54061)
    return header + bytes(128 - len(header)) + struct.pack(">I", 3) + entries + body


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_goes_through_its_profile(kind: str) -> None:
    cyan = flat("CMYK", (255, 0, 0, 0))
    red, green, blue = centre(encode(cyan, kind, icc_profile=cmyk_profile()))
    assert 100 < green < 140
    assert max(red, green, blue) - min(red, green, blue) <= 6


def test_a_broken_or_foreign_profile_falls_back_to_the_plain_formula() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (b"nonsense", cmyk_profile()[:200], srgb):
        assert near(centre(encode(flat("CMYK", (255, 0, 0, 0)), "TIFF", icc_profile=profile)), (0, 255, 255))


def test_lab() -> None:
    assert near(centre(encode(flat("LAB", (255, 128, 128)), "TIFF")), (255, 255, 255))
    red, green, blue = centre(encode(flat("LAB", (137, 208, 195)), "TIFF"))
    assert red > 200
    assert max(green, blue) < 90


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 16 * 12).round().astype(np.uint16).reshape(12, 16)
    wanted = np.rint(ramp / 257).astype(int)
    image = Image.fromarray(ramp)
    for source in (encode(image, "PNG"), encode(image, "TIFF"), encode(image, "JPEG2000"), image):
        assert np.abs(pixels(source)[:, :, 1] - wanted).max() <= 1
    big_endian = Image.frombytes("I;16B", (16, 12), ramp.astype(">u2").tobytes())
    assert np.abs(pixels(big_endian)[:, :, 0] - wanted).max() <= 1


def test_16_bit_colour_keeps_its_high_bytes() -> None:
    rows = b"".join(b"\0" + struct.pack(">HHH", 65535, 32768, 257) * 16 for _ in range(12))
    assert near(centre(png(16, 12, 16, 2, rows)), (255, 128, 1), 1)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.full((12, 16), 0.5, np.float32), 128),
        (np.full((12, 16), 200.0, np.float32), 200),
        (
            np.where(np.arange(16) == 8, 4000.0, -4000.0).astype(np.float32) * np.ones((12, 1), np.float32),
            255,
        ),
        (np.where(np.arange(16) == 8, np.nan, 1.0).astype(np.float32) * np.ones((12, 1), np.float32), 0),
        (np.full((12, 16), 65535, np.int32), 255),
        (np.where(np.arange(16) == 8, 10**6, 0).astype(np.int32) * np.ones((12, 1), np.int32), 255),
    ],
)
def test_float_and_32_bit_grey(values: np.ndarray, wanted: int) -> None:
    assert near(centre(encode(Image.fromarray(values), "TIFF")), (wanted,) * 3, 1)


def test_transparency_is_laid_on_white() -> None:
    assert centre(encode(flat("RGBA", (10, 20, 30, 0)), "PNG")) == (255, 255, 255)
    assert centre(encode(flat("RGBA", (10, 20, 30, 255)), "PNG")) == (10, 20, 30)
    assert near(centre(encode(flat("RGBA", (0, 0, 0, 128)), "WEBP", lossless=True)), (127, 127, 127), 1)
    assert near(centre(encode(flat("LA", (0, 128)), "PNG")), (127, 127, 127), 1)
    assert near(centre(encode(flat("LA", (100, 255)), "TIFF")), (100, 100, 100), 1)
    assert near(centre(flat("RGBa", (0, 0, 0, 128))), (127, 127, 127), 1)
    assert near(centre(flat("La", (0, 128))), (127, 127, 127), 1)


def test_colour_key_transparency() -> None:
    assert centre(encode(flat("RGB", (10, 20, 30)), "PNG", transparency=(10, 20, 30))) == (255, 255, 255)
    assert centre(encode(flat("RGB", (10, 20, 30)), "PNG", transparency=(9, 20, 30))) == (10, 20, 30)
    assert centre(encode(flat("L", 7), "PNG", transparency=7)) == (255, 255, 255)


def test_palettes() -> None:
    image = flat("P", 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert centre(encode(image, "PNG")) == (200, 100, 50)
    assert centre(encode(image, "GIF")) == (200, 100, 50)
    assert centre(encode(image, "PNG", transparency=1)) == (255, 255, 255)
    assert centre(encode(image, "GIF", transparency=1)) == (255, 255, 255)
    assert near(centre(encode(image, "PNG", transparency=b"\xff\x80")), (227, 177, 152), 2)


def test_one_bit_and_other_modes() -> None:
    for kind in ("PNG", "TIFF", "BMP", "PPM"):
        assert centre(encode(flat("1", 1), kind)) == (255, 255, 255)
        assert centre(encode(flat("1", 0), kind)) == (0, 0, 0)
    assert near(centre(flat("HSV", (0, 255, 255))), (255, 0, 0))
    assert near(centre(encode(flat("YCbCr", (128, 128, 128)), "TIFF")), (128, 128, 128))
    assert centre(flat("PA", 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"])
def test_the_first_frame_counts(kind: str) -> None:
    frames = [flat("RGB", (200, 30, 30)), flat("RGB", (30, 200, 30)), flat("RGB", (30, 30, 200))]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert near(centre(data), (200, 30, 30), 12)


# --- sizes, limits, hostile headers


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (10000, 1), (1, 10000), (3, 2), (4000, 7)])
def test_odd_sizes(resize: str, size: tuple[int, int]) -> None:
    spec = Preprocess((20, 30), SPEC.mean, SPEC.std, resize=resize)
    array = preprocess(encode(photo(*size), "PNG"), spec)
    assert array.shape == (3, 20, 30)
    assert np.isfinite(array).all()


def test_pixels_are_counted_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    gif = bytearray(encode(flat("L", 0), "GIF"))
    gif[6:10] = struct.pack("<HH", 8289, 8192)
    bmp = bytearray(encode(flat("RGB", 0), "BMP"))
    bmp[18:26] = struct.pack("<ii", 40000, 40000)

    def load(self: ImageFile.ImageFile) -> None:
        raise AssertionError(f"{self.format} was decoded")

    with monkeypatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", load)
        for huge in (png(60000, 60000, 8, 2, b""), bytes(gif), bytes(bmp), b"P6 50000 50000 255\n"):
            assert reason_of(huge) == "too_many_pixels"
    limits = Limits(max_pixels=60 * 40)
    for kind in KINDS:
        assert read_image(encode(photo(), kind), limits).size == (60, 40)
        assert reason_of(encode(photo(61, 40), kind), limits) == "too_many_pixels"
    assert reason_of(photo(61, 40), limits) == "too_many_pixels"


def test_a_gif_frame_larger_than_its_screen_is_counted() -> None:
    data = bytearray(encode(flat("L", 0), "GIF"))
    at = data.index(b"\x2c")
    data[at + 5 : at + 9] = struct.pack("<HH", 60000, 60000)
    assert reason_of(bytes(data)) == "too_many_pixels"


@pytest.mark.parametrize("side_type", [4, 2])
def test_an_enormous_tiff_tile_is_refused(side_type: int) -> None:
    side = 2**31 - 16
    tags = [(256, 4, 10), (257, 4, 10), (258, 3, 8), (259, 3, 5), (262, 3, 1), (277, 3, 1)]
    tags += [(322, side_type, side), (323, 4, side), (324, 4, 8), (325, 4, 8)]
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    data = b"II*\0" + struct.pack("<I", 16) + bytes(8) + struct.pack("<H", len(tags)) + body + bytes(4)
    assert reason_of(data) in ("too_many_pixels", "corrupt")


def test_pillows_own_limit_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Image.MAX_IMAGE_PIXELS
    assert read_image(encode(photo(), "PNG")).size == (60, 40)
    assert before == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in set(KINDS) - {"TIFF", "WEBP"}:  # Pillow checks these two on its own
            assert read_image(encode(photo(), kind)).size == (60, 40)


def test_bytes_are_counted_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "sparse.jpg"
    with path.open("wb") as file:
        file.truncate(2**40)  # which no machine of ours could read
    assert reason_of(path) == "too_many_bytes"
    data = encode(photo(), "PNG")
    assert reason_of(data, Limits(max_bytes=len(data) - 1)) == "too_many_bytes"
    assert read_image(data, Limits(max_bytes=len(data))).size == (60, 40)


def test_limits_are_checked() -> None:
    with pytest.raises(ConfigError, match="max_pixels"):
        Limits(max_pixels=0)


# --- what is no picture


def test_paths_that_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"x")
    assert reason_of(tmp_path / "empty.jpg") == "empty"
    assert reason_of(tmp_path / "pipe.jpg") == "not_a_file"
    assert reason_of(tmp_path) == "not_a_file"
    assert reason_of("/dev/zero") == "not_a_file"
    assert reason_of(tmp_path / "loop.jpg") == "unreadable"
    assert reason_of(tmp_path / "dangling.jpg") == "missing"
    assert reason_of(tmp_path / "file" / "below.jpg") == "missing"
    assert reason_of(tmp_path / "absent.jpg") == "missing"
    assert reason_of("null\0byte.jpg") == "missing"
    assert reason_of("x" * 5000) == "unreadable"
    assert reason_of(b"") == "empty"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "locked.png"
    path.write_bytes(encode(photo(), "PNG"))
    path.chmod(0)
    assert reason_of(path) == "unreadable"


def test_an_error_of_the_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(photo(), "PNG"))

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", fail)
    assert reason_of(path) == "unreadable"


@pytest.mark.parametrize(
    "data", [b"hello world", b"\0" * 100, b"RIFF\0\0\0\0WAVEfmt ", b"\xff\xd8", b"B", b"P7\n"]
)
def test_other_bytes_are_not_an_image(data: bytes) -> None:
    assert reason_of(data) == "not_an_image"


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"%PDF-1.7", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript"),
        (b"  \n<svg xmlns='x'>", "SVG"),
        (b"8BPS\0\x01", "Photoshop"),
        (b"\xff\x0a\xfa", "JPEG XL"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pillow-heif"),
        (b"\0\0\0\x14ftypisom\0\0\0\0mp42", "video"),
    ],
)
def test_foreign_formats_are_named(data: bytes, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    with pytest.raises(ImageError, match=named) as caught:
        read_image(data)
    assert caught.value.reason == "unsupported_format"


def test_names_are_printed_safely(tmp_path: Path) -> None:
    raw = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b[31m\n\xe9t\xc3\xa9.jpg")
    with pytest.raises(ImageError) as caught:
        read_image(raw)
    assert str(caught.value).isprintable()
    caught.value.detail.encode("utf-8")
    assert printable("été.jpg") == "été.jpg"


# --- broken files


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.8, 0.95])
def test_a_truncated_file_says_so(kind: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    assert reason_of(data[: int(len(data) * part)]) == "truncated"


@pytest.mark.parametrize("kind", KINDS)
def test_a_header_followed_by_rubbish_is_corrupt_or_truncated(kind: str) -> None:
    data = encode(photo(), kind)
    assert reason_of(data[:16] + b"\xa5" * 500) in (
        "corrupt",
        "truncated",
        "too_many_pixels",
        "unsupported_format",
    )


def damaged(kind: str, draw: st.DataObject, clean: dict[str, bytes]) -> bytes:
    data = bytearray(clean[kind])
    for _ in range(draw.draw(st.integers(1, 8))):
        at = draw.draw(st.one_of(st.integers(0, min(80, len(data) - 1)), st.integers(0, len(data) - 1)))
        data[at] = draw.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, data[at] ^ 1, data[at] ^ 0x80]))
    if draw.draw(st.booleans()):
        del data[draw.draw(st.integers(1, len(data))) :]
    return bytes(data)


def variants() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    small = photo(24, 16)
    clean = {kind: encode(small, kind) for kind in KINDS}
    clean["JPEG"] = encode(small, "JPEG", exif=exif, progressive=True)
    clean["JPEG CMYK"] = encode(small.convert("CMYK"), "JPEG", icc_profile=cmyk_profile())
    clean["MPO"] = encode(small, "MPO", save_all=True, append_images=[small])
    clean["PNG palette"] = encode(small.quantize(9), "PNG", transparency=1)
    clean["APNG"] = encode(small, "PNG", save_all=True, append_images=[small.rotate(90)])
    clean["GIF animated"] = encode(small, "GIF", save_all=True, append_images=[small.rotate(90)])
    clean["WEBP alpha"] = encode(small.convert("RGBA"), "WEBP", lossless=True, exif=exif)
    clean["TIFF lzw"] = encode(small, "TIFF", compression="tiff_lzw", exif=exif)
    clean["TIFF jpeg"] = encode(small, "TIFF", compression="jpeg")
    clean["TIFF grey16"] = encode(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)), "TIFF")
    clean["BMP palette"] = encode(small.quantize(9), "BMP")
    clean["PPM plain"] = b"P3 2 2 255 " + b"1 2 3 " * 4
    return clean


CLEAN = variants()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", sorted(CLEAN))
def test_damaged_bytes_give_a_picture_or_an_image_error(kind: str) -> None:
    @seed(20261)
    @settings(max_examples=60, deadline=None, database=None)
    @given(st.data())
    def check(draw: st.DataObject) -> None:
        data = damaged(kind, draw, CLEAN)
        try:
            image = read_image(data, Limits(max_pixels=10**6), target=(8, 8))
        except ImageError as error:
            assert error.reason in REASONS  # noqa: PT017 - either way is right
        else:
            assert image.mode == "RGB"
            assert to_array(image, PLAIN).shape == (3, 8, 8)

    check()


# --- the array


def test_the_array_is_the_formula() -> None:
    spec = Preprocess((40, 60), SPEC.mean, SPEC.std)
    array = to_array(photo(), spec)
    wanted = (np.asarray(photo()) / 255.0 - np.array(spec.mean)) / np.array(spec.std)
    np.testing.assert_allclose(array, wanted.transpose(2, 0, 1), atol=2e-6)
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    with pytest.raises(ValueError, match="RGB"):
        to_array(photo().convert("L"), spec)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_squash_is_pillows_resize(interpolation: str) -> None:
    spec = Preprocess((24, 18), (0.0,) * 3, (1.0,) * 3, interpolation=interpolation)
    wanted = photo().resize((18, 24), Image.Resampling[interpolation.upper()])
    np.testing.assert_allclose(
        to_array(photo(), spec).transpose(1, 2, 0) * 255, np.asarray(wanted), atol=1e-3
    )


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(["squash", "crop", "pad"]),
    st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
    st.tuples(*[st.integers(0, 255)] * 3),
)
def test_one_colour_stays_that_colour(
    width: int,
    height: int,
    size: tuple[int, int],
    resize: str,
    interpolation: str,
    colour: tuple[int, int, int],
) -> None:
    """A law of every resize mode, once the padding has the same colour."""
    mean = tuple(c / 255 for c in colour)
    spec = Preprocess(size, mean, (0.5, 0.5, 0.5), resize, interpolation)  # type: ignore[arg-type]
    array = to_array(Image.new("RGB", (width, height), colour), spec)
    assert array.shape == (3, *size)
    assert np.abs(array).max() < 0.01


def test_crop_keeps_the_centre_and_pad_the_whole() -> None:
    stripes = Image.new("RGB", (90, 30), (255, 0, 0))
    stripes.paste((0, 255, 0), (30, 0, 60, 30))
    crop = to_array(stripes, Preprocess((30, 30), (0.0,) * 3, (1.0,) * 3, resize="crop"))
    assert crop[1].min() == 1
    assert crop[0].max() == 0
    pad = to_array(
        stripes, Preprocess((90, 90), (0.5,) * 3, (1.0,) * 3, resize="pad", interpolation="nearest")
    )
    np.testing.assert_allclose(pad[:, :30], 0, atol=0.002)
    np.testing.assert_allclose(pad[:, 60:], 0, atol=0.002)
    np.testing.assert_allclose(pad[0, 30:60, :30], 0.5, atol=1e-6)


def test_jpeg_drafts_at_twice_the_target_or_more() -> None:
    big = photo(1600, 1200)
    data = encode(big, "JPEG", quality=92)
    assert read_image(data).size == (1600, 1200)
    drafted = read_image(data, target=(224, 224))
    assert 448 <= min(drafted.size) < 1200
    slow = to_array(read_image(data), SPEC) - to_array(drafted, SPEC)
    assert np.abs(slow).mean() < 0.02  # of values about 2 wide
    assert read_image(encode(photo(500, 375), "JPEG"), target=(224, 224)).size == (500, 375)
    with Image.open(io.BytesIO(data)) as opened:
        preprocess(opened, SPEC)
        assert opened.size == (1600, 1200)  # a caller's picture is not changed


def test_a_ready_picture_is_not_copied() -> None:
    image = photo()
    assert read_image(image) is image


def test_threads_read_as_one_thread_does() -> None:
    sources = list(CLEAN.values()) * 4
    alone = [preprocess(data, PLAIN) for data in sources]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda data: preprocess(data, PLAIN), sources))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


# --- the settings


def test_preprocess_survives_json_and_hashes_its_meaning() -> None:
    assert Preprocess.from_dict(SPEC.to_dict()) == SPEC
    assert Preprocess.from_dict(SPEC.to_dict()).hash() == SPEC.hash()
    whole = Preprocess((8, 8), (0, 0, 0), (1, 1, 1))
    assert whole.hash() == PLAIN.hash()
    others = [
        Preprocess((8, 9), PLAIN.mean, PLAIN.std),
        Preprocess((8, 8), (0.0, 0.0, 0.1), PLAIN.std),
        Preprocess((8, 8), PLAIN.mean, PLAIN.std, resize="crop"),
        Preprocess((8, 8), PLAIN.mean, PLAIN.std, interpolation="bilinear"),
    ]
    assert len({p.hash() for p in (PLAIN, *others)}) == 5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"size": [0, 8]}, "size"),
        ({"size": [8]}, "size"),
        ({"size": 8}, "type"),
        ({"std": [0, 1, 1]}, "std"),
        ({"mean": [0, 1]}, "mean"),
        ({"mean": ["a", 1, 1]}, "type"),
        ({"resize": "stretch"}, "resize"),
        ({"interpolation": "area"}, "interpolation"),
        ({"colour": 1}, "colour"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Preprocess.from_dict({**SPEC.to_dict(), **change})


def test_missing_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="std"):
        Preprocess.from_dict({"size": [8, 8], "mean": [0, 0, 0]})


# --- augmentation


def test_augment_is_decided_by_its_seed() -> None:
    spec = AugmentSpec()
    first = [np.asarray(augment(photo(), spec, s)[0]).tobytes() for s in range(20)]
    np.random.seed(0)  # noqa: NPY002 - the global generator must play no part
    assert [np.asarray(augment(photo(), spec, s)[0]).tobytes() for s in range(20)] == first
    assert len(set(first)) == 20


def test_augment_of_nothing_is_the_picture() -> None:
    still = AugmentSpec((1.0, 1.0), (1.0, 1.0), 0.0, 0.0, 0.0, 0.0)
    image, flipped = augment(photo(), still, 5)
    assert not flipped
    np.testing.assert_array_equal(np.asarray(image), np.asarray(photo()))


def test_flip_is_told() -> None:
    spec = AugmentSpec((1.0, 1.0), (1.0, 1.0), 0.5, 0.0, 0.0, 0.0)
    told = []
    for s in range(200):
        image, flipped = augment(photo(), spec, s)
        wanted = np.fliplr(np.asarray(photo())) if flipped else np.asarray(photo())
        np.testing.assert_array_equal(np.asarray(image), wanted)
        told.append(flipped)
    assert 70 < sum(told) < 130


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**63 - 1), st.integers(1, 80), st.integers(1, 80))
def test_crops_stay_within_their_range(number: int, width: int, height: int) -> None:
    spec = AugmentSpec(crop_scale=(0.25, 0.81), aspect=(0.8, 1.25))
    image, _ = augment(photo(width, height), spec, number)
    assert 1 <= image.width <= width
    assert 1 <= image.height <= height
    area = image.width * image.height / (width * height)
    # Never above the range but for rounding to whole pixels.
    assert area <= 0.81 * (1 + 1 / width) * (1 + 1 / height) + 1e-9 or min(width, height) < 4


def test_colour_changes_are_the_three_steps_in_a_row() -> None:
    """The one matrix equals Pillow's three enhancements wherever nothing is clipped."""
    from PIL import ImageEnhance

    image = Image.fromarray((np.asarray(photo()) // 3 + 60).astype(np.uint8))
    spec = AugmentSpec((1.0, 1.0), (1.0, 1.0), 0.0, 0.2, 0.3, 0.4)
    rng = np.random.default_rng(11)
    rng.uniform(), rng.uniform(), rng.integers(1), rng.integers(1), rng.random()
    factors = [1 + rng.uniform(-1, 1) * reach for reach in (0.2, 0.3, 0.4)]
    wanted = ImageEnhance.Brightness(image).enhance(factors[0])
    wanted = ImageEnhance.Contrast(wanted).enhance(factors[1])
    wanted = ImageEnhance.Color(wanted).enhance(factors[2])
    found = np.asarray(augment(image, spec, 11)[0]).astype(int)
    assert np.abs(found - np.asarray(wanted)).max() <= 3
    assert np.abs(found - np.asarray(image)).max() > 3


@pytest.mark.parametrize("wrong", [{"crop_scale": (0.0, 1.0)}, {"aspect": (2.0, 1.0)}, {"flip": 1.5}])
def test_wrong_augment_settings_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        AugmentSpec(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_where_pillow_heif_is_installed(orientation: int) -> None:
    """Its decoder turns the picture by itself: it must not be turned twice."""
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is optional")
    upright = np.asarray(photo())
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    buffer = io.BytesIO()
    file = heif.from_pillow(stored)
    file.info["exif"] = exif.tobytes()
    file.save(buffer, quality=95, exif=exif.tobytes())
    assert np.abs(pixels(buffer.getvalue()) - upright).mean() < 6
    assert reason_of(buffer.getvalue(), Limits(max_pixels=100)) == "too_many_pixels"
