"""Fit the consensus head of a captioner's bundle on the captions of a built data set, in closed form."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vistill.data.dataset import open_split, read_report
from vistill.errors import ConfigError
from vistill.runtime.consensus import (
    UNSEEN,
    ConsensusHead,
    fourier,
    hashed,
    n_grams,
    projected,
    words,
)
from vistill.runtime.pipelines import Captioner

KEPT = 256
"""P, principal components of the features."""
RANDOM = 4096
"""D, random Fourier features; the kernel itself, with all training pictures, has 0.5 CIDEr more."""
GAMMA = 1.0
"""Of the kernel exp(-GAMMA * |x - y|^2) of unit vectors."""
RIDGE = 1.0
REDUCED = 256
"""R, numbers that stand for what people say."""
ROWS = 2**15
"""H, rows that n-grams are hashed into."""
TABLE = 2**17
"""I, entries of the table of idf."""
FEWEST = 2
"""Pictures that an n-gram must be said of."""

Floats = NDArray[np.float32]


def fit_consensus(
    bundle: Path,
    data: Path,
    split: str,
    threads: int | None = None,
    report: Callable[[int, int], object] = lambda done, total: None,
) -> ConsensusHead:
    """The head of a captioner's bundle for the pictures of a split that have captions.

    report: called with the pictures that are done and their number. Raises ConfigError if there are too few.
    """
    table = open_split(data, split)
    captions = [[words(text) for text in texts] for texts in table["captions"]]
    rows = [row for row, texts in enumerate(captions) if any(texts)]
    if len(rows) < FEWEST:
        raise ConfigError(
            f"--consensus {split}: {len(rows)} pictures of it have captions, {FEWEST} are needed"
        )
    captioner, features = Captioner(bundle, threads=threads), []
    images, batch = (table[row]["image"] for row in rows), captioner.batch_size
    with ThreadPoolExecutor(captioner.threads) as pool:
        while some := list(islice(images, batch)):
            features.append(captioner.features(some, pool))
            report(min(len(features) * batch, len(rows)), len(rows))
    return fit(np.concatenate(features), [captions[row] for row in rows])


def fitted_on(data: Path, split: str) -> dict[str, Any]:
    """What a manifest's provenance says of the head."""
    return {
        "data": data.resolve().name,
        "split": split,
        "fingerprint": read_report(data)["splits"][split]["fingerprint"],
    }


def fit(features: Floats, captions: Sequence[Sequence[Sequence[str]]], seed: int = 0) -> ConsensusHead:
    """Ridge regression on random Fourier features, reduced to the REDUCED directions that predict most.

    features [M, F]; captions: the words of each caption of each picture. Reduced-rank regression: Izenman
    1975; the directions are those of the fitted values.
    """
    mean, projection = _principal(features)
    draw = np.random.default_rng(seed)
    drawn = draw.standard_normal((projection.shape[1], RANDOM)) * math.sqrt(2 * GAMMA)
    frequencies = drawn.astype(np.float16)  # as the bundle keeps them
    phases = draw.uniform(0, 2 * math.pi, RANDOM).astype(np.float32)
    seen = projected(features, mean, projection.astype(np.float32))
    x = fourier(seen, frequencies.astype(np.float32), phases)  # [M, D + 1]
    idf, most_idf = _idf(captions)
    covariance = x.T.astype(np.float64) @ x + RIDGE * np.eye(x.shape[1])
    root = np.linalg.cholesky(covariance)  # lower: root @ root.T
    products = _products(x, captions, idf, most_idf)  # [D + 1, H]
    whitened = np.linalg.solve(root, products).astype(np.float32)
    _, directions = np.linalg.eigh((whitened @ whitened.T).astype(np.float64))
    directions = directions[:, -REDUCED:]
    weights, weight_scale = _int8(np.linalg.solve(root.T, directions))
    grams, gram_scale = _int8_in_steps(whitened.T @ directions.astype(np.float32))
    return ConsensusHead(
        mean, projection, frequencies, phases, weights, weight_scale, grams, gram_scale, idf,
        np.array([most_idf], np.float32),
    )  # fmt: skip


def _principal(features: Floats) -> tuple[Floats, NDArray[np.float16]]:
    """The mean [F] of features [M, F] and their first principal components, once standardised [F, P]."""
    mean, deviation = features.mean(0), features.std(0)
    # What hardly ever varies would be all that float16 can tell beside it.
    deviation = np.maximum(deviation, 0.01 * deviation.mean()) + np.float32(1e-6)
    z = ((features - mean) / deviation).astype(np.float64)
    _, directions = np.linalg.eigh(z.T @ z)
    projection = directions[:, -min(KEPT, len(features) - 1) :] / deviation[:, None]
    return mean, (projection / np.abs(projection).max()).astype(np.float16)


def _idf(captions: Sequence[Sequence[Sequence[str]]]) -> tuple[NDArray[np.uint8], float]:
    """The table of idf, log(pictures / pictures with the n-gram), and its largest value, of one picture."""
    pictures: Counter[int] = Counter()
    for texts in captions:
        pictures.update({key for text in texts for counts in n_grams(text) for key in counts})
    most = math.log(len(captions))
    known = [(key, count) for key, count in pictures.items() if count >= FEWEST]
    keys = np.array([key for key, _ in known], np.int64) & (TABLE - 1)
    steps = np.rint((most - np.log([count for _, count in known])) / most * (UNSEEN - 1)) if most else keys
    table = np.full(TABLE, UNSEEN, np.uint8)
    np.minimum.at(table, keys, steps.astype(np.uint8))  # of two in one place the more common one
    return table, most


def _products(
    x: Floats, captions: Sequence[Sequence[Sequence[str]]], idf: NDArray[np.uint8], most_idf: float
) -> Floats:
    """x^T T [D + 1, H], where row m of T [M, H] is the mean vector of the captions of picture m."""
    out = np.zeros((ROWS, x.shape[1]), np.float32)
    for features, texts in zip(x, captions, strict=True):
        target: Counter[int] = Counter()
        for text in texts:
            places, weights = hashed(text, idf, most_idf, ROWS)
            for place, weight in zip(places.tolist(), weights.tolist(), strict=True):
                target[place] += weight / len(texts)
        places = np.fromiter(target, np.int64, len(target))
        out[places] += np.outer(np.fromiter(target.values(), np.float32, len(target)), features)
    return np.ascontiguousarray(out.T)


def _int8(table: NDArray[Any]) -> tuple[NDArray[np.int8], Floats]:
    """A table [.., R] as int8 with a scale for each column."""
    scale = np.maximum(np.abs(table).max(axis=0) / 127, 1e-12).astype(np.float32)
    return np.rint(table / scale).astype(np.int8), scale


def _int8_in_steps(table: NDArray[Any]) -> tuple[NDArray[np.int8], Floats]:
    """A table [.., R] as int8 in steps that are the same everywhere, the largest values cut to half.

    What counts for little becomes 0 and takes no room in the file; scales of the columns would keep noise.
    """
    step = np.float32(max(np.abs(table).max() / 254, 1e-12))
    return np.clip(np.rint(table / step), -127, 127).astype(np.int8), np.full(
        table.shape[1], step, np.float32
    )
