"""The bundle: a folder that holds a model ready to run (docs/bundle.md describes the format).

    manifest.json    what the model is and how to use it; name, size and sha256 of the files below
    vision.onnx      pixels -> cross-attention keys and values; embedder: pixels -> embedding
    prompt.onnx      answerer: a question -> the key/value cache after it
    decoder.onnx     captioner, answerer: one decoding step with a key/value cache
    text.onnx        embedder: tokens -> embedding
    consensus.npz    captioner, optional: which caption people would agree with (consensus.py)
    tokenizer.json   of the package `tokenizers`
    README.md        the model card

A bundle is data that may come from anywhere: names are checked before a path is built, sizes before a file is
read, checksums before its bytes are used, and nothing in it is ever executed or unpickled.
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vistill.errors import BundleError, ConfigError
from vistill.files import replacing
from vistill.runtime.decode import MOST_BEAMS, GenerationConfig
from vistill.runtime.image import Preprocess

FORMAT = 1
CAPTIONER, ANSWERER, EMBEDDER = "captioner", "answerer", "embedder"
MANIFEST = "manifest.json"
CARD = "README.md"
FILES = {  # kind -> role -> name
    CAPTIONER: {"vision": "vision.onnx", "decoder": "decoder.onnx", "tokenizer": "tokenizer.json"},
    ANSWERER: {
        "vision": "vision.onnx",
        "prompt": "prompt.onnx",
        "decoder": "decoder.onnx",
        "tokenizer": "tokenizer.json",
    },
    EMBEDDER: {"vision": "vision.onnx", "text": "text.onnx", "tokenizer": "tokenizer.json"},
}
OPTIONAL = {CAPTIONER: {"consensus": "consensus.npz"}, ANSWERER: {}, EMBEDDER: {}}  # the same, may lack
ONLY = {  # keys that not every kind has
    CAPTIONER: ("generation",),
    ANSWERER: ("generation",),
    EMBEDDER: ("width", "logit_scale"),
}
PACKAGED = Path(__file__).parent.parent / "bundles"
MAX_MANIFEST_BYTES = 2**20
MAX_BYTES = {
    "vision": 2**31, "prompt": 2**31, "decoder": 2**31, "text": 2**31, "tokenizer": 2**26, "consensus": 2**28
}  # fmt: skip
MAX_SIDE = 4096  # of the picture that the model reads
MAX_TOKENS = 4096  # of one text
MAX_WIDTH = 2**16  # of an embedding
MAX_LOGIT_SCALE = 1e4

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """One file of a bundle: plain name, sha256 in hex, size in bytes."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says. What writes has `generation`, an embedder `width` and `logit_scale`."""

    name: str
    preprocess: Preprocess
    generation: GenerationConfig | None
    """How a captioner or answerer searches; None for an embedder."""
    special_tokens: Mapping[str, int]
    """Ids of "bos" and "eos", an answerer's "ask", and of "pad" and "unk" if the tokenizer has them."""
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    """Role, see `FILES` -> file."""
    context: int = 0
    """Longest text in tokens, an answerer's question included. A captioner's may be 0: unknown."""
    precision: str = "fp32"
    """fp32 or int8."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Data, settings and git revision that the model comes from, and how the export was checked."""
    scores: Mapping[str, Any] = field(default_factory=dict)
    """What was measured on the checkpoint and on this bundle."""
    licence: str = "unknown"
    kind: str = CAPTIONER
    """A key of `FILES`."""
    width: int = 0
    """E, numbers in an embedding."""
    logit_scale: float = 1.0
    """What cosines of embeddings are multiplied with to be logits."""

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON values, format and kind first."""
        values = {name: getattr(self, name) for name in _keys(self.kind)}
        values["preprocess"] = self.preprocess.to_dict()
        if self.generation is not None:
            values["generation"] = asdict(self.generation)
        values["files"] = {role: asdict(entry) for role, entry in self.files.items()}
        return {"format": FORMAT, "kind": self.kind, **values}

    @classmethod
    def from_dict(cls, raw: Any, where: str) -> "Manifest":
        """The reverse of `to_dict`; raises BundleError, naming `where` and the key, for anything amiss."""
        if not isinstance(raw, dict):
            raise BundleError(f"{where}: expected a JSON object, found {type(raw).__name__}")
        kind = raw.get("kind")
        if raw.get("format") != FORMAT or not isinstance(kind, str) or kind not in FILES:
            found = f"format {raw.get('format')!r}, kind {kind!r}"
            kinds = " or ".join(map(repr, FILES))
            raise BundleError(f"{where}: this vistill reads format {FORMAT} of kind {kinds}, found {found}")
        known = {"format", "kind", *_keys(kind)}
        unknown = sorted(set(raw) - known)
        if unknown:
            raise BundleError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
        tokens = _dict(raw, "special_tokens", where)
        for name in ("bos", "eos", "ask") if kind == ANSWERER else ("bos", "eos"):
            if name not in tokens:
                raise BundleError(f"{where}: special_tokens.{name} is missing")
        for name in tokens:
            _int(tokens, name, f"{where}: special_tokens", 2**31)
        entries = _dict(raw, "files", where)
        roles = FILES[kind]
        if not set(roles) <= set(entries) <= {*roles, *OPTIONAL[kind]}:
            raise BundleError(
                f"{where}: files must be {', '.join(roles)}; found {', '.join(entries) or 'none'}"
            )
        own: dict[str, Any] = {"generation": None}
        if "generation" in ONLY[kind]:
            own["generation"] = _generation(_dict(raw, "generation", where), where)
        else:
            own["width"] = _int(raw, "width", where, MAX_WIDTH, least=1)
            own["logit_scale"] = _logit_scale(raw, where)
        return cls(
            name=_str(raw, "name", where),
            preprocess=_preprocess(_dict(raw, "preprocess", where), where),
            special_tokens=tokens,
            files={role: _file_entry(entries, role, where) for role in entries},
            context=_context(raw, kind, where),
            precision=_str(raw, "precision", where),
            provenance=_dict(raw, "provenance", where),
            scores=_dict(raw, "scores", where),
            licence=_str(raw, "licence", where),
            kind=kind,
            **own,
        )


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: the manifest is read and checked, the other files are there in their stated sizes."""

    folder: Path
    manifest: Manifest

    def read(self, role: str) -> bytes:
        """The bytes of the file of `role`, after its checksum was found right. Raises BundleError."""
        entry = self.manifest.files[role]
        path = self.folder / entry.file
        try:
            with path.open("rb") as file:
                data = file.read(entry.bytes + 1)
        except OSError as error:
            raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
        if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleError(
                f"{path}: does not match its checksum in {MANIFEST}: the file is damaged or altered"
            )
        return data

    def path(self, role: str) -> Path:
        """Where the file of `role` lies."""
        return self.folder / self.manifest.files[role].file

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, after its checksum was found right. Raises BundleError."""
        try:
            return Tokenizer.from_buffer(self.read("tokenizer"))
        except ValueError as error:
            raise BundleError(f"{self.path('tokenizer')}: is no tokenizer: {error}") from error

    def hash(self) -> str:
        """sha256 (hex) over the checksums of the files and the preprocessing: which model this is."""
        entries = sorted((role, entry.sha256) for role, entry in self.manifest.files.items())
        text = json.dumps([self.manifest.preprocess.hash(), entries])
        return hashlib.sha256(text.encode()).hexdigest()


def open_kind(folder: Path | str | None, kind: str) -> Bundle:
    """`open_bundle` of a bundle of one kind, None is the one in the package. Raises BundleError."""
    if folder is None:
        folder = PACKAGED / kind
        if not folder.is_dir():
            raise BundleError(
                f"this installation holds no {kind} ({folder} is missing): name a bundle folder"
            )
    bundle = open_bundle(folder)
    if bundle.manifest.kind != kind:
        raise BundleError(
            f"{folder}: holds a bundle of kind {bundle.manifest.kind!r}; here {kind!r} is needed"
        )
    return bundle


def open_bundle(folder: Path | str) -> Bundle:
    """Read the manifest and check that the other files are there. Raises BundleError, naming the file."""
    folder = Path(folder)
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"{folder}: there is no such bundle folder")
    try:
        with path.open("rb") as file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError as error:
        raise BundleError(f"{folder} is no vistill bundle: it has no {MANIFEST}") from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    if len(text) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path}: more than {MAX_MANIFEST_BYTES:,} bytes")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: is not JSON: {error}") from error
    manifest = Manifest.from_dict(raw, str(path))
    for entry in manifest.files.values():
        file_path = folder / entry.file
        if not file_path.is_file():
            raise BundleError(f"{file_path}: is missing, though {MANIFEST} names it")
        if file_path.stat().st_size != entry.bytes:
            size = file_path.stat().st_size
            raise BundleError(f"{file_path}: has {size:,} bytes, but {MANIFEST} says {entry.bytes:,}")
    return Bundle(folder, manifest)


def validate(folder: Path | str) -> Bundle:
    """`open_bundle`, and every file read and compared with its checksum. Raises BundleError."""
    bundle = open_bundle(folder)
    for role in bundle.manifest.files:
        bundle.read(role)
    return bundle


def write_bundle(folder: Path, manifest: Manifest, files: Mapping[str, Path], card: str) -> Manifest:
    """Write a bundle from the files of each role; it appears at once under its name.

    Returns the manifest with its file entries. Raises BundleError if something lies at `folder` already.
    """
    if folder.exists():
        raise BundleError(f"{folder}: exists already; remove it or choose another name")
    with replacing(folder) as temporary:
        entries = {}
        optional = {role: name for role, name in OPTIONAL[manifest.kind].items() if role in files}
        for role, name in (FILES[manifest.kind] | optional).items():
            shutil.copyfile(files[role], temporary / name)
            entries[role] = file_entry(temporary / name)
        filled = replace(manifest, files=entries)
        (temporary / MANIFEST).write_text(
            json.dumps(filled.to_dict(), indent=2, ensure_ascii=False) + "\n", "utf-8"
        )
        (temporary / CARD).write_text(card, "utf-8")
        validate(temporary)
    return filled


def file_entry(path: Path) -> FileEntry:
    """Name, checksum and size of a file that lies in a bundle folder."""
    with path.open("rb") as file:
        return FileEntry(path.name, hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def _keys(kind: str) -> list[str]:
    """The keys of a manifest of this kind, but for `format` and `kind`, in the order they are written."""
    special = {key for keys in ONLY.values() for key in keys} - set(ONLY[kind])
    return [f.name for f in fields(Manifest) if f.name != "kind" and f.name not in special]


def _context(raw: Mapping[str, Any], kind: str, where: str) -> int:
    if kind == CAPTIONER:  # the first ones did not say
        return _int({"context": 0, **raw}, "context", where, MAX_TOKENS)
    return _int(raw, "context", where, MAX_TOKENS, least=2)  # a text has its two marks, a prompt too


def _logit_scale(raw: Mapping[str, Any], where: str) -> float:
    value = _get(raw, "logit_scale", where)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 < value <= MAX_LOGIT_SCALE:
        raise BundleError(
            f"{where}: logit_scale must be a number above 0, at most {MAX_LOGIT_SCALE:g}, "
            f"found {str(value)[:80]!r}"
        )
    return float(value)


def _file_entry(entries: Mapping[str, Any], role: str, where: str) -> FileEntry:
    raw = _dict(entries, role, f"{where}: files")
    key = f"{where}: files.{role}"
    name, digest = _str(raw, "file", key), _str(raw, "sha256", key)
    if not _NAME.fullmatch(name):
        raise BundleError(
            f"{key}.file: {name!r} is not a plain file name; bundles hold no folders and no links out"
        )
    if not _SHA256.fullmatch(digest):
        raise BundleError(f"{key}.sha256: {digest[:80]!r} is not a sha256 in lower-case hex")
    return FileEntry(name, digest, _int(raw, "bytes", key, MAX_BYTES[role]))


def _preprocess(raw: dict[str, Any], where: str) -> Preprocess:
    try:
        spec = Preprocess.from_dict(raw)
    except (ConfigError, TypeError, ValueError) as error:
        raise BundleError(f"{where}: preprocess: {error}") from error
    if max(spec.size) > MAX_SIDE:
        raise BundleError(f"{where}: preprocess.size={list(spec.size)}: at most {MAX_SIDE} pixels a side")
    return spec


def _generation(raw: dict[str, Any], where: str) -> GenerationConfig:
    kinds = {f.name: f.type for f in fields(GenerationConfig)}
    for name, value in raw.items():
        if name not in kinds:
            raise BundleError(f"{where}: unknown key generation.{name}; known are {', '.join(kinds)}")
        allowed = {int: (int,), float: (int, float), bool: (bool,)}[kinds[name]]  # type: ignore[index]
        if not isinstance(value, allowed) or (isinstance(value, bool) and kinds[name] is not bool):
            raise BundleError(f"{where}: generation.{name}={value!r}: must be {kinds[name].__name__}")  # type: ignore[union-attr]
    try:
        config = GenerationConfig(**raw)
    except ConfigError as error:
        raise BundleError(f"{where}: {error}") from error
    if config.max_new_tokens > MAX_TOKENS or config.num_return > MOST_BEAMS:
        raise BundleError(f"{where}: generation: at most {MAX_TOKENS} tokens and {MOST_BEAMS} captions")
    return config


def _dict(raw: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = _get(raw, key, where)
    if not isinstance(value, dict):
        raise BundleError(f"{where}: {key} must be an object, found {str(value)[:80]!r}")
    return value


def _str(raw: Mapping[str, Any], key: str, where: str) -> str:
    value = _get(raw, key, where)
    if not isinstance(value, str):
        raise BundleError(f"{where}: {key} must be text, found {str(value)[:80]!r}")
    return value


def _int(raw: Mapping[str, Any], key: str, where: str, most: int, least: int = 0) -> int:
    value = _get(raw, key, where)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BundleError(
            f"{where}: {key} must be a whole number from {least} to {most}, found {str(value)[:80]!r}"
        )
    return value


def _get(raw: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in raw:
        raise BundleError(f"{where}: {key} is missing")
    return raw[key]
