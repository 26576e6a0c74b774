"""The metrics once more, as slow as their papers write them: an independent reference for tests."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

Tokens = Sequence[str]
Gram = tuple[str, ...]
Documents = list[set[Gram]]


def grams(tokens: Tokens, order: int) -> Counter[Gram]:
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))


def cider_d(
    candidate: Tokens,
    references: Sequence[Tokens],
    corpus: Mapping[str, Sequence[Tokens]],
    plain: bool = False,
) -> float:
    """CIDEr-D of one caption, equations 2 to 4 of arXiv 1411.5726, with idf counted on `corpus`."""
    total = 0.0
    for order in range(1, 5):
        documents = [{gram for text in texts for gram in grams(text, order)} for texts in corpus.values()]

        def vector(tokens: Tokens, order: int = order, documents: Documents = documents) -> dict[Gram, float]:
            log = math.log(len(documents))
            idf = {g: log - math.log(max(1, sum(g in d for d in documents))) for g in grams(tokens, order)}
            return {gram: count * idf[gram] for gram, count in grams(tokens, order).items()}

        ours = vector(candidate)
        for reference in references:
            theirs = vector(reference)
            length = math.hypot(*ours.values()) * math.hypot(*theirs.values())
            common = ours.keys() & theirs.keys()
            product = sum((ours[g] if plain else min(ours[g], theirs[g])) * theirs[g] for g in common)
            penalty = 1.0 if plain else math.exp(-((len(candidate) - len(reference)) ** 2) / (2 * 6**2))
            total += 10 / 4 / len(references) * penalty * (product / length if length else 0.0)
    return total


def common_subsequence(a: Tokens, b: Tokens) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def rouge_l(candidate: Tokens, references: Sequence[Tokens]) -> float:
    precision = max(common_subsequence(candidate, r) / len(candidate) for r in references)
    recall = max(common_subsequence(candidate, r) / len(r) for r in references)
    if not precision or not recall:
        return 0.0
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)


def bleu(pairs: Sequence[tuple[Tokens, Sequence[Tokens]]]) -> list[float]:
    """BLEU-1 to BLEU-4 of a corpus; 0 where no n-gram is right."""
    ours = sum(len(candidate) for candidate, _ in pairs)
    theirs = sum(min((abs(len(r) - len(c)), len(r)) for r in references)[1] for c, references in pairs)
    penalty = min(1.0, math.exp(1 - theirs / ours)) if ours else 0.0
    scores, product = [], 1.0
    for order in range(1, 5):
        right = guessed = 0
        for candidate, references in pairs:
            most: Counter[Gram] = Counter()
            for reference in references:
                most |= grams(reference, order)
            found = grams(candidate, order)
            right += (found & most).total()
            guessed += found.total()
        product *= right / guessed if guessed else 0.0
        scores.append(penalty * product ** (1 / order))
    return scores
