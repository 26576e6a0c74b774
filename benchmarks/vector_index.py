"""Vector indexes side by side: FAISS, usearch, LanceDB and plain numpy, each in processes of its own.

    pip install faiss-cpu usearch lancedb
    python benchmarks/vector_index.py [--vectors 10000 1000000] [--rounds 3] [--threads 1] [--kept FILE]

Seeded, clustered unit vectors of 256 numbers. A first process builds an index, stores it, measures how the
search parameter has to be set for recall@10 of 0.95, then adds and deletes 1% and measures again; a second
one opens what was stored and asks question after question, as a command does. Systems take turns, round by
round; medians are printed and written to docs/benchmarks/vector_index.md, with 10 M vectors projected from
the largest run. A system whose package is not installed is left out by name. With --kept what has been
measured is kept in a file, and a run that was stopped goes on there.
"""

import argparse
import importlib.util
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vistill.provenance import environment

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "vector_index.md"
WIDTH, QUERIES, TOP, WANTED = 256, 500, 10, 0.95
PROJECTED = 10_000_000
LADDER = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def cloud(count: int, seed: int, spread: float = 1.0) -> Floats:
    """Unit vectors [count, WIDTH] like those of photos: topics, scenes within them, and noise about these.

    Directions matter less and less (a falling spectrum), as in every learned embedding. The topics and scenes
    are the same for every seed.
    """
    world = np.random.default_rng(7)
    scale = np.arange(1, WIDTH + 1, dtype=np.float32) ** -0.5
    topics = world.standard_normal((200, WIDTH), dtype=np.float32) * scale
    scenes = topics[np.arange(20_000) % 200] + 0.7 * scale * world.standard_normal(
        (20_000, WIDTH), dtype=np.float32
    )
    rng = np.random.default_rng(seed)
    out = np.empty((count, WIDTH), np.float32)
    for start in range(0, count, 100_000):
        part = out[start : start + 100_000]
        part[:] = scenes[rng.integers(len(scenes), size=len(part))]
        part += 0.5 * spread * scale * rng.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return out


def nearest(vectors: Floats, ids: Ids, queries: Floats) -> Ids:
    """The true TOP ids of each query, by brute force."""
    best = np.full((len(queries), TOP), -np.inf, np.float32)
    found = np.zeros((len(queries), TOP), np.int64)
    for start in range(0, len(vectors), 100_000):
        scores = np.concatenate([best, queries @ vectors[start : start + 100_000].T], axis=1)
        names = np.concatenate(
            [found, np.broadcast_to(ids[start : start + 100_000], (len(queries), scores.shape[1] - TOP))], 1
        )
        order = np.argpartition(-scores, TOP - 1, axis=1)[:, :TOP]
        best, found = np.take_along_axis(scores, order, 1), np.take_along_axis(names, order, 1)
    return found


class Exact:
    """numpy: float16 on disk, float32 in memory, every vector looked at."""

    ladder = (1,)

    def __init__(self, threads: int) -> None:
        self.effort = 1

    def build(self, ids: Ids, vectors: Floats) -> None:
        self.ids, self.vectors = ids, vectors

    def add(self, ids: Ids, vectors: Floats) -> None:
        self.ids = np.concatenate([self.ids, ids])
        self.vectors = np.concatenate([self.vectors, vectors])

    def remove(self, ids: Ids) -> None:
        kept = ~np.isin(self.ids, ids)
        self.ids, self.vectors = self.ids[kept], self.vectors[kept]

    def save(self, path: Path) -> None:
        np.savez(path.with_suffix(".npz"), ids=self.ids, vectors=self.vectors.astype(np.float16))

    def open(self, path: Path) -> None:
        with np.load(path.with_suffix(".npz")) as kept:
            self.ids, self.vectors = kept["ids"], kept["vectors"].astype(np.float32)

    def search(self, query: Floats) -> Ids:
        scores = self.vectors @ query
        return self.ids[np.argpartition(-scores, TOP)[:TOP]]


class Faiss:
    """FAISS: inverted lists, 4 sqrt(n) of them, or a graph (HNSW, which cannot delete)."""

    ladder = LADDER

    def __init__(self, threads: int, kind: str) -> None:
        import faiss

        faiss.omp_set_num_threads(threads)
        self.faiss, self.kind = faiss, kind

    def build(self, ids: Ids, vectors: Floats) -> None:
        lists = max(1, round(4 * math.sqrt(len(vectors))))
        name = self.kind.replace("IVF", f"IVF{lists}")
        index = self.faiss.index_factory(WIDTH, name, self.faiss.METRIC_INNER_PRODUCT)
        if self.kind.startswith("IVF"):
            index.cp.niter = 10
            index.cp.min_points_per_centroid = 5  # small data sets are no reason to warn
            sample = np.random.default_rng(0).permutation(len(vectors))[: 40 * lists]
            index.train(vectors[np.sort(sample)])
            self.index = index
        else:
            index.hnsw.efConstruction = 100
            index.train(vectors)
            self.index = self.faiss.IndexIDMap2(index)
        self.add(ids, vectors)

    def add(self, ids: Ids, vectors: Floats) -> None:
        for start in range(0, len(ids), 100_000):
            self.index.add_with_ids(
                np.ascontiguousarray(vectors[start : start + 100_000]), ids[start : start + 100_000]
            )

    def remove(self, ids: Ids) -> None:
        if not self.kind.startswith("IVF"):
            raise NotImplementedError("HNSW of FAISS cannot delete")
        self.index.remove_ids(self.faiss.IDSelectorBatch(ids))

    def save(self, path: Path) -> None:
        self.faiss.write_index(self.index, str(path))

    def open(self, path: Path) -> None:
        self.index = self.faiss.read_index(str(path))

    @property
    def effort(self) -> int:
        inner = self._inner()
        return int(inner.nprobe if self.kind.startswith("IVF") else inner.hnsw.efSearch)

    @effort.setter
    def effort(self, value: int) -> None:
        inner = self._inner()
        if self.kind.startswith("IVF"):
            inner.nprobe = value
        else:
            inner.hnsw.efSearch = value

    def _inner(self) -> Any:
        index = self.index
        return self.faiss.downcast_index(index.index) if hasattr(index, "index") else index

    def search(self, query: Floats) -> Ids:
        found: Ids = self.index.search(query[None], TOP)[1][0]
        return found


class Usearch:
    """usearch: a graph (HNSW) that deletes by marking, read where it lies on the disk."""

    ladder = LADDER

    def __init__(self, threads: int, dtype: str) -> None:
        self.threads, self.dtype = threads, dtype
        self.index = self._empty()

    def _empty(self) -> Any:
        from usearch.index import Index

        return Index(ndim=WIDTH, metric="ip", dtype=self.dtype, connectivity=16, expansion_add=128)

    def build(self, ids: Ids, vectors: Floats) -> None:
        self.add(ids, vectors)

    def add(self, ids: Ids, vectors: Floats) -> None:
        self.index.add(ids.astype(np.uint64), vectors, threads=self.threads)

    def remove(self, ids: Ids) -> None:
        self.index.remove(ids.astype(np.uint64))

    def save(self, path: Path) -> None:
        self.index.save(str(path))

    def open(self, path: Path) -> None:
        self.index.view(str(path))

    @property
    def effort(self) -> int:
        return int(self.index.expansion_search)

    @effort.setter
    def effort(self, value: int) -> None:
        self.index.expansion_search = value

    def search(self, query: Floats) -> Ids:
        return self.index.search(query, TOP).keys.astype(np.int64)


class Lance:
    """LanceDB: a table in a folder with an index of inverted lists, each a graph of one-byte numbers."""

    ladder = LADDER

    def __init__(self, threads: int) -> None:
        import lancedb

        self.connect, self.effort = lancedb.connect, 8
        self.folder = Path(tempfile.mkdtemp(prefix="lance-"))

    def _rows(self, ids: Ids, vectors: Floats) -> Any:
        import pyarrow as pa

        flat = pa.FixedSizeListArray.from_arrays(np.ascontiguousarray(vectors).reshape(-1), WIDTH)
        return pa.table({"id": ids, "vector": flat})

    def build(self, ids: Ids, vectors: Floats) -> None:
        self.table = self.connect(str(self.folder)).create_table("photos", self._rows(ids, vectors))
        from lancedb.index import HnswSq

        lists = max(1, round(math.sqrt(len(vectors)) / 4))
        self.table.create_index("vector", config=HnswSq(distance_type="dot", num_partitions=lists))

    def add(self, ids: Ids, vectors: Floats) -> None:
        self.table.add(self._rows(ids, vectors))
        self.table.optimize()

    def remove(self, ids: Ids) -> None:
        self.table.delete(f"id IN ({','.join(map(str, ids.tolist()))})")

    def save(self, path: Path) -> None:
        shutil.copytree(self.folder, path)
        shutil.rmtree(self.folder)
        self.open(path)

    def open(self, path: Path) -> None:
        self.table = self.connect(str(path)).open_table("photos")

    def search(self, query: Floats) -> Ids:
        asked = (
            self.table.search(query, vector_column_name="vector").distance_type("dot").nprobes(self.effort)
        )
        found = asked.ef(64 + self.effort).refine_factor(2).select(["id", "_distance"]).limit(TOP).to_arrow()
        return found["id"].to_numpy()


class Vistill:
    """What `vistill index` and `vistill search` do: a SQLite catalogue, lists of FAISS, a second scoring."""

    ladder = (1,)

    def __init__(self, threads: int) -> None:
        import faiss

        from vistill.archive import catalogue, search

        faiss.omp_set_num_threads(threads)
        self.rooms, self.effort = (catalogue, search), 1
        self.folder = Path(tempfile.mkdtemp(prefix="vistill-"))

    def build(self, ids: Ids, vectors: Floats) -> None:
        catalogue, _ = self.rooms
        model = catalogue.Model("benchmark", "0" * 64, WIDTH)
        self.catalogue = catalogue.create_catalogue(self.folder, "/", model)
        self.add(ids, vectors)

    def add(self, ids: Ids, vectors: Floats) -> None:
        catalogue, search = self.rooms
        with self.catalogue.transaction():
            for id, vector in zip(ids.tolist(), vectors, strict=True):
                self.catalogue.insert(str(id), catalogue.Stamp(1, id, id.to_bytes(32)), vector)
        search.write_lists(self.catalogue)
        self.searcher = search.Searcher(self.catalogue)

    def remove(self, ids: Ids) -> None:
        with self.catalogue.transaction():
            for id in ids.tolist():
                self.catalogue.remove(self.catalogue.find(str(id)).id)
        self.searcher = self.rooms[1].Searcher(self.catalogue)

    def save(self, path: Path) -> None:
        self.catalogue.close()
        shutil.move(self.folder, path)
        self.open(path)

    def open(self, path: Path) -> None:
        catalogue, search = self.rooms
        self.catalogue = catalogue.open_catalogue(path)
        self.searcher = search.Searcher(self.catalogue)

    def search(self, query: Floats) -> Ids:
        return np.array([int(hit.path[1:]) for hit in self.searcher(query, TOP)])


SYSTEMS: dict[str, Any] = {
    "vistill, FAISS lists": Vistill,
    "numpy, exact": Exact,
    "FAISS IVF, 16-bit": lambda threads: Faiss(threads, "IVF,SQfp16"),
    "FAISS IVF, 8-bit": lambda threads: Faiss(threads, "IVF,SQ8"),
    "FAISS HNSW, 16-bit": lambda threads: Faiss(threads, "HNSW16_SQfp16"),
    "usearch HNSW, 16-bit": lambda threads: Usearch(threads, "f16"),
    "usearch HNSW, 8-bit": lambda threads: Usearch(threads, "i8"),
    "LanceDB IVF-HNSW, 8-bit": Lance,
}
PACKAGES = {
    name: next(p for p in ("vistill", "numpy", "FAISS", "usearch", "LanceDB") if name.startswith(p))
    for name in SYSTEMS
}
MODULES = {"vistill": "faiss", "numpy": "numpy", "FAISS": "faiss", "usearch": "usearch", "LanceDB": "lancedb"}


@dataclass
class Clock:
    """Processor seconds of named steps, of all threads: other work on the machine does not count."""

    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, name: str, work: Any, *arguments: Any) -> Any:
        began = time.process_time()
        result = work(*arguments)
        self.seconds[name] = time.process_time() - began
        return result


def recall(index: Any, queries: Floats, truth: Ids) -> float:
    """Share of the true neighbours that are found."""
    hits = [len(set(index.search(q).tolist()) & set(t.tolist())) for q, t in zip(queries, truth, strict=True)]
    return sum(hits) / truth.size


def build_and_change(index: Any, folder: Path, path: Path) -> dict[str, float]:
    """The first process: build, store, tune, then add 1% and delete 1%."""
    clock = Clock()
    vectors, queries = np.load(folder / "vectors.npy"), np.load(folder / "queries.npy")
    ids = np.arange(len(vectors), dtype=np.int64)
    clock("build", index.build, ids, vectors)
    clock("save", index.save, path)
    tuning, truth = np.load(folder / "tuning.npy"), np.load(folder / "tuning_truth.npy")
    for effort in index.ladder:
        index.effort = effort
        if recall(index, tuning, truth) >= WANTED:
            break
    effort = index.effort
    share = max(1, len(vectors) // 100)
    fresh, gone = cloud(share, seed=3), np.random.default_rng(4).choice(len(vectors), share, replace=False)
    out = {"effort": effort, "recall": recall(index, queries, np.load(folder / "truth.npy"))}
    clock("add", index.add, len(vectors) + np.arange(share, dtype=np.int64), fresh)
    try:
        clock("delete", index.remove, np.sort(gone).astype(np.int64))
    except NotImplementedError:
        return out | clock.seconds
    index.effort = effort
    return out | clock.seconds | {"recall_after": recall(index, queries, np.load(folder / "changed.npy"))}


def open_and_ask(index: Any, folder: Path, path: Path, effort: int) -> dict[str, float]:
    """The second process: open what was stored, ask one question after another."""
    queries = np.load(folder / "queries.npy")
    before = resident()
    clock = Clock()
    clock("open", index.open, path)
    index.effort = effort
    clock("first", index.search, queries[0])
    took = []
    for query in queries:
        began = time.process_time()
        index.search(query)
        took.append(time.process_time() - began)
    return clock.seconds | {"ms": 1000 * statistics.median(took), "memory": resident() - before}


def resident() -> float:
    """MB of this process in memory now, mapped files included (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def prepare(folder: Path, count: int) -> None:
    """Vectors, questions (half as far again from their scenes as photos are) and true answers."""
    vectors = cloud(count, seed=1)
    queries, tuning = cloud(QUERIES, seed=2, spread=1.5), cloud(200, seed=5, spread=1.5)
    ids = np.arange(count, dtype=np.int64)
    share = max(1, count // 100)
    gone = np.random.default_rng(4).choice(count, share, replace=False)
    kept = np.setdiff1d(ids, gone)
    for name, array in {
        "vectors": vectors,
        "queries": queries,
        "tuning": tuning,
        "truth": nearest(vectors, ids, queries),
        "tuning_truth": nearest(vectors, ids, tuning),
        "changed": nearest(
            np.concatenate([vectors[kept], cloud(share, seed=3)]),
            np.concatenate([kept, count + np.arange(share)]),
            queries,
        ),
    }.items():
        np.save(folder / f"{name}.npy", array)


def run_apart(system: str, folder: Path, path: Path, threads: int, effort: int | None) -> dict[str, float]:
    """One of the two processes of a system; effort None: the first."""
    command = [sys.executable, __file__, "--system", system, "--folder", str(folder), "--path", str(path)]
    command += ["--threads", str(threads)] + ([] if effort is None else ["--effort", str(effort)])
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def size_of(path: Path) -> float:
    """MB of a file or folder; what carries another suffix counts too."""
    files = [f for p in path.parent.glob(path.stem + "*") for f in (p.rglob("*") if p.is_dir() else [p])]
    return sum(f.stat().st_size for f in files if f.is_file()) / 1e6


def measure(
    systems: list[str], count: int, rounds: int, threads: int, kept: Path | None
) -> dict[str, dict[str, float]]:
    """Medians of every figure of every system at one size."""
    done = read_kept(kept, count, threads)
    turns = [(number, system) for number in range(rounds) for system in systems]
    todo = [turn for turn in turns if turn not in done]
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name) / "index"
        if todo:
            prepare(folder, count)
        for number, system in todo:
            figures = run_apart(system, folder, path, threads, None)
            figures |= run_apart(system, folder, path, threads, int(figures["effort"]))
            figures["disk"] = size_of(path)
            for left in folder.glob(path.name + "*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            done[number, system] = figures
            line = json.dumps([count, threads, number, system, figures])
            print(line, file=sys.stderr)
            if kept is not None:
                with kept.open("a", encoding="utf-8") as file:
                    print(line, file=file)
    return {
        system: {
            key: statistics.median(done[number, system][key] for number in range(rounds))
            for key in done[0, system]
        }
        for system in systems
    }


def read_kept(path: Path | None, count: int, threads: int) -> dict[tuple[int, str], dict[str, float]]:
    """{(round, system): figures} of what was measured before at this size."""
    if path is None or not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(row[2], row[3]): row[4] for row in rows if row[:2] == [count, threads]}


def projected(figures: dict[str, float], system: str, count: int) -> dict[str, float]:
    """Figures for PROJECTED vectors: sizes in proportion, a question by the system's law of growth.

    Lists grow with sqrt(n), so building them grows with n sqrt(n); a graph grows with n log n.
    """
    times = PROJECTED / count
    log = math.log(PROJECTED) / math.log(count)
    growth = {
        "vistill": 0.5,
        "numpy": 1.0,
        "FAISS": 0.5 if "IVF" in system else 0.0,
        "usearch": 0.0,
        "LanceDB": 0.5,
    }
    power = growth[PACKAGES[system]]
    building = times if power == 1 else times * (times**0.5 if power else log)
    return {
        "build": figures["build"] * building,
        "ms": figures["ms"] * (times**power if power else log),
        "memory": figures["memory"] * times,
        "disk": figures["disk"] * times,
    }


def table(results: dict[str, dict[str, float]]) -> str:
    columns = {
        "build, s": ("build", ".2f"),
        "recall@10": ("recall", ".3f"),
        "search parameter": ("effort", ".0f"),
        "ms a question": ("ms", ".2f"),
        "opened in, ms": ("open", ".1f"),
        "memory, MB": ("memory", ".0f"),
        "disk, MB": ("disk", ".1f"),
        "add 1%, s": ("add", ".3f"),
        "delete 1%, s": ("delete", ".3f"),
        "recall then": ("recall_after", ".3f"),
    }
    lines = ["| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for system, figures in results.items():
        cells = []
        for key, form in columns.values():
            value = figures.get(key)
            cells.append("–" if value is None else format(1000 * value if key == "open" else value, form))
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(
    results: dict[int, dict[str, dict[str, float]]], rounds: int, threads: int, absent: list[str]
) -> str:
    where = environment()
    parts = "\n\n".join(f"## {count:,} vectors\n\n{table(found)}" for count, found in results.items())
    left = f"\n\nNot installed, so not measured: {', '.join(absent)}." if absent else ""
    return f"""# Vector indexes

Written by `python benchmarks/vector_index.py --vectors {" ".join(map(str, results))}`. Seeded, clustered
unit vectors of {WIDTH} numbers; {QUERIES} questions, each asked alone. The search parameter (lists probed,
width of the beam) is the least of {LADDER[0]} to {LADDER[-1]} that finds {WANTED:.0%} of the ten nearest
on other questions. Times are of the processor, all threads together; memory is what opening and asking adds
to a process. Medians of {rounds} round(s) in turns, {threads} thread(s).

Machine: {where["processor"]}, {os.cpu_count()} cores; Python {where["python"]}.{left}

{parts}
{projection(max(results), results[max(results)])}"""


def projection(count: int, found: dict[str, dict[str, float]]) -> str:
    """The last section; empty if the largest run was too small to say anything."""
    if count < 1_000_000:
        return ""
    rows = "\n".join(
        f"| {system} | {f['build'] / 60:.0f} | {f['ms']:.1f} | {f['memory'] / 1000:.1f} "
        f"| {f['disk'] / 1000:.1f} |"
        for system, figures in found.items()
        for f in [projected(figures, system, count)]
    )
    return f"""
## {PROJECTED:,} vectors, projected from {count:,}

Sizes in proportion; a question by n (exact), sqrt(n) (lists) or log(n) (graph); building by n, n sqrt(n) or
n log(n).

| | build, min | ms a question | memory, GB | disk, GB |
|---|---|---|---|---|
{rows}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vectors", type=int, nargs="+", default=[10_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=PAGE, help="Markdown file to write")
    parser.add_argument("--kept", type=Path, help="file of what was measured, to go on after a stop")
    parser.add_argument("--only", nargs="+", choices=list(SYSTEMS), help="measure these alone")
    for name in ("--system", "--folder", "--path", "--effort"):  # of a process for one system
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.system:
        index = SYSTEMS[options.system](options.threads)
        folder, path = Path(options.folder), Path(options.path)
        effort = options.effort
        figures = (
            open_and_ask(index, folder, path, int(effort))
            if effort
            else build_and_change(index, folder, path)
        )
        print(json.dumps(figures))
        return
    absent = [name for name, module in MODULES.items() if importlib.util.find_spec(module) is None]
    here = [system for system in options.only or SYSTEMS if PACKAGES[system] not in absent]
    results = {
        n: measure(here, n, options.rounds, options.threads, options.kept) for n in sorted(options.vectors)
    }
    text = page(results, options.rounds, options.threads, absent)
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
