"""Count the texts on which the tokeniser and the Java tool differ; prints the table of docs/metrics.md.

VISTILL_DATA=... python -m tests.metrics.compare_ptb [--random 100000]
"""

import argparse
import os
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tests.metrics import corpora, java_ptb, make_ptb_golden
from tests.metrics.measure_ptb_chars import FORMS, LINE_BREAKS

from vistill.metrics.ptb import tokenize

ALPHABETS = {
    "digits": "0123456789.,/-+$%: ()'\"axs",
    "quotation marks": "ab '\"`’‘“”'.-,n t s",
    "brackets and signs": "ab1 <>=:;()-_^~@#&*|\\/[]{}+.!?DPo",
    "letters": "abeIsndltm.'-/&_,’ ",
    "control characters and blanks": "a1.-'\x01\x02\x1f\x7f\t\xa0\u2003\u200b\ufeff ",
}


def package_prose() -> list[str]:
    """Lines of the README, change log and licence files of the installed packages."""
    folder = Path(sysconfig.get_path("purelib"))
    files = (p for e in ("md", "rst", "txt") for p in folder.glob(f"**/*.{e}") if p.stat().st_size < 2e6)
    lines: set[str] = set()
    for file in (*files, *folder.glob("**/METADATA"), *folder.glob("**/LICENSE*")):
        if file.is_file():
            lines |= set(file.read_bytes().decode("utf-8", errors="ignore").splitlines())
    kept = sorted(line.strip() for line in lines if 20 < len(line.strip()) < 400)
    return random.Random(0).sample(kept, min(60_000, len(kept)))


def every_character() -> Iterator[str]:
    for point in range(0x20, 0x10000):
        if not 0xD800 <= point <= 0xDFFF and point not in LINE_BREAKS:
            yield from (form.format(chr(point)) for form in FORMS)


def any_characters(rng: random.Random) -> str:
    """Short string, half of plain characters and half of any."""
    chars = []
    for _ in range(rng.randint(1, 14)):
        point = rng.randrange(0x80, rng.choice([0x250, 0x3000, 0x1FFFF]))
        odd = point in LINE_BREAKS or 0xD800 <= point <= 0xDFFF
        chars.append(rng.choice("ab1.- '") if odd or rng.random() < 0.5 else chr(point))
    return "".join(chars)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", type=int, default=100_000, help="random texts of each kind")
    count = parser.parse_args().random
    rng = random.Random(2)
    texts: dict[str, list[str]] = {}
    if "VISTILL_DATA" in os.environ:
        root = Path(os.environ["VISTILL_DATA"])
        texts |= {name: read(root) for name, read in corpora.TEXTS.items()}
    texts["lines of README, change log and licence files of installed packages"] = package_prose()
    texts["every code point of the basic plane, in seven surroundings"] = list(every_character())
    texts["random: words, abbreviations, addresses, marks, odd Unicode"] = [
        make_ptb_golden.random_text(rng) for _ in range(count)
    ]
    for name, alphabet in ALPHABETS.items():
        texts[f"random: {name}"] = [
            "".join(rng.choices(alphabet, k=rng.randint(1, 14))) for _ in range(count)
        ]
    texts["random: any characters"] = [any_characters(rng) for _ in range(count)]
    print("| texts | number | differing |\n|---|---|---|")
    for name, wanted in texts.items():
        found = java_ptb.tokenize(wanted)
        differing = [t for t, java in zip(wanted, found, strict=True) if " ".join(tokenize(t)) != java]
        print(f"| {name} | {len(wanted):,} | {len(differing):,} |", flush=True)
        for text in differing[:5]:
            print(f"    {text!r}", flush=True)


if __name__ == "__main__":
    main()
