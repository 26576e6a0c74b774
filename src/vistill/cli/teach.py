"""`vistill teach plan|run|texts|verify|info`: ask a teacher once and keep its answers."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from vistill.cli.options import Threads
from vistill.cli.progress import counting, steps

app = typer.Typer(help="Ask a teacher about every picture once and keep its answers.", no_args_is_help=True)

Teacher = Annotated[
    str,
    typer.Argument(
        metavar="TEACHER",
        help="Folder or hub name; checkpoints joined by + are an ensemble; http(s)://HOST/v1#MODEL.",
    ),
]
Data = Annotated[Path, typer.Argument(metavar="DATA", help="Data set that `vistill data build` made.")]
Folder = Annotated[Path, typer.Argument(metavar="CACHE", help="Folder that `vistill teach run` made.")]
Splits = Annotated[str, typer.Option(help="Splits, as train,extra.")]
Captions = Annotated[int, typer.Option(min=0, help="Captions the teacher makes of each view.")]
Beams = Annotated[int, typer.Option(min=1, help="Beams of its search; 1 is greedy.")]
Draw = Annotated[bool, typer.Option("--sample", help="Draw the captions at random instead of searching.")]
Temperature = Annotated[float, typer.Option(help="With --sample: above 1 is more varied.")]
TopP = Annotated[float, typer.Option(help="With --sample: draw from the likeliest tokens of this mass.")]
LengthPenalty = Annotated[float, typer.Option(help="Score is sum(log p) / length ** this.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest caption it makes, in tokens.")]
Longest = Annotated[int, typer.Option(min=2, help="Longest text in tokens, marks included.")]
TopK = Annotated[int, typer.Option(help="Log-probabilities kept at each position of each text.")]
Gold = Annotated[bool, typer.Option("--gold/--no-gold", help="Whether --top-k looks at gold captions too.")]
Hidden = Annotated[str, typer.Option(help="Encoder states: none, all or pooled.")]
HiddenDtype = Annotated[str, typer.Option(help="float16, or int8 with a scale for each patch.")]
Embedding = Annotated[bool, typer.Option("--embedding", help="Keep the picture's embedding.")]
Views = Annotated[int, typer.Option(help="Views of each picture: the clean one, then augmented ones.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the augmented views and of drawn captions.")]
BatchSize = Annotated[int, typer.Option(help="Pictures that the teacher sees at once.")]
ShardRecords = Annotated[int, typer.Option(help="Records in one file, the most that a kill can lose.")]
Measure = Annotated[int, typer.Option(min=0, help="Records to measure; 0 plans nothing.")]
Device = Annotated[str, typer.Option(help="Where torch runs the teacher: cpu, cuda, cuda:1.")]
Prompt = Annotated[str, typer.Option(help="What a teacher that follows instructions is told.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


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
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    shard_records: ShardRecords = 512,
    measure: Annotated[int, typer.Option(min=1, help="Records to measure.")] = 16,
    device: Device = "cpu",
    prompt: Prompt = "",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure a few pictures and print what a run will cost.

    The run is `vistill teach run` with the same words.
    """
    from dataclasses import asdict

    from vistill.distill.cache_run import plan as make_plan

    config = _config(locals())
    found = make_plan(_load(teacher, device, prompt, threads), data, config, measure)
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
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    shard_records: ShardRecords = 512,
    measure: Measure = 16,
    rank: Annotated[int, typer.Option(help="Number of this process, from 0.")] = 0,
    ranks: Annotated[int, typer.Option(help="Processes that share the work.")] = 1,
    ray: Annotated[int, typer.Option(min=0, help="Actors of Ray that share it instead; 0: no Ray.")] = 0,
    device: Device = "cpu",
    prompt: Prompt = "",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Ask TEACHER about DATA and keep the answers in OUT.

    It is asked about every view of every picture. Prints what it will cost first. A killed run is continued
    by the same words. Exits with 1 if there are pictures that could not be shown to the teacher; they are
    named.
    """
    from dataclasses import asdict

    from vistill.distill.cache_run import plan as make_plan
    from vistill.distill.cache_run import run as make
    from vistill.errors import ConfigError

    if ray and ranks > 1:
        raise ConfigError("--ray deals out the work itself: leave --rank and --ranks away")
    config = _config(locals())
    loaded = _load(teacher, device, prompt, threads)
    if measure and rank == 0 and not (out / "manifest.json").is_file():
        _check_room(out, asdict(make_plan(loaded, data, config, measure)))
    with steps() as told:
        show = partial(told, "asking")
        if ray:
            from vistill.distill.cache_ray import run_on_ray

            load = partial(_load, teacher, device, prompt, threads)
            gpus = 1 if device.startswith("cuda") else 0
            report = run_on_ray(out, load, data, config, actors=ray, gpus=gpus, progress=show)
        else:
            report = make(out, loaded, data, config, rank=rank, ranks=ranks, progress=show)
    for problem in report.problems:
        typer.echo(f"no answer: {problem.where}: {problem.reason}", err=True)
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
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Read every byte of a cache and name what is wrong.

    Exits with 1 if anything is.
    """
    from dataclasses import asdict

    from vistill.distill.cache_verify import verify as find_problems
    from vistill.errors import ConfigError

    if teacher is not None and data is None:
        raise ConfigError("--teacher needs --data: the pictures to ask about")
    loaded = None if teacher is None else _load(teacher, device, prompt, threads)
    problems = find_problems(cache, loaded, data, measure, seed)
    if as_json:
        typer.echo(json.dumps([asdict(problem) for problem in problems], indent=1))
    for problem in [] if as_json else problems:
        typer.echo(f"{problem.where}: {problem.reason}")
    if problems:
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
        "views": f"{found['views']}, seed {found['seed']}",
        "captions": f"{ask['captions']}, {_search(ask['generation'])}" if ask["captions"] else "none",
        "top-k": f"{ask['top_k']} of {teacher['vocab_size']:,}" if ask["top_k"] else "none",
        "hidden": f"{ask['hidden']}, {found['values']['hidden']}" if ask["hidden"] != "none" else "none",
        "embedding": "kept" if ask["embedding"] else "none",
        "records": f"{found['records']:,} in {found['shards']:,} files, {_bytes(found['bytes'])}",
        "missing": f"{found['missing_shards']:,} files; `vistill teach run` makes them"
        if found["missing_shards"]
        else "nothing",
        "no answer": f"{len(found['problems']):,} records",
    }
    for name, text in lines.items():
        typer.echo(f"{name:>10}  {text}")
    for problem in found["problems"][:10]:
        typer.echo(f"{'':>10}  {problem['where']}: {problem['reason']}")


def _config(words: dict[str, Any]) -> Any:
    """The settings that the words of the command line mean."""
    from vistill.distill.answers import Ask
    from vistill.distill.cache import CacheConfig
    from vistill.runtime.decode import GenerationConfig

    generation = GenerationConfig(
        max_new_tokens=words["max_new_tokens"],
        num_beams=words["beams"],
        length_penalty=words["length_penalty"],
        do_sample=words["sample"],
        temperature=words["temperature"],
        top_p=words["top_p"],
        seed=words["seed"],
    )
    ask = Ask(
        captions=words["captions"],
        generation=generation,
        gold=words["gold"],
        top_k=words["top_k"],
        hidden=words["hidden"],
        embedding=words["embedding"],
        longest=words["longest"],
    )
    return CacheConfig(
        splits=tuple(words["splits"].split(",")),
        views=words["views"],
        seed=words["seed"],
        ask=ask,
        hidden_dtype=words["hidden_dtype"],
        shard_records=words["shard_records"],
        batch_size=words["batch_size"],
    )


def _load(teacher: str, device: str, prompt: str, threads: int | None) -> Any:
    from vistill.distill.teachers import load_teacher

    if threads:
        import torch

        torch.set_num_threads(threads)
    return load_teacher(teacher, device, prompt)


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
    return (
        f"{found['records']:,} records in {found['shards']:,} files: {_bytes(found['bytes'])}{caption}; "
        f"{time} in one process ({found['seconds_per_record'] * 1000:,.0f} ms a record, "
        f"{found['measured']} measured)"
    )


def _search(generation: dict[str, Any]) -> str:
    if generation["do_sample"]:
        return f"drawn at temperature {generation['temperature']}, seed {generation['seed']}"
    return f"{generation['num_beams']} beams" if generation["num_beams"] > 1 else "greedy"


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
