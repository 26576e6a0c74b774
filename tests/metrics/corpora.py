"""Real captions and questions, as texts, out of the folder that VISTILL_DATA names."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path


def flickr8k(root: Path) -> dict[str, list[str]]:
    """Captions by photo, in the order of the token file; the stray key of the official file is one too."""
    captions: dict[str, list[str]] = {}
    text = (root / "flickr8k" / "Flickr8k_text" / "Flickr8k.token.txt").read_bytes().decode()
    for line in text.rstrip("\n").split("\n"):
        name, caption = line.split("\t", 1)
        captions.setdefault(name.rpartition("#")[0], []).append(caption)
    return captions


def flickr8k_texts(root: Path) -> list[str]:
    return [text for texts in flickr8k(root).values() for text in texts]


def rsicd_texts(root: Path) -> list[str]:
    images = json.loads((root / "rsicd" / "dataset_rsicd.json").read_bytes())["images"]
    return [sentence["raw"] for image in images for sentence in image["sentences"]]


def cc3m_texts(root: Path) -> list[str]:
    table = (root / "cc3m_validation" / "Validation_GCC-1.1.0-Validation.tsv").read_bytes().decode()
    return [line.split("\t")[0] for line in table.rstrip("\n").split("\n")]


def vqa_questions(root: Path) -> list[str]:
    parts = sorted((root / "vqa_v2_text").glob("vqa_questions_*.gzip"))
    loaded = [json.loads(gzip.decompress(part.read_bytes())) for part in parts]
    return [entry["question"] for part in loaded for entry in part["questions"]]


def vqa_answers(root: Path) -> list[str]:
    """The different answers, as people typed them."""
    parts = sorted((root / "vqa_v2_text").glob("vqa_annotatons_*.gzip"))
    loaded = [json.loads(gzip.decompress(part.read_bytes())) for part in parts]
    entries = [entry for part in loaded for entry in part.get("annotations", [])]
    return sorted({answer["answer"] for entry in entries for answer in entry.get("answers", [])})


TEXTS: dict[str, Callable[[Path], list[str]]] = {
    "flickr8k captions": flickr8k_texts,
    "rsicd captions": rsicd_texts,
    "cc3m validation captions": cc3m_texts,
    "vqa v2 questions": vqa_questions,
    "vqa v2 answers": vqa_answers,
}
