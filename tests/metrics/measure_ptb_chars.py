"""Measure the character classes in src/vistill/metrics/ptb_chars.py with the Java tool and print them.

python -m tests.metrics.measure_ptb_chars
"""

import textwrap
import unicodedata
from collections.abc import Iterable

from tests.metrics import java_ptb

FORMS = ("{0}", "q {0} q", "a{0}b", "{0}b", "a{0}", "1{0}2", "{0}{0}")
LINE_BREAKS = {0x85, 0x2028, 0x2029}
LETTER_LIKE = ("@", "q @ q", "a@b", "@b", "a@", "1@2", "@@")
MARK = ("@", "q @ q", "a@b", "@b", "a@", "1 @2", "@@")
SYMBOL = ("@", "q @ q", "a @ b", "@ b", "a @", "1 @ 2", "@ @")


def measure() -> dict[str, str]:
    """Class name -> ranges, for all of the basic plane but control characters and surrogates."""
    points = [c for c in range(0x20, 0x10000) if not 0xD800 <= c <= 0xDFFF and c not in LINE_BREAKS]
    answers = zip(*(java_ptb.raw([form.format(chr(c)) for c in points]) for form in FORMS), strict=True)
    classes: dict[str, list[int]] = {"LETTER": [], "DIGIT": [], "MARK": [], "SYMBOL": []}
    for point, answer in zip(points, answers, strict=True):
        char = chr(point)
        signature = tuple(line.replace(char, "@") for line in answer)
        # the forms themselves are made of these
        if signature == LETTER_LIKE or char in "abq12":
            classes["DIGIT" if unicodedata.category(char) == "Nd" else "LETTER"].append(point)
        elif signature == MARK:
            classes["MARK"].append(point)
        elif signature == SYMBOL:
            classes["SYMBOL"].append(point)
    return {name: ranges(members) for name, members in classes.items()}


def ranges(points: Iterable[int]) -> str:
    """Sorted code points as hexadecimal ranges: "41-5a 61-7a"."""
    found: list[list[int]] = []
    for point in points:
        if found and point == found[-1][1] + 1:
            found[-1][1] = point
        else:
            found.append([point, point])
    return " ".join(f"{low:x}" if low == high else f"{low:x}-{high:x}" for low, high in found)


if __name__ == "__main__":
    for name, text in measure().items():
        print(f"{name} = (")
        for line in textwrap.wrap(text, 100):
            print(f'    "{line} "')
        print(")")
