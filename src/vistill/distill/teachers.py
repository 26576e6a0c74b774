"""Teachers by name: a folder, a name on the hub, folders joined with `+`, a URL.

    what                                            can
    a vistill checkpoint folder                     captions, top_k, hidden, embedding
    several of them joined with `+`: an ensemble    the same
    a vistill bundle folder                         captions, top_k
    VisionEncoderDecoderModel, BLIP                 captions, top_k, hidden, embedding
    CLIPModel                                       hidden, embedding
    a dual-encoder checkpoint folder of vistill     hidden, embedding
    several of these two joined with `+`            embedding
    another AutoModelForImageTextToText             captions, mostly top_k
    http(s)://host/v1#model                         captions

To add a kind: a class with `identity`, `can` and `answer` (see answers.Teacher), and a line here.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vistill.distill.answers import Teacher
from vistill.errors import ConfigError
from vistill.files import best_of_each

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def is_url(spec: str) -> bool:
    """Whether `spec` names a server."""
    return spec.startswith(("http://", "https://"))


def from_anywhere(spec: str) -> str:
    """`spec` with whole paths in place of local folders: another process may start in another folder."""
    if is_url(spec):
        return spec
    if Path(spec).exists():
        return str(Path(spec).resolve())
    if "+" in spec:
        return "+".join(from_anywhere(part.strip()) for part in spec.split("+"))
    return spec


def load_teacher(
    spec: str, device: str = "cpu", prompt: str = "", remote: Mapping[str, Any] | None = None
) -> Teacher:
    """The teacher that `spec` names: a local folder, a hub name, folders joined with `+`, or a URL.

    device: where torch runs it. prompt: what a model that follows instructions is told. remote: settings of
    `RemoteConfig` (workers, per_minute, timeout), for a URL alone.
    Raises ConfigError (or BundleError for broken files), saying what was looked for.
    """
    if is_url(spec):
        from vistill.distill.teachers_remote import RemoteConfig, RemoteTeacher

        told = {"prompt": prompt} if prompt else {}
        return RemoteTeacher(spec, RemoteConfig(**{**(remote or {}), **told}))
    if remote:
        raise ConfigError(
            f"teacher {spec!r}: {', '.join(remote)}: only a server, http(s)://host/v1#model, has these "
            "settings; leave them away"
        )
    spec = best_of_each(spec)
    folder = Path(spec)
    if not folder.exists() and "+" in spec:
        folders = [Path(part.strip()) for part in spec.split("+")]
        if all(map(_embeds, folders)):
            from vistill.distill.teachers_clip import PictureEnsemble

            return PictureEnsemble([_picture_tower(member, device) for member in folders])
        for member in folders:
            if not _is_checkpoint(member):
                raise ConfigError(f"ensemble {spec!r}: {member} is no vistill checkpoint folder")
        return _checkpoints(folders, device)
    if (folder / "manifest.json").is_file():
        from vistill.distill.teachers_vistill import BundleTeacher

        return BundleTeacher(folder)
    if _embeds(folder):
        return _picture_tower(folder, device)
    if _is_checkpoint(folder):
        return _checkpoints([folder], device)
    if folder.exists() and not (folder / "config.json").is_file():
        raise ConfigError(f"teacher {spec!r}: there is neither a manifest.json nor a config.json in it")
    if not folder.exists() and not _HUB_NAME.fullmatch(spec):
        raise ConfigError(f"teacher {spec!r}: there is no such folder, and it is no name on the hub")
    return _transformers(spec, device, prompt)


def _checkpoints(folders: list[Path], device: str) -> Teacher:
    from vistill.distill.teachers_vistill import CheckpointTeacher

    return CheckpointTeacher(folders, device, compiled=True)


def _transformers(source: str, device: str, prompt: str) -> Teacher:
    from vistill.distill.teachers_pretrained import load_part
    from vistill.distill.teachers_transformers import WIRINGS, EncoderTeacher
    from vistill.models.torchvision_repair import repair_torchvision

    repair_torchvision()
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

    config: Any = load_part(AutoConfig, source)
    architecture = (getattr(config, "architectures", None) or [KNOWN.get(config.model_type, "")])[0]
    if architecture in WIRINGS:
        return EncoderTeacher(source, architecture, device)
    if config.model_type == "clip":
        from vistill.distill.teachers_clip import clip_teacher

        return clip_teacher(source, device)
    if architecture not in KNOWN.values():
        raise ConfigError(
            f"teacher {source!r}: {architecture or config.model_type} does not make text from pictures; "
            f"use {', '.join(WIRINGS)}, CLIPModel or what AutoModelForImageTextToText loads"
        )
    from vistill.distill.teachers_prompted import PromptedTeacher

    return PromptedTeacher(source, architecture, device, prompt)


def _picture_tower(folder: Path, device: str) -> Teacher:
    """The picture side of a folder for which `_embeds` holds."""
    from vistill.distill.teachers_clip import clip_teacher, dual_teacher

    return dual_teacher(folder, device) if "kind" in _config(folder) else clip_teacher(str(folder), device)


def _embeds(folder: Path) -> bool:
    """Whether a folder holds a dual encoder of vistill or CLIP."""
    config = _config(folder)
    return config.get("kind", "") == "dual-encoder" or config.get("model_type", "") == "clip"


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a vistill checkpoint; ConfigError if it is one of a kind that cannot teach."""
    kind = (_config(folder, "vistill.json") or _config(folder)).get("kind")
    if kind is None:
        return False
    from vistill.models.loading import KINDS

    if kind not in KINDS:
        path = folder / "config.json"
        raise ConfigError(f"{path}: a checkpoint of kind {kind!r} makes no captions; use {', '.join(KINDS)}")
    return True


def _config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """config.json of a folder, {} if there is none. Raises ConfigError if it is not JSON."""
    path = folder / name
    if not path.is_file():
        return {}
    try:
        raw = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    return raw if isinstance(raw, dict) else {}
