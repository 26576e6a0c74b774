"""Make a teacher cache with Ray Data: the unit of work is a shard, asked for by whichever actor is free.

Every machine must see `folder` and `data` under the same paths. An actor that dies costs the shard it was at:
Ray starts another one and asks again for what is not there.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from vistill.distill.answers import Teacher
from vistill.distill.cache import CacheConfig, ranges, shard_files
from vistill.distill.cache_run import Progress, Report, make_shard, report, size_of, start
from vistill.errors import ConfigError


def run_on_ray(
    folder: Path,
    load: Callable[[], Teacher],
    data: Path,
    config: CacheConfig,
    *,
    actors: int,
    gpus: float = 0,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Make the shards that are missing in `folder` by `actors` processes of the running or a local Ray.

    load: makes the teacher, once here and once in each actor. gpus: of each actor. Equal arguments give the
    bytes that `cache_run.run` gives; raises what it raises.
    """
    if actors < 1:
        raise ConfigError(f"actors={actors}: must be at least 1")
    folder, data = folder.resolve(), data.resolve()
    manifest = start(folder, load(), data, config)
    there = shard_files(folder)
    todo = [number for number, part in enumerate(ranges(manifest)) if part.stem not in there]
    total, done = sum(size_of(ranges(manifest)[number]) for number in todo), 0
    progress(0, total)
    if todo:
        table = ray.data.from_items([{"number": number} for number in todo], override_num_blocks=len(todo))
        made = table.map_batches(
            _Asker,
            fn_constructor_args=(folder, load, data, config, manifest),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(todo))),
            num_gpus=gpus or None,
        )
        for row in made.iter_rows():
            done += int(row["records"])
            progress(done, total)
    return report(folder, manifest, ranges(manifest), made=done)


class _Asker:
    """An actor that holds one teacher and makes one shard at a time."""

    def __init__(
        self,
        folder: Path,
        load: Callable[[], Teacher],
        data: Path,
        config: CacheConfig,
        manifest: dict[str, Any],
    ) -> None:
        self.folder, self.data, self.config, self.manifest = folder, data, config, manifest
        self.teacher = load()
        self.ranges = ranges(manifest)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """Make the shards of the given numbers that are not there; the records of each."""
        records = []
        for number in batch["number"].tolist():
            part = self.ranges[number]
            if part.stem not in shard_files(self.folder):  # Ray asks again after a failure
                list(make_shard(self.folder, self.teacher, self.data, self.config, part, self.manifest))
            records.append(size_of(part))
        return {"records": records}
