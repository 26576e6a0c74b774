"""What a search finds is what looking at every vector finds, with and without lists, fresh or stale."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.archive.fake_embedder import unit

from vistill.archive import search
from vistill.archive.catalogue import Catalogue, Model, Stamp, create_catalogue, open_catalogue
from vistill.archive.search import Searcher, wants_lists, write_lists
from vistill.errors import DataError

E = 16


def clustered(count: int, seed: int) -> np.ndarray:
    """Unit vectors about sixty centres."""
    centres = np.random.default_rng(7).standard_normal((60, E), np.float32)
    rng = np.random.default_rng(seed)
    near = centres[rng.integers(60, size=count)]
    return unit(near + 0.4 * rng.standard_normal((count, E), np.float32))


def fill(catalogue: Catalogue, vectors: np.ndarray, first: int = 0) -> None:
    with catalogue.transaction():
        for number, vector in enumerate(vectors, first):
            name = f"p/{number:06d}.jpg"
            catalogue.insert(name, Stamp(1, number, number.to_bytes(32)), vector)


def drop(catalogue: Catalogue, numbers: list[int]) -> None:
    with catalogue.transaction():
        for number in numbers:
            known = catalogue.find(f"p/{number:06d}.jpg")
            assert known is not None
            catalogue.remove(known.id)


def brute(vectors: dict[int, np.ndarray], query: np.ndarray, top: int) -> list[int]:
    """Numbers of the nearest, by sorting everything; the vectors as they are kept, in 16 bits."""
    scores = {number: float(v.astype(np.float16).astype(np.float32) @ query) for number, v in vectors.items()}
    return sorted(scores, key=lambda number: (-round(scores[number], 6), number))[:top]


def numbers(hits: list[search.Hit]) -> list[int]:
    return [int(Path(hit.path).stem) for hit in hits]


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    made = create_catalogue(tmp_path / "index", "/photos", Model("m", "0" * 64, E))
    yield made
    made.close()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(count=st.integers(0, 40), top=st.integers(1, 50), seed=st.integers(0, 99))
def test_exact_search_equals_sorting(
    tmp_path_factory: pytest.TempPathFactory, count: int, top: int, seed: int
) -> None:
    made = create_catalogue(tmp_path_factory.mktemp("c") / "index", "/photos", Model("m", "0" * 64, E))
    vectors = clustered(count, seed)
    vectors[count // 2 :] = vectors[: count - count // 2]  # ties
    fill(made, vectors)
    query = clustered(1, seed + 1000)[0]
    hits = Searcher(made)(query, top)
    made.close()
    expected = brute(dict(enumerate(vectors)), query, top)
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    assert len(hits) == min(top, count)
    assert [h.score for h in hits] == pytest.approx([float(vectors[i] @ query) for i in expected], abs=2e-3)
    assert all(h.path.startswith("/photos/p/") for h in hits)


def test_equal_scores_come_in_the_order_of_indexing(catalogue: Catalogue) -> None:
    fill(catalogue, np.repeat(clustered(1, 0), 30, axis=0))
    assert numbers(Searcher(catalogue)(clustered(1, 1)[0], 7)) == list(range(7))


def test_lists_find_what_looking_at_all_finds(catalogue: Catalogue) -> None:
    pytest.importorskip("faiss", reason="lists need the search extra")
    vectors, queries = clustered(6000, 1), clustered(50, 2)
    fill(catalogue, vectors)
    exact = [Searcher(catalogue)(query, 10) for query in queries]
    write_lists(catalogue)
    listed = Searcher(catalogue)
    assert listed._lists is not None
    assert len(listed._ids) == 0  # nothing is looked at one by one
    found = [listed(query, 10) for query in queries]
    hits = sum(len({h.path for h in a} & {h.path for h in b}) for a, b in zip(exact, found, strict=True))
    assert hits / 500 >= 0.95
    for a, b in zip(exact, found, strict=True):
        same = {h.path: h.score for h in a}
        assert all(h.score == pytest.approx(same[h.path], abs=1e-6) for h in b if h.path in same)


def test_stale_lists_find_what_is_there_now(catalogue: Catalogue) -> None:
    pytest.importorskip("faiss", reason="lists need the search extra")
    vectors = clustered(3000, 1)
    fill(catalogue, vectors)
    write_lists(catalogue)
    gone = list(range(0, 3000, 3))
    drop(catalogue, gone)
    fresh = clustered(200, 3)
    fill(catalogue, fresh, first=3000)
    now = {n: v for n, v in enumerate([*vectors, *fresh]) if n not in set(gone)}
    searcher = Searcher(catalogue)
    assert len(searcher._ids) == 200
    hits = 0
    for query in clustered(40, 4):
        found = numbers(searcher(query, 10))
        assert len(found) == 10
        assert not set(found) & set(gone)
        hits += len(set(found) & set(brute(now, query, 10)))
    assert hits / 400 >= 0.95


def test_lists_are_brought_up_to_date_and_then_laid_out_anew(catalogue: Catalogue) -> None:
    pytest.importorskip("faiss", reason="lists need the search extra")
    assert not wants_lists(catalogue, limit=1000)
    fill(catalogue, clustered(1000, 1))
    assert wants_lists(catalogue, limit=1000)
    write_lists(catalogue)
    first = catalogue.manifest
    assert (first.trained, first.covered) == (1000, catalogue.last_id())
    assert not wants_lists(catalogue, limit=1000)
    fill(catalogue, clustered(15, 2), first=1000)
    assert not wants_lists(catalogue, limit=1000)
    fill(catalogue, clustered(15, 3), first=1015)
    drop(catalogue, [5, 6])
    assert wants_lists(catalogue, limit=1000)
    write_lists(catalogue)
    second = catalogue.manifest
    assert (second.trained, second.covered) == (1000, 1030)
    assert len(catalogue.gone()) == 0
    assert {p.name for p in catalogue.folder.glob("lists-*")} == {second.lists}
    searcher = Searcher(catalogue)
    assert searcher._lists.ntotal == 1028
    assert len(searcher._ids) == 0
    fill(catalogue, clustered(3500, 4), first=1030)
    write_lists(catalogue)
    assert catalogue.manifest.trained == 4528


def test_lists_may_be_lost_but_not_damaged(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="lists need the search extra")
    fill(catalogue, clustered(1000, 1))
    query = clustered(1, 2)[0]
    exact = Searcher(catalogue)(query, 10)
    write_lists(catalogue)
    path = catalogue.folder / catalogue.manifest.lists
    data = path.read_bytes()
    path.unlink()
    assert Searcher(catalogue)(query, 10) == exact
    assert wants_lists(catalogue, limit=10)
    path.write_bytes(data[:1000])
    with pytest.raises(DataError, match="is damaged: remove it and run `vistill index` again"):
        Searcher(catalogue)
    path.write_bytes(data)
    monkeypatch.setattr(search, "has_faiss", lambda: False)
    assert Searcher(catalogue)(query, 10) == exact


def test_a_kill_between_the_file_and_the_manifest_is_harmless(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss", reason="lists need the search extra")
    fill(catalogue, clustered(1000, 1))
    write_lists(catalogue)
    fill(catalogue, clustered(100, 2), first=1000)
    drop(catalogue, [1, 2, 3])
    query = clustered(1, 5)[0]
    before = Searcher(catalogue)(query, 10)

    class Killed(BaseException):
        pass

    def die(self: Catalogue, *_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Catalogue, "write_manifest", die)
        with pytest.raises(Killed):
            write_lists(catalogue)
    assert len(list(catalogue.folder.glob("lists-*"))) == 2
    again = open_catalogue(catalogue.folder)
    assert Searcher(again)(query, 10) == before
    write_lists(again)
    assert {p.name for p in catalogue.folder.glob("lists-*")} == {again.manifest.lists}
    again.close()


def test_lists_of_another_width_are_refused(catalogue: Catalogue, tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="lists need the search extra")
    fill(catalogue, clustered(100, 1))
    write_lists(catalogue)
    other = create_catalogue(tmp_path / "other", "/photos", Model("m", "0" * 64, 8))
    (other.folder / "lists-1-x.faiss").write_bytes((catalogue.folder / catalogue.manifest.lists).read_bytes())
    with other.transaction():
        other.write_manifest(replace(other.manifest, lists="lists-1-x.faiss", covered=1, trained=1))
    with pytest.raises(DataError, match="is of another index"):
        Searcher(other)
    other.close()


def test_probes() -> None:
    assert [search.probes(n) for n in (3, 400, 4000, 12649)] == [3, 16, 62, 197]
