import json
from pathlib import Path

import pytest
from tests.killing import run_script

from vistill.files import atomic_file, best_of, best_of_each, replacing, write_json, write_text


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with atomic_file(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    with pytest.raises(TypeError), atomic_file(path) as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert path.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]


def test_what_the_system_refuses_names_the_file_that_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "absent" / "x", tmp_path / "folder", tmp_path / "folder" / "x" / "y"):
        with pytest.raises(OSError, match=str(path)) as told:
            write_text(path, "one")
        assert told.value.filename in (str(path), str(path.parent))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")  # the system names no file

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/x'"):
        write_text(tmp_path / "x", "one")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_lone_surrogates_survive(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "x\udc80ü"})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"name": "x\udc80ü"}
    write_text(tmp_path / "a.txt", "x\udc80ü")
    assert (tmp_path / "a.txt").read_text("utf-8") == "x\\udc80ü"


def test_the_folder_of_a_run_is_that_of_its_best_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "best").mkdir(parents=True)
    assert best_of(run) == run, "nothing is kept there yet"
    for folder in (run, run / "best"):
        (folder / "config.json").write_text("{}")
    assert best_of(run) == best_of(run / "best") == run / "best"
    assert best_of_each(f"{run} + {run}/best") == f"{run}/best+{run}/best"
    assert best_of_each("somebody/model+minilm") == "somebody/model+minilm"


def test_two_that_write_one_folder_leave_each_other_alone(tmp_path: Path) -> None:
    with replacing(tmp_path / "best") as one:
        (one / "a").write_text("one")
        with replacing(tmp_path / "best") as other:
            (other / "a").write_text("other")
        assert (tmp_path / "best" / "a").read_text() == "other"
        assert (one / "a").read_text() == "one", (
            "it is written still, so it is nothing that a killed one left"
        )
    assert (tmp_path / "best" / "a").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_folders_of_others_beside_it_stay(tmp_path: Path) -> None:
    for name in (".best-original", ".best-old", "best.writing-abcdefgh"):
        (tmp_path / name).mkdir()
    with replacing(tmp_path / "best") as folder:
        (folder / "a").write_text("one")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".best-old", ".best-original", "best", "best.writing-abcdefgh"
    ]  # fmt: skip


KILLER = """
import sys
from pathlib import Path
from tests.killing import kill_and_compare
from vistill.files import replacing

target, seed, points = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def make(out):
    for text in ("one", "two"):
        with replacing(out / "best") as folder:
            for name in "ab":
                (folder / name).write_text(text)
        for name in "ab":
            assert (out / "best" / name).read_text() == text

print(kill_and_compare(make, target, seed, points, again_before=20))
"""


def test_killed_anywhere_a_folder_is_whole_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    assert run_script(KILLER, tmp_path / "killed", 0) > 20
