import json
from pathlib import Path

import pytest

from vistill.files import atomic_file, best_of, best_of_each, write_json, write_text


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
