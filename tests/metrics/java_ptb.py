"""The Java tokeniser as pycocoevalcap calls it: the reference of `vistill.metrics.ptb`."""

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

WHY_NOT = "the Java tokeniser needs `java` on the PATH and pycocoevalcap"


def available() -> bool:
    return shutil.which("java") is not None and importlib.util.find_spec("pycocoevalcap") is not None


def tokenize(texts: Sequence[str]) -> list[str]:
    """Tokens of each text, joined by spaces.

    A caption "x" stands after each text: some rules of the Java tool look into the next line, so that the
    tokens of a caption would depend on the caption after it.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    captions = [{"caption": line} for text in texts for line in (text, "x")]
    found: dict[str, list[str]] = PTBTokenizer().tokenize({"all": captions})
    tokens = found["all"]
    assert tokens[1::2] == ["x"] * len(texts), "a text holds a line break that the Java tool counts as one"
    return tokens[::2]


def raw(texts: Sequence[str]) -> list[str]:
    """One line of the Java tool for each text, with its case, before punctuation is removed."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        file.writelines(f"{text}\n" for text in texts)
        file.flush()
        command = [
            "java",
            "-cp",
            str(jar),
            "edu.stanford.nlp.process.PTBTokenizer",
            "-preserveLines",
            file.name,
        ]
        done = subprocess.run(command, capture_output=True, check=True)
    lines = done.stdout.decode().split("\n")[: len(texts)]
    assert len(lines) == len(texts)
    return lines
