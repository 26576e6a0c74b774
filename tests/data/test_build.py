"""A build from end to end: what is kept, what is dropped, duplicates, refusal, and being killed anywhere."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.killing import run_script

from vistill.data import build as building
from vistill.data import scan
from vistill.data.dataset import BuildConfig, build, info, open_dataset, open_split, read_report, split_names
from vistill.errors import ConfigError, DataError
from vistill.runtime.image import DEFAULT_LIMITS


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _reasons(report: dict) -> dict[str, str]:
    return {item["key"]: item["reason"] for item in report["dropped"]["items"]}


def test_flickr8k_from_end_to_end(flickr: Path, tmp_path: Path) -> None:
    report = build("flickr8k", flickr, tmp_path / "out", BuildConfig(shard_size=3))
    assert {name: (s["pictures"], s["captions"]) for name, s in report["splits"].items()} == {
        "train": (8, 40),
        "dev": (2, 10),
        "extra": (2, 9),
    }
    assert _reasons(report) == {
        "2258277193_586949ec62.jpg.1": "stray_key",
        "missing.jpg": "missing_picture",
        "10_abc.jpg": "caption_too_short",
    }
    assert report["annotations"]["Flickr8k_text/Flickr8k.token.txt"]["bytes"] > 0
    loaded = datasets.load_from_disk(str(tmp_path / "out"))
    assert isinstance(loaded, datasets.DatasetDict)
    assert list(loaded) == split_names(tmp_path / "out") == ["train", "dev", "extra"]
    row = open_split(tmp_path / "out", "train")[3]
    assert row["key"] == "3_abc.jpg"
    assert row["image"] == (flickr / "Flicker8k_Dataset" / "3_abc.jpg").read_bytes(), "bytes as on disk"
    assert (row["width"], row["height"], row["split"], row["source"]) == (48, 36, "train", "flickr8k")
    assert "research" in row["licence"]
    assert len(list((tmp_path / "out" / "train").glob("*.arrow"))) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flickr", "out"], "nothing is left beside it"
    assert open_dataset(tmp_path / "out")["extra"]["captions"][0] == [
        f"A dog number {n} runs past photo 10 ." for n in range(1, 5)
    ]
    with pytest.raises(DataError, match=r"has no split 'val'; it has train, dev, extra"):
        open_split(tmp_path / "out", "val")


def test_broken_pictures_are_dropped_by_name(flickr: Path, tmp_path: Path, photo) -> None:
    photos = flickr / "Flicker8k_Dataset"
    whole = photos.joinpath("0_abc.jpg").read_bytes()
    photos.joinpath("0_abc.jpg").write_bytes(whole[: len(whole) // 2])
    photos.joinpath("1_abc.jpg").write_bytes(b"")
    photos.joinpath("2_abc.jpg").write_bytes(b"<html>404 not found</html>")
    photos.joinpath("3_abc.jpg").write_bytes(photo(3, format="PNG"))  # a PNG under another name is a picture
    report = build("flickr8k", flickr, tmp_path / "out")
    reasons = _reasons(report)
    assert reasons["0_abc.jpg"] == "image_truncated"
    assert reasons["1_abc.jpg"] == "image_empty"
    assert reasons["2_abc.jpg"] == "image_not_an_image"
    assert "3_abc.jpg" in open_split(tmp_path / "out", "train")["key"]
    assert report["splits"]["train"]["pictures"] == 5


def test_duplicates_across_splits_leave_train(flickr: Path, tmp_path: Path, photo) -> None:
    photos = flickr / "Flicker8k_Dataset"
    dev = photos.joinpath("8_abc.jpg").read_bytes()
    photos.joinpath("0_abc.jpg").write_bytes(dev)  # same bytes, train
    photos.joinpath("1_abc.jpg").write_bytes(dev + b"\0\0")  # same pixels, train
    photos.joinpath("2_abc.jpg").write_bytes(photo(9, quality=60))  # a copy of dev's 9, recompressed
    photos.joinpath("11_abc.jpg").write_bytes(photo(9, (96, 72)))  # another, resized, in no split
    photos.joinpath("4_abc.jpg").write_bytes(photo(5))  # inside train: reported, kept
    report = build("flickr8k", flickr, tmp_path / "out")
    reasons = {key: reason for key, reason in _reasons(report).items() if "duplicate" in reason}
    assert reasons == {
        "0_abc.jpg": "duplicate",
        "1_abc.jpg": "duplicate",
        "2_abc.jpg": "near_duplicate",
        "11_abc.jpg": "near_duplicate",
    }
    details = {item["key"]: item["detail"] for item in report["dropped"]["items"]}
    assert details["0_abc.jpg"] == "same bytes as '8_abc.jpg' in dev; removed from train"
    assert details["1_abc.jpg"] == "same pixels as '8_abc.jpg' in dev; removed from train"
    assert "'9_abc.jpg' in dev; removed from extra" in details["11_abc.jpg"]
    inside = [pair for pair in report["duplicates"] if set(pair["splits"]) == {"train"}]
    assert ["4_abc.jpg", "5_abc.jpg"] in [pair["keys"] for pair in inside]
    assert open_split(tmp_path / "out", "dev")["key"][:] == ["8_abc.jpg", "9_abc.jpg"]
    assert open_split(tmp_path / "out", "train")["key"][:] == [f"{n}_abc.jpg" for n in (3, 4, 5, 6, 7)]
    exact = build("flickr8k", flickr, tmp_path / "exact", BuildConfig(near_duplicates=None))
    assert exact["dropped"]["counts"]["duplicate"] == 2
    assert "near_duplicate" not in exact["dropped"]["counts"]


def test_text_rules(tmp_path: Path, photo) -> None:
    root = tmp_path / "pics"
    root.mkdir()
    for number, text in enumerate(["A dog\na DOG\nA cat", "x", ""]):
        (root / f"{number}.jpg").write_bytes(photo(number))
        (root / f"{number}.txt").write_text(text)
    report = build("folder", root, tmp_path / "a", BuildConfig(unique_captions=True, licence="CC0"))
    assert open_split(tmp_path / "a", "train")["captions"][:] == [["A dog", "A cat"]]
    assert open_split(tmp_path / "a", "train")["licence"][:] == ["CC0"]
    assert report["dropped"]["counts"] == {"no_caption": 2, "caption_repeated": 1, "caption_too_short": 1}
    config = BuildConfig(min_caption_chars=1, allow_uncaptioned=True)
    assert build("folder", root, tmp_path / "b", config)["splits"]["train"]["captions"] == 4
    assert open_split(tmp_path / "b", "train")["captions"][:] == [["A dog", "a DOG", "A cat"], ["x"], []]


def test_nothing_left_is_an_error(tmp_path: Path, photo) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.jpg").write_bytes(photo(1))
    with pytest.raises(DataError, match=r"no picture is left; dropped were \{'no_caption': 1\}"):
        build("folder", tmp_path / "pics", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_duplicate_keys_and_odd_file_names(tmp_path: Path, photo) -> None:
    root = tmp_path / "root"
    (root / "pics").mkdir(parents=True)
    (root / "pics" / "a.jpg").write_bytes(photo(1))
    (root / "pics" / "ü 犬.jpg").write_bytes(photo(2))
    rows = [
        {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "One dog"}]},
        {"filename": "a.jpg", "split": "test", "sentences": [{"raw": "Two dogs"}]},
        {"filename": "ü 犬.jpg", "split": "train", "sentences": [{"raw": "Drei Hunde – 犬"}]},
    ]
    (root / "dataset.json").write_text(json.dumps({"images": rows}))
    config = BuildConfig(options={"images": "pics"})
    report = build("karpathy", root, tmp_path / "out", config)
    assert _reasons(report) == {"a.jpg": "duplicate_key"}
    assert open_split(tmp_path / "out", "test")["captions"][:] == [["Two dogs"]], "what is evaluated stays"
    assert open_split(tmp_path / "out", "train")["key"][:] == ["ü 犬.jpg"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_a_file_name_that_is_not_utf8_is_named(tmp_path: Path, photo) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "good.jpg").write_bytes(photo(1))
    with open(os.fsencode(root) + b"/caf\xe9.jpg", "wb") as file:
        file.write(photo(2))
    report = build("folder", root, tmp_path / "out", BuildConfig(allow_uncaptioned=True))
    assert list(_reasons(report).values()) == ["not_utf8"]
    assert "caf" in report["dropped"]["items"][0]["key"]
    assert read_report(tmp_path / "out") == report


def test_workers_and_shards_do_not_change_the_content(flickr: Path, tmp_path: Path) -> None:
    one = build("flickr8k", flickr, tmp_path / "a", workers=1)
    four = build("flickr8k", flickr, tmp_path / "b", workers=4)
    small = build("flickr8k", flickr, tmp_path / "c", BuildConfig(shard_size=1))
    assert _contents(tmp_path / "a") == _contents(tmp_path / "b")
    assert one["fingerprint"] == four["fingerprint"] == small["fingerprint"]
    (flickr / "Flicker8k_Dataset" / "0_abc.jpg").write_bytes(
        (flickr / "Flicker8k_Dataset" / "0_abc.jpg").read_bytes() + b"\0"
    )
    assert build("flickr8k", flickr, tmp_path / "d")["fingerprint"] != one["fingerprint"]


def test_a_finished_build_is_left_alone_or_refused(flickr: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    first = build("flickr8k", flickr, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr(scan, "open_picture", lambda *_: pytest.fail("a picture was opened again"))
    assert build("flickr8k", flickr, out) == first
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.undo()
    message = r"was built from something else: arguments.min_caption_chars was 2 and is 1.*--force"
    with pytest.raises(DataError, match=message):
        build("flickr8k", flickr, out, BuildConfig(min_caption_chars=1))
    tokens = flickr / "Flickr8k_text" / "Flickr8k.token.txt"
    tokens.write_bytes(tokens.read_bytes().replace(b"A dog number 0", b"A cat number 0"))
    with pytest.raises(DataError, match=r"annotations.Flickr8k_text/Flickr8k.token.txt.sha256 was '"):
        build("flickr8k", flickr, out)
    assert _contents(out)["report.json"] == json.dumps(first, indent=1, ensure_ascii=False).encode() + b"\n"
    assert build("flickr8k", flickr, out, force=True)["fingerprint"] != first["fingerprint"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flickr", "out"]


def _unfinished(root: Path, out: Path, monkeypatch: pytest.MonkeyPatch, source: str = "flickr8k") -> None:
    """Leave a build that stopped after its scan."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building, "_write_splits", stop)
        with pytest.raises(KeyboardInterrupt):
            build(source, root, out)
    assert not out.exists()
    assert out.with_name(f".{out.name}.building").exists()


def test_an_unfinished_build_says_what_changed(flickr: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    _unfinished(flickr, out, monkeypatch)
    with pytest.raises(
        DataError, match=r"unfinished build from something else: arguments.shard_size was 1000 and is 5"
    ):
        build("flickr8k", flickr, out, BuildConfig(shard_size=5))
    picture = flickr / "Flicker8k_Dataset" / "5_abc.jpg"
    old = picture.read_bytes()
    stat = picture.stat()
    picture.write_bytes(old + b"\0")
    with pytest.raises(DataError, match=r"picture '5_abc.jpg' changed \(bytes, modified\)"):
        build("flickr8k", flickr, out)
    picture.unlink()
    with pytest.raises(DataError, match=r"something else: picture '5_abc.jpg' is gone\. "):
        build("flickr8k", flickr, out)
    picture.write_bytes(old)
    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    build("flickr8k", flickr, out)
    build("flickr8k", flickr, tmp_path / "plain")
    assert _contents(out) == _contents(tmp_path / "plain")


def test_an_unfinished_build_tells_pictures_by_their_keys(tmp_path: Path, photo, monkeypatch) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    for number in range(5):
        (root / f"{number}.jpg").write_bytes(photo(number))
        (root / f"{number}.txt").write_text("A dog")
    _unfinished(root, out, monkeypatch, "folder")
    for number in range(2):
        (root / f"{number}.jpg").unlink()
        (root / f"{number}.txt").unlink()
    with pytest.raises(DataError, match=r"something else: picture '0.jpg' is gone, and 1 more\. "):
        build("folder", root, out)
    (root / "new.jpg").write_bytes(photo(7))
    (root / "new.txt").write_text("A cat")
    (root / "3.txt").write_text("A cat")
    expected = (
        r"'0.jpg' is gone, and 1 more; picture 'new.jpg' is new; picture '3.jpg' changed \(captions\)\. "
    )
    with pytest.raises(DataError, match=expected):
        build("folder", root, out)


def test_an_unfinished_build_tells_what_else_was_dropped(tmp_path: Path, photo, monkeypatch) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    (root / "a.jpg").write_bytes(photo(1))
    (root / "a.txt").write_text("A dog")
    _unfinished(root, out, monkeypatch, "folder")
    (root / "b.txt").write_text("Whose am I?")
    with pytest.raises(DataError, match=r"something else: what was dropped as 'b.txt' is new\. "):
        build("folder", root, out)


def test_a_link_that_leads_nowhere_costs_itself_alone(tmp_path: Path, photo) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.jpg").write_bytes(photo(1))
    (root / "b.jpg").symlink_to(root / "gone.jpg")
    for name in ("a", "b"):
        (root / f"{name}.txt").write_text("A dog")
    report = build("folder", root, tmp_path / "out")
    assert report["splits"]["train"]["pictures"] == 1
    assert _reasons(report) == {"b.jpg": "image_unreadable"}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_picture_that_cannot_be_opened_costs_itself_alone(
    tmp_path: Path, photo, monkeypatch, number: int
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name in ("a", "b", "c"):
        (root / f"{name}.jpg").write_bytes(photo(ord(name)))
        (root / f"{name}.txt").write_text("A dog")
    os.mkfifo(root / "pipe.jpg")
    (root / "pipe.txt").write_text("A dog")
    _refuse(monkeypatch, "b.jpg", number)
    report = build("folder", root, tmp_path / "out")
    assert report["splits"]["train"]["pictures"] == 2
    assert _reasons(report) == {"b.jpg": "image_unreadable", "pipe.jpg": "image_not_a_file"}
    assert f"b.jpg: {os.strerror(number)}" in [item["detail"] for item in report["dropped"]["items"]]


def test_a_picture_of_too_many_bytes_is_not_read_at_all(tmp_path: Path, photo, monkeypatch) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name in ("a", "b"):
        (root / f"{name}.txt").write_text("A dog")
    (root / "a.jpg").write_bytes(photo(1))
    with (root / "b.jpg").open("wb") as file:
        file.truncate(DEFAULT_LIMITS.max_bytes + 1)  # a file with a hole, which takes no room
    _refuse(monkeypatch, "b.jpg", errno.EMFILE)
    report = build("folder", root, tmp_path / "out")
    assert report["splits"]["train"]["pictures"] == 1
    assert _reasons(report) == {"b.jpg": "image_too_many_bytes"}


def test_a_system_that_opens_no_file_at_all_stops_the_build(
    flickr: Path, tmp_path: Path, monkeypatch
) -> None:
    _refuse(monkeypatch, "5_abc.jpg", errno.EMFILE)
    with pytest.raises(DataError, match=r"5_abc.jpg: cannot be read any more .Too many open files"):
        build("flickr8k", flickr, tmp_path / "out")


def test_a_picture_that_is_refused_after_its_scan_stops_the_build(
    flickr: Path, tmp_path: Path, monkeypatch
) -> None:
    _unfinished(flickr, tmp_path / "out", monkeypatch)
    _refuse(monkeypatch, "5_abc.jpg", errno.EACCES)
    with pytest.raises(
        DataError, match=r"5_abc.jpg: cannot be read any more .Permission denied.; build again"
    ):
        build("flickr8k", flickr, tmp_path / "out")


def _refuse(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Let no file of this name be read; permissions would not stop a test that runs as root."""
    read_bytes = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == name:
            raise OSError(number, os.strerror(number), str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)


def test_a_picture_that_changes_behind_our_back_stops_the_build(
    flickr: Path, tmp_path: Path, monkeypatch
) -> None:
    """Same length and time as planned, other bytes than scanned: only the hash can tell."""
    out = tmp_path / "out"
    _unfinished(flickr, out, monkeypatch)
    picture = flickr / "Flicker8k_Dataset" / "5_abc.jpg"
    stat = picture.stat()
    data = bytearray(picture.read_bytes())
    data[15] ^= 1  # the density in the JFIF header: the pixels stay
    picture.write_bytes(data)
    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(DataError, match=r"5_abc.jpg: changed while the data set was built"):
        build("flickr8k", flickr, out)
    assert build("flickr8k", flickr, out, force=True)["splits"]["train"]["pictures"] == 8


def test_only_what_a_build_made_is_ever_replaced(flickr: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for force in (False, True):
        with pytest.raises(DataError, match="is not empty and no data set was built there"):
            build("flickr8k", flickr, tmp_path / "thesis", force=force)
        with pytest.raises(DataError, match="is a file; choose a folder"):
            build("flickr8k", flickr, tmp_path / "file", force=force)
    (tmp_path / "empty").mkdir()
    build("flickr8k", flickr, tmp_path / "empty")


@pytest.mark.parametrize(
    ("source", "config", "message"),
    [
        ("flikr", {}, "unknown source 'flikr'; known are flickr8k, flickr30k, folder"),
        ("flickr8k", {"options": {"seed": 1}}, "source flickr8k has no option 'seed'; it has none"),
        (
            "folder",
            {"options": {"parts": []}},
            "has no option 'parts'; it has dev_fraction, test_fraction, seed",
        ),
        ("flickr8k", {"shard_size": 0}, "shard_size must be 1 or more, not 0"),
        ("flickr8k", {"near_duplicates": 65}, "near_duplicates must be 0 to 16 bits, not 65"),
        ("flickr8k", {"min_caption_chars": -1}, "min_caption_chars must be 0 or more"),
    ],
)
def test_wrong_arguments(flickr: Path, tmp_path: Path, source: str, config: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(source, flickr, tmp_path / "out", BuildConfig(**config))
    assert not (tmp_path / "out").exists()


def test_failing_sources_leave_nothing_behind(flickr: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder; expected the root of the data set flickr8k"):
        build("flickr8k", tmp_path / "nowhere", tmp_path / "out")
    shutil.rmtree(flickr / "Flickr8k_text")
    with pytest.raises(DataError, match="the Flickr8k token file"):
        build("flickr8k", flickr, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["flickr"]


def test_info(flickr: Path, tmp_path: Path) -> None:
    report = build("flickr8k", flickr, tmp_path / "out")
    summary = info(tmp_path / "out")
    train = summary["splits"]["train"]
    assert (train["pictures"], train["captions"], train["bytes"]) == (
        8,
        40,
        report["splits"]["train"]["bytes"],
    )
    assert train["captions_per_picture"] == {5: 8}
    assert train["caption_words"] == {8: 40}  # a dog number 0 runs past photo 0
    assert train["vocabulary"] == 6 + 8  # the words and the numbers 0 to 7
    assert train["sizes"]["common"] == {"48x36": 8}
    assert summary["splits"]["extra"]["captions_per_picture"] == {4: 1, 5: 1}
    assert summary["dropped"] == {"caption_too_short": 1, "missing_picture": 1, "stray_key": 1}
    assert summary["fingerprint"] == report["fingerprint"]
    assert json.loads(json.dumps(summary))["vocabulary"] == 6 + 12


def test_tars_and_parquet_give_the_same_rows_as_files(flickr: Path, tmp_path: Path) -> None:
    """The same pictures from files, from tars and from Parquet; then our own folder written as Parquet."""
    build("flickr8k", flickr, tmp_path / "files")
    expected = {row["key"]: row for split in open_dataset(tmp_path / "files").values() for row in split}
    with tarfile.open(tmp_path / "flickr" / "a.tar", "w") as tar:
        for key, row in expected.items():
            stem, captions = key.removesuffix(".jpg"), json.dumps({"captions": row["captions"]}).encode()
            for name, data in ((f"{stem}.jpg", row["image"]), (f"{stem}.json", captions)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    build("webdataset", flickr, tmp_path / "tars")
    rows = open_split(tmp_path / "tars", "train")
    assert len(rows) == 12
    for row in rows:
        same = expected[row["key"] + ".jpg"]
        assert [row[name] for name in ("image", "width", "height", "captions")] == [
            same[name] for name in ("image", "width", "height", "captions")
        ]
    for split, table in open_dataset(tmp_path / "files").items():
        table.to_parquet(tmp_path / "flickr" / f"{split}.parquet", batch_size=3)
    report = build("parquet", flickr, tmp_path / "parquet", workers=3)
    assert {
        row["key"]: row for split in open_dataset(tmp_path / "parquet").values() for row in split
    } == expected
    assert report["fingerprint"] == read_report(tmp_path / "files")["fingerprint"]
    first = flickr / "dev.parquet"
    os.utime(first, ns=(0, 0))
    with pytest.raises(DataError, match="pictures were added, removed or changed"):
        build("parquet", flickr, tmp_path / "parquet")


def test_an_empty_cell_is_a_named_loss(tmp_path: Path, photo) -> None:
    root = tmp_path / "root"
    root.mkdir()
    table = {"image": [photo(1), None], "caption": ["one dog", "two dogs"], "key": ["a", "b"]}
    pq.write_table(pa.table(table), root / "x.parquet")
    assert _reasons(build("parquet", root, tmp_path / "out")) == {"b": "image_empty"}


KILLER = """
import sys
from pathlib import Path
from tests.killing import kill_and_compare
from vistill.data import scan
from vistill.data.dataset import BuildConfig, build

scan.CHUNK = 4  # many small files: many places to be killed at
target, seed, points, root = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])

def make(out):
    build("flickr8k", root, out, BuildConfig(shard_size=3))

total = kill_and_compare(make, target, seed, points, again_before=40)
left = sorted(p.name for p in target.iterdir() if p.name.startswith("."))
assert not left, left
print(total)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_seeded_points_and_run_again_gives_the_same_bytes(flickr: Path, tmp_path: Path) -> None:
    assert run_script(KILLER, tmp_path / "killed", 5, flickr) > 50


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_point_and_run_again_gives_the_same_bytes(flickr: Path, tmp_path: Path) -> None:
    assert run_script(KILLER, tmp_path / "killed", 0, flickr) > 50


@pytest.mark.data
@pytest.mark.slow
def test_real_flickr8k(data_root: Path, tmp_path: Path) -> None:
    report = build("flickr8k", data_root / "flickr8k", tmp_path / "out", workers=2)
    counts = {name: (split["pictures"], split["captions"]) for name, split in report["splits"].items()}
    assert counts == {"train": (5999, 29995), "dev": (1000, 5000), "extra": (91, 453)}
    assert report["dropped"]["counts"] == {"caption_too_short": 2, "missing_picture": 1, "stray_key": 1}
    assert report["duplicates"] == []


@pytest.mark.data
def test_real_rsicd_without_repeated_captions(data_root: Path, tmp_path: Path) -> None:
    report = build(
        "karpathy", data_root / "rsicd", tmp_path / "out", BuildConfig(unique_captions=True), workers=2
    )
    assert {name: split["pictures"] for name, split in report["splits"].items()} == {
        "train": 1200,
        "dev": 300,
    }
    assert report["dropped"]["counts"] == {"caption_repeated": 4292, "caption_too_short": 1}
    assert sum(split["captions"] for split in report["splits"].values()) == 7500 - 4293
    assert report["long_captions"] == {"words": 40, "captions": {}, "longest": []}
    dev = open_split(tmp_path / "out", "dev")
    assert all(len({text.casefold() for text in texts}) == len(texts) >= 1 for texts in dev["captions"])
    summary = info(tmp_path / "out", long_words=20)
    assert summary["long_captions"]["longest"] == 34
    assert sum(summary["long_captions"]["captions"].values()) > 20


@pytest.mark.data
def test_real_rsicd_sampled_and_cleaned(data_root: Path, tmp_path: Path) -> None:
    config = BuildConfig(unique_captions=True, clean=("spacing", "typography"), num_samples=200)
    report = build("karpathy", data_root / "rsicd", tmp_path / "out", config, workers=2)
    assert report["sampled"] == {"pictures": 1500, "kept": 200}
    counts = {name: split["pictures"] for name, split in report["splits"].items()}
    assert sum(counts.values()) == 200
    assert 25 <= counts["dev"] <= 55, "about the fifth that dev has of the whole"
    assert {rule: found["captions"] for rule, found in report["cleaned"].items()} == {
        "typography": 2,
        "spacing": 7499,  # one caption is only " ."
    }
    texts = [
        text for split in counts for row in open_split(tmp_path / "out", split)["captions"] for text in row
    ]
    assert all(text.endswith(".") and not text.endswith(" .") for text in texts)


MEMORY = """
import resource, sys
from pathlib import Path
from vistill.data.dataset import build

build("folder", Path(sys.argv[1]), Path(sys.argv[2]), workers=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_memory_does_not_grow_with_the_pictures(tmp_path: Path, photo) -> None:
    """96 files of 2 MiB need no more than 24 (a batch of 32 MiB and a little)."""
    peaks = []
    for count in (24, 96):
        root = tmp_path / str(count)
        root.mkdir()
        for number in range(count):
            (root / f"{number}.jpg").write_bytes(photo(number) + bytes(2 * 2**20))
            (root / f"{number}.txt").write_text("a dog runs")
        command = [sys.executable, "-c", MEMORY, str(root), str(tmp_path / f"out{count}")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 60, f"{peaks} MiB: 144 MiB more of pictures must not show"
