"""An index follows its folder of photos, whatever happens to either, and embeds nothing twice."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.archive.fake_embedder import FakeEmbedder

from vistill.archive.batch import embed_paths
from vistill.archive.catalogue import FILE, only_writer, open_catalogue
from vistill.archive.index import Update, open_index
from vistill.errors import ConfigError, DataError
from vistill.runtime.image import Limits, preprocess

ROOT = Path(__file__).parents[2]


def paint(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path


def update(
    folder: Path, root: Path, embedder: FakeEmbedder | None = None, **options: object
) -> tuple[dict[str, int], list[str]]:
    """One run: the counts that are not 0, and the reasons of the failures."""
    catalogue = open_index(folder, root, embedder or FakeEmbedder())
    try:
        run = Update(catalogue, embedder or FakeEmbedder(), batch_size=3, **options)  # type: ignore[arg-type]
        errors = [error.reason for outcomes in run.run() for _, error in outcomes if error is not None]
        return {kind: n for kind, n in run.counts.items() if n}, errors
    finally:
        catalogue.close()


def contents(folder: Path) -> dict[str, tuple[bytes, bytes]]:
    """{name: (digest, vector)} of an index, read without the code that wrote it."""
    connection = sqlite3.connect(folder / FILE)
    rows = connection.execute("SELECT path, digest, vector FROM photo").fetchall()
    connection.close()
    return {os.fsdecode(path): (digest, vector) for path, digest, vector in rows}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten photos in three folders, one of them with a name that is not UTF-8."""
    root = tmp_path / "photos"
    for seed in range(8):
        paint(root / ("trip" if seed % 2 else ".") / f"{seed}.png", seed)
    paint(root / "deep" / "er" / "new\nline, \"and\" 'more'.png", 8)
    paint(Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe.png")), 9)
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "index"


def test_every_photo_has_the_vector_of_its_pixels(photos: Path, folder: Path) -> None:
    assert update(folder, photos) == ({"added": 10}, [])
    embedder = FakeEmbedder()
    found = contents(folder)
    assert len(found) == 10
    for name, (_, vector) in found.items():
        pixels = preprocess(os.path.join(photos, name), embedder.preprocess)
        expected = embedder.image_arrays(pixels[None])[0]
        assert np.frombuffer(vector, "<f2") == pytest.approx(expected, abs=1e-3)


def test_nothing_is_done_twice(photos: Path, folder: Path) -> None:
    update(folder, photos)
    before = (folder / FILE).read_bytes()
    embedder = FakeEmbedder()
    assert update(folder, photos, embedder) == ({"unchanged": 10}, [])
    assert embedder.embedded == 0
    assert (folder / FILE).read_bytes() == before


def test_new_changed_touched_moved_and_vanished_photos(photos: Path, folder: Path) -> None:
    update(folder, photos)
    paint(photos / "added.png", 20)
    paint(photos / "0.png", 21)
    os.utime(photos / "2.png", (1, 1))
    (photos / "4.png").rename(photos / "trip" / "moved.png")
    shutil.copy(photos / "6.png", photos / "copy.png")
    (photos / "trip" / "1.png").unlink()
    embedder = FakeEmbedder()
    counts, errors = update(folder, photos, embedder)
    assert (counts, errors) == ({"added": 3, "changed": 1, "removed": 2, "unchanged": 7}, [])
    assert embedder.embedded == 2  # the added and the changed one: the other bytes are known
    fresh = folder.with_name("fresh")
    update(fresh, photos)
    assert contents(folder) == contents(fresh)
    assert update(folder, photos, embedder)[0] == {"unchanged": 11}


def test_nothing_but_names_and_vectors_is_kept(photos: Path, folder: Path) -> None:
    update(folder, photos)
    assert {path.name for path in folder.iterdir()} <= {FILE, "lock"}
    data = (folder / FILE).read_bytes()
    assert b"PNG" not in data
    assert (photos / "0.png").read_bytes()[40:60] not in data


def test_a_broken_photo_is_named_and_tried_again(photos: Path, folder: Path) -> None:
    update(folder, photos)
    (photos / "0.png").write_bytes(b"rubbish")
    (photos / "none.png").write_bytes(b"")
    os.mkfifo(photos / "pipe.jpg")
    (photos / "loop.jpg").symlink_to("loop.jpg")
    counts, errors = update(folder, photos)
    assert counts == {"failed": 4, "unchanged": 9}
    assert sorted(errors) == ["empty", "not_a_file", "not_an_image", "unreadable"]
    assert "0.png" not in contents(folder)
    paint(photos / "0.png", 0)
    assert update(folder, photos)[0] == {"added": 1, "failed": 3, "unchanged": 9}
    assert update(folder, photos, limits=Limits(max_bytes=10))[0] == {"failed": 3, "unchanged": 10}


def test_links_to_folders_are_followed_once(photos: Path, folder: Path, tmp_path: Path) -> None:
    paint(tmp_path / "elsewhere" / "x.png", 30)
    (photos / "away").symlink_to(tmp_path / "elsewhere")
    (photos / "trip" / "round").symlink_to(photos)
    assert update(folder, photos)[0] == {"added": 11}
    assert "away/x.png" in contents(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_photos_in_a_closed_folder_stay_in_the_index(photos: Path, folder: Path) -> None:
    update(folder, photos)
    (photos / "trip").chmod(0)
    try:
        assert update(folder, photos) == ({"failed": 1, "unchanged": 6}, ["unreadable"])
    finally:
        (photos / "trip").chmod(0o755)
    assert len(contents(folder)) == 10


def test_a_folder_that_the_walk_cannot_read_loses_nothing(
    photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, for whoever runs the tests as root."""
    update(folder, photos)
    scandir = os.scandir

    def closed(path: str) -> Iterator[os.DirEntry[str]]:
        if os.path.basename(path) == "trip":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)  # type: ignore[return-value]

    monkeypatch.setattr(os, "scandir", closed)
    assert update(folder, photos) == ({"failed": 1, "unchanged": 6}, ["unreadable"])
    assert len(contents(folder)) == 10


def test_a_drive_that_is_not_there_does_not_empty_the_index(photos: Path, folder: Path) -> None:
    update(folder, photos)
    kept = contents(folder)
    photos.rename(photos.with_name("away"))
    photos.mkdir()
    with pytest.raises(DataError, match="none of the 10 photos of its index any more: is its drive there"):
        update(folder, photos)
    photos.rmdir()
    with pytest.raises(DataError, match="no such folder"):
        update(folder, photos)
    assert contents(folder) == kept


def test_a_folder_that_moved_keeps_its_vectors(photos: Path, folder: Path) -> None:
    update(folder, photos)
    moved = photos.rename(photos.with_name("moved"))
    embedder = FakeEmbedder()
    assert update(folder, moved, embedder)[0] == {"unchanged": 10}
    assert embedder.embedded == 0
    catalogue = open_catalogue(folder)
    assert catalogue.manifest.root == str(moved)
    catalogue.close()


def test_other_photos_or_another_model_are_refused(photos: Path, folder: Path, tmp_path: Path) -> None:
    update(folder, photos)
    kept = contents(folder)
    paint(tmp_path / "other" / "a.png", 1)
    with pytest.raises(ConfigError, match=r"is the index of .*photos: choose another one for .*other"):
        update(folder, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"was made with the model fake \(.{12}\), this is better"):
        update(folder, photos, FakeEmbedder("better"))
    assert contents(folder) == kept


def test_foreign_and_damaged_files_are_told(photos: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="is no index of photos"):
        open_catalogue(folder)
    folder.mkdir()
    (folder / FILE).write_bytes(b"not a data base at all, but long enough to be one" * 99)
    with pytest.raises(DataError, match="damaged"):
        update(folder, photos)
    (folder / FILE).unlink()
    update(folder, photos)
    connection = sqlite3.connect(folder / FILE)
    raw = json.loads(connection.execute("SELECT value FROM manifest").fetchone()[0])
    connection.execute("UPDATE manifest SET value = ?", (json.dumps(raw | {"format": 99}),))
    connection.commit()
    connection.close()
    with pytest.raises(DataError, match="format 1, found 99"):
        open_catalogue(folder)


def test_one_writer_at_a_time(folder: Path) -> None:
    with only_writer(folder), pytest.raises(DataError, match="another run is writing"), only_writer(folder):
        pass
    with only_writer(folder):
        pass


def test_a_reader_beside_a_writer_sees_whole_batches(photos: Path, folder: Path) -> None:
    update(folder, photos)
    seen, done = [], threading.Event()

    def read() -> None:
        while not done.is_set():
            catalogue = open_catalogue(folder)
            seen.append(len(catalogue))
            catalogue.close()

    for seed in range(40, 70):
        paint(photos / f"{seed}.png", seed)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        update(folder, photos)
    finally:
        done.set()
        reader.join()
    assert {(n - 10) % 3 for n in seen} == {0}
    assert seen[-1] <= 40


KILLED = """
import os, signal, sys
from pathlib import Path
import vistill.archive.catalogue as catalogue
from tests.archive.fake_embedder import FakeEmbedder
from tests.archive.test_index import update

point, where = int(sys.argv[3]), sys.argv[4]
class Embedder(FakeEmbedder):
    calls = 0
    def image_arrays(self, pixels):
        self.calls += 1
        if where == "model" and self.calls == point:
            os.kill(os.getpid(), signal.SIGKILL)
        with open(sys.argv[5], "a") as log:
            log.write("x" * len(pixels))
        return super().image_arrays(pixels)
steps = 0
run = catalogue.Catalogue._run
def counted(self, sql, values=()):
    global steps
    steps += where == "statement" and sql.split()[0] not in ("SELECT",)
    if steps == point and where == "statement":
        os.kill(os.getpid(), signal.SIGKILL)
    return run(self, sql, values)
catalogue.Catalogue._run = counted
update(Path(sys.argv[1]), Path(sys.argv[2]), Embedder())
print(steps)
"""


def run_apart(folder: Path, photos: Path, point: int, where: str, log: Path) -> subprocess.CompletedProcess:
    words = [sys.executable, "-c", KILLED, str(folder), str(photos), str(point), where, str(log)]
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment, timeout=120)


@pytest.mark.parametrize(
    ("where", "points"),
    [("model", (1, 2, 4)), ("statement", (1, 2, 5, 8, 12, 16))],
    ids=["model", "statement"],
)
def test_killed_anywhere_it_goes_on(
    photos: Path, folder: Path, tmp_path: Path, where: str, points: tuple[int, ...]
) -> None:
    """SIGKILL while the model works and between any two statements of a transaction."""
    update(folder, photos)
    whole = contents(folder)
    for point in points:
        killed, log = tmp_path / f"killed-{point}", tmp_path / f"log-{point}"
        assert run_apart(killed, photos, point, where, log).returncode == -signal.SIGKILL
        kept = contents(killed) if (killed / FILE).is_file() else {}
        assert kept.items() <= whole.items()
        assert len(kept) % 3 == 0
        again = run_apart(killed, photos, 0, "nowhere", log)
        assert again.returncode == 0, again.stderr[-2000:]
        assert contents(killed) == whole
        assert len(log.read_text()) <= 10 + 3  # at most the batch that was under way is embedded again


def test_embedded_paths_keep_their_order_and_errors(photos: Path) -> None:
    paths = [str(photos / "0.png"), str(photos / "absent.png"), str(photos / "2.png")]
    embedder = FakeEmbedder()
    results = [one for batch in embed_paths(embedder, paths, batch_size=2) for one in batch]
    assert [one.path for one in results] == paths
    assert results[1].error is not None
    assert results[1].vector is None
    for place in (0, 2):
        expected = embedder.image_arrays(preprocess(paths[place], embedder.preprocess)[None])[0]
        assert np.array_equal(results[place].vector, expected)  # type: ignore[arg-type]
