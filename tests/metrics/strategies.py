"""Small worlds of captions for property tests: few words, so that n-grams repeat."""

from hypothesis import strategies as st

WORDS = ("a", "dog", "runs", "on", "red", "grass", "man", "<eos>", "3\u00a01/2")

caption = st.lists(st.sampled_from(WORDS), max_size=9)
some_caption = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9)


@st.composite
def corpora(draw: st.DrawFn, filled: bool = False) -> tuple[dict[str, list[str]], dict[str, list[list[str]]]]:
    """Candidates and references by picture; `filled` leaves out empty captions."""
    text = some_caption if filled else caption
    count = draw(st.integers(1, 5))
    candidates = {str(i): draw(text) for i in range(count)}
    references = {key: draw(st.lists(text, min_size=1, max_size=3)) for key in candidates}
    return candidates, references
