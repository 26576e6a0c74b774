"""A cache made on a local Ray is the cache made in one process."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tests.distill.fake_teacher import FakeTeacher, identity
from tests.tiny import build_data

from vistill.distill.answers import Ask
from vistill.distill.cache import CacheConfig, TeacherCache
from vistill.distill.cache_run import run
from vistill.errors import ConfigError, DataError

ray = pytest.importorskip("ray", reason="the runner for many machines needs the extra ray")
pytestmark = pytest.mark.slow

CONFIG = CacheConfig(splits=("train", "dev"), views=2, ask=Ask(captions=1, top_k=4), shard_records=3)


@pytest.fixture(scope="module", autouse=True)
def local_ray(root: Path):  # type: ignore[no-untyped-def]
    """A Ray of this process; its workers find the tests as this process does."""
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": str(root)}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_data(tmp_path_factory.mktemp("tiny"), train=10, dev=2)


def _shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.arrow")}


def test_ray_makes_what_one_process_makes_and_goes_on(data: Path, tmp_path: Path) -> None:
    from vistill.distill.cache_ray import run_on_ray

    one, many = tmp_path / "one", tmp_path / "many"
    run(one, FakeTeacher(), data, CONFIG)
    seen: list[tuple[int, int]] = []
    report = run_on_ray(
        many, FakeTeacher, data, CONFIG, actors=2, progress=lambda done, total: seen.append((done, total))
    )
    assert (report.made, report.kept, report.missing, report.problems) == (24, 0, 0, ())
    assert (seen[0], seen[-1]) == ((0, 24), (24, 24))
    assert _shards(many) == _shards(one)
    lost = sorted(many.glob("*.arrow"))[3:5]
    for path in lost:
        path.unlink()
    again = run_on_ray(many, FakeTeacher, data, CONFIG, actors=1)
    assert 0 < again.made < 24
    assert _shards(many) == _shards(one)
    assert run_on_ray(many, FakeTeacher, data, CONFIG, actors=1).made == 0
    assert len(TeacherCache.open(many)) == 24


def test_ray_refuses_what_one_process_refuses(data: Path, tmp_path: Path) -> None:
    from vistill.distill.cache_ray import run_on_ray

    config = replace(CONFIG, splits=("dev",), views=1)
    run(tmp_path / "c", FakeTeacher(), data, config)
    with pytest.raises(DataError, match=r"teacher\.weights was 'w1' and is 'w2'"):
        run_on_ray(tmp_path / "c", partial(FakeTeacher, identity(weights="w2")), data, config, actors=1)
    with pytest.raises(ConfigError, match="actors=0: must be at least 1"):
        run_on_ray(tmp_path / "c", FakeTeacher, data, config, actors=0)
