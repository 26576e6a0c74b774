"""`vistill teach plan|run|texts|verify|info`: ask a teacher once and keep its answers."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from vistill.cli.options import Threads
from vistill.cli.progress import counting, steps
from vistill.cli.teach_words import (
    Augment,
    BatchSize,
    Beams,
    Captions,
    Data,
    Device,
    Draw,
    Embedding,
    Folder,
    Gold,
    Hidden,
    HiddenDtype,
    Json,
    LengthPenalty,
    Longest,
    MaxNewTokens,
    Measure,
    PerMinute,
    Prompt,
    Seed,
    ShardRecords,
    Splits,
    Teacher,
    Temperature,
    Timeout,
    TopK,
    TopP,
    Views,
    Workers,
    config_of,
    load,
    remote_of,
)

app = typer.Typer(help="Ask a teacher about every picture once and keep its answers.", no_args_is_help=True)


@app.command()
def plan(
    teacher: Teacher,
    data: Data,
    splits: Splits = "train",
    captions: Captions = 1,
    beams: Beams = 3,
    sample: Draw = False,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    length_penalty: LengthPenalty = 1.0,
    max_new_tokens: MaxNewTokens = 20,
    longest: Longest = 40,
    top_k: TopK = 0,
    gold: Gold = True,
    hidden: Hidden = "none",
    hidden_dtype: HiddenDtype = "float16",
    embedding: Embedding = False,
    views: Views = 1,
    augment: Augment = None,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    shard_records: ShardRecords = 512,
    measure: Annotated[
        int | None,
        typer.Option(min=1, help="Records to measure. [default: 16; of a URL, where each costs, --workers]"),
    ] = None,
    device: Device = "cpu",
    prompt: Prompt = "",
    workers: Workers = None,
    per_minute: PerMinute = None,
    timeout: Timeout = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure a few pictures and print what a run will cost.

    The run is `vistill teach run` with the same words. What is measured is not kept: it prints how many
    requests a URL was sent.
    """
    from dataclasses import asdict

    from vistill.distill.cache_run import plan as make_plan
    from vistill.distill.teachers import is_url

    remote = remote_of(locals())
    config = config_of(locals())
    if measure is None:
        measure = min(16, workers or 4) if is_url(teacher) else 16
    found = make_plan(load(teacher, device, prompt, threads, remote), data, config, measure)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=1))
    else:
        typer.echo(_plan_text(asdict(found)))


@app.command()
def run(
    teacher: Teacher,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the cache; a killed run goes on in it.")],
    splits: Splits = "train",
    captions: Captions = 1,
    beams: Beams = 3,
    sample: Draw = False,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    length_penalty: LengthPenalty = 1.0,
    max_new_tokens: MaxNewTokens = 20,
    longest: Longest = 40,
    top_k: TopK = 0,
    gold: Gold = True,
    hidden: Hidden = "none",
    hidden_dtype: HiddenDtype = "float16",
    embedding: Embedding = False,
    views: Views = 1,
    augment: Augment = None,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    shard_records: ShardRecords = 512,
    measure: Measure = None,
    rank: Annotated[int, typer.Option(help="Number of this process, from 0.")] = 0,
    ranks: Annotated[int, typer.Option(help="Processes that share the work.")] = 1,
    ray: Annotated[int, typer.Option(min=0, help="Actors of Ray that share it instead; 0: no Ray.")] = 0,
    retry_problems: Annotated[
        bool, typer.Option("--retry-problems", help="Ask again about pictures without an answer.")
    ] = False,
    device: Device = "cpu",
    prompt: Prompt = "",
    workers: Workers = None,
    per_minute: PerMinute = None,
    timeout: Timeout = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Ask TEACHER about DATA and keep the answers in OUT.

    It is asked about every view of every picture. Prints what it will cost first. A killed run is continued
    by the same words. Exits with 1 if there are pictures without an answer (unreadable, or refused by a URL);
    they are counted and the first are named.
    """
    from dataclasses import asdict

    from vistill.distill.cache_run import plan as make_plan
    from vistill.distill.cache_run import run as make
    from vistill.distill.teachers import is_url
    from vistill.errors import ConfigError

    if ray and ranks > 1:
        raise ConfigError("--ray deals out the work itself: leave --rank and --ranks away")
    if ray and retry_problems:
        raise ConfigError("--retry-problems: leave --ray away, or finish the cache with it before")
    remote = remote_of(locals())
    config = config_of(locals())
    loaded = load(teacher, device, prompt, threads, remote)
    if measure is None:
        measure = 0 if is_url(teacher) else 16
    if measure and rank == 0 and not (out / "manifest.json").is_file():
        _check_room(out, asdict(make_plan(loaded, data, config, measure)))
    with steps() as told:
        show = partial(told, "asking")
        if ray:
            from vistill.distill.cache_ray import run_on_ray
            from vistill.distill.teachers import from_anywhere

            ask_for = partial(load, from_anywhere(teacher), device, prompt, threads, remote)
            gpus = 1 if device.startswith("cuda") else 0
            report = run_on_ray(out, ask_for, data, config, actors=ray, gpus=gpus, progress=show)
        else:
            report = make(
                out, loaded, data, config, rank=rank, ranks=ranks, retry=retry_problems, progress=show
            )
    _show_unanswered(asdict(report)["problems"])
    typer.echo(
        f"{report.made:,} records made, {report.kept:,} were there, {report.missing:,} are left to other "
        f"ranks; {_bytes(report.bytes)}",
        err=True,
    )
    typer.echo(json.dumps(asdict(report), indent=1) if as_json else str(out))
    if report.problems:
        raise typer.Exit(1)


@app.command()
def texts(
    teacher: Annotated[
        str,
        typer.Argument(metavar="TEACHER", help="minilm (its wheel), a folder or a hub name; a+b: several."),
    ],
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Data sets (FOLDER, FOLDER#SPLIT), COCO or VQA JSON, caption<TAB>url TSV, lines of text."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the vectors; a killed run goes on in it.")],
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Ask a text teacher for vectors; keep them in OUT.

    It is asked for the vector of every text of SOURCES, of each text once.
    """
    from dataclasses import asdict

    from vistill.data.texts import gather_texts
    from vistill.distill.teachers_clip import load_text_teacher
    from vistill.distill.text_cache import run as make

    if threads:
        import torch

        torch.set_num_threads(threads)
    gathered = gather_texts(sources)
    for count in gathered.counts:
        typer.echo(
            f"{count.source}: {count.read:,} texts, {count.duplicates:,} there before, {count.empty:,} empty",
            err=True,
        )
    loaded = load_text_teacher(teacher, device)
    with counting("asking", len(gathered.texts)) as told:
        made = make(out, loaded, gathered, lambda done, total: told(done))
    typer.echo(f"{made:,} texts asked, {len(gathered.texts) - made:,} were there", err=True)
    report = {"texts": len(gathered.texts), "made": made, "sources": list(map(asdict, gathered.counts))}
    typer.echo(json.dumps(report, indent=1) if as_json else str(out))


@app.command()
def verify(
    cache: Folder,
    data: Annotated[Path | None, typer.Option(help="Data set to compare keys and content with.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Teacher to ask again about a sample; needs --data.")
    ] = None,
    measure: Annotated[int, typer.Option("--ask", min=1, help="Records to ask again.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed that draws them.")] = 0,
    device: Device = "cpu",
    prompt: Prompt = "",
    workers: Workers = None,
    per_minute: PerMinute = None,
    timeout: Timeout = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Read every byte of a cache and name what is wrong.

    Exits with 1 if anything is, or if there are pictures without an answer.
    """
    from dataclasses import asdict

    from vistill.distill.cache_verify import summary
    from vistill.distill.cache_verify import verify as find_problems
    from vistill.errors import ConfigError

    if teacher is not None and data is None:
        raise ConfigError("--teacher needs --data: the pictures to ask about")
    remote = remote_of(locals())
    loaded = None if teacher is None else load(teacher, device, prompt, threads, remote)
    problems = list(map(asdict, find_problems(cache, loaded, data, measure, seed)))
    unanswered = [] if problems else summary(cache)["problems"]  # of whole shards only
    if as_json:
        typer.echo(json.dumps(problems + unanswered, indent=1))
    for problem in [] if as_json else problems:
        typer.echo(f"{problem['where']}: {problem['reason']}")
    _show_unanswered(unanswered)
    if problems or unanswered:
        raise typer.Exit(1)
    if not as_json:
        typer.echo(f"{cache}: nothing is wrong")


@app.command()
def info(cache: Folder, as_json: Json = False) -> None:
    """Print who answered what, and how much is there.

    It names the pictures too.
    """
    from vistill.distill.cache_verify import summary

    found = summary(cache)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    teacher, ask = found["teacher"], found["ask"]
    lines = {
        "teacher": f"{teacher['name']} ({teacher['kind']}), weights {teacher['weights'][:12]}",
        "pictures": ", ".join(f"{name} {facts['pictures']:,}" for name, facts in found["data"].items()),
        "views": f"{found['views']}, seed {found['seed']}"
        + "".join(f", {name} {value}" for name, value in found["augment"].items() if found["views"] > 1),
        "captions": f"{ask['captions']}, {_search(found)}" if ask["captions"] else "none",
        "top-k": f"{ask['top_k']} of {teacher['vocab_size']:,}" if ask["top_k"] else "none",
        "hidden": f"{ask['hidden']}, {found['values']['hidden']}" if ask["hidden"] != "none" else "none",
        "embedding": "kept" if ask["embedding"] else "none",
        "records": f"{found['records']:,} in {found['shards']:,} files, {_bytes(found['bytes'])}",
        "missing": f"{found['missing_shards']:,} files; `vistill teach run` makes them"
        if found["missing_shards"]
        else "nothing",
        "no answer": f"{len(found['problems']):,} records; `vistill teach run --retry-problems` asks again"
        if found["problems"]
        else "0 records",
    }
    for name, text in lines.items():
        typer.echo(f"{name:>10}  {text}")
    for problem in found["problems"][:10]:
        typer.echo(f"{'':>10}  {problem['where']}: {problem['reason']}")


def _show_unanswered(problems: Sequence[dict[str, Any]], most: int = 10) -> None:
    """How many pictures have no answer, and why the first have none."""
    for problem in problems[:most]:
        typer.echo(f"no answer: {problem['where']}: {problem['reason']}", err=True)
    if problems:
        more = f", {len(problems) - most:,} of them not named here" if len(problems) > most else ""
        typer.echo(
            f"{len(problems):,} records have no answer{more}; `vistill teach run` with the same words and "
            "--retry-problems asks again",
            err=True,
        )


def _check_room(out: Path, found: dict[str, Any]) -> None:
    """Say what a run will cost; ConfigError if the disk cannot hold it."""
    import shutil

    from vistill.errors import ConfigError

    typer.echo(_plan_text(found), err=True)
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if found["bytes"] > free:
        raise ConfigError(
            f"{out}: the cache needs {_bytes(found['bytes'])}, {_bytes(free)} are free; "
            "ask for less (--hidden pooled, --hidden-dtype int8, fewer --views) or choose another disk"
        )


def _plan_text(found: dict[str, Any]) -> str:
    caption = f", {found['bytes_per_caption']:,.0f} bytes a gold caption" if found["captions"] else ""
    hours = found["hours"]
    time = f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
    requests = f"; {found['requests']:,} requests" if found["requests"] else ""
    spent = f" with {found['spent']:,} requests, whose answers are not kept" if found["requests"] else ""
    return (
        f"{found['records']:,} records in {found['shards']:,} files: {_bytes(found['bytes'])}{caption}"
        f"{requests}; {time} in one process ({found['seconds_per_record'] * 1000:,.0f} ms a record, "
        f"{found['measured']} measured{spent})"
    )


def _search(found: dict[str, Any]) -> str:
    """How captions were made; a server has no beams, and several captions take as many at least."""
    generation, captions = found["ask"]["generation"], found["ask"]["captions"]
    if generation["do_sample"]:
        return f"drawn at temperature {generation['temperature']}, seed {generation['seed']}"
    beams = 1 if found["teacher"]["kind"] == "openai" else max(generation["num_beams"], captions)
    return f"{beams} beams" if beams > 1 else "greedy"


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
