"""Caption cleaning, long captions and drawn samples: what is changed, what is left alone, what is counted."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistill.data.build import BuildConfig, build
from vistill.data.cleaning import EXAMPLES, LONG_WORDS, RULES, Cleaning
from vistill.data.dataset import info, open_split
from vistill.data.records import tidy
from vistill.data.scan import sample_plan
from vistill.data.store import read_json_lines, write_json_lines
from vistill.errors import ConfigError


def _clean(caption: str, *rules: str) -> str:
    return Cleaning(rules).clean("key", [caption])[0]


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        ("html", "a <b>dog</b> &amp; a cat&#39;s toy", "a dog & a cat's toy"),
        ("html", "H<sub>2</sub>O", "H2O"),
        ("html", "one<br/>two", "one two"),
        ("html", 'a <a href="x>y" class=z>link</a>', "a link"),
        ("urls", "a shop (https://example.org/a?b=1) at night", "a shop at night"),
        ("urls", "www.example.com photo", "photo"),
        ("urls", "photo: jane.doe+x@mail.example.org", "photo:"),
        ("figure_labels", "Figure 4. Nuclear magnetic resonance scan", "Nuclear magnetic resonance scan"),
        ("figure_labels", "Fig 3. Control", "Control"),
        ("figure_labels", "FIG. 1-A: a lesion", "a lesion"),
        ("figure_labels", "Fig. 2a Axial view", "Axial view"),
        ("figure_labels", "Figure S1 (A) Axial view", "(A) Axial view"),
        ("figure_labels", "Figs. 2-5 Nodules", "Nodules"),
        ("citations", "as shown before [12], and [3, 5-7].", "as shown before, and."),
        ("citations", "a lesion (Smith et al., 2018) of the liver", "a lesion of the liver"),
        ("citations", "as described (Cohen and Konak, 1985)", "as described"),
        ("panels", "Brain CT (A) and MR images (B, C) [d-f]", "Brain CT and MR images"),
        ("panels", "(A) – venous phase; (b): arterial phase", "venous phase; arterial phase"),
        ("typography", "the water’s “edge” – a ﬁsh…", 'the water\'s "edge" - a fish...'),
        ("typography", "soft\u00adhyphen zero\u200bwidth", "softhyphen zerowidth"),
        ("spacing", "a dog 's toy ( red ) , is n't it ?", "a dog's toy (red), isn't it?"),
        ("lowercase", "A Dog in ÖDENSE", "a dog in ödense"),
    ],
)
def test_what_a_rule_changes(rule: str, before: str, after: str) -> None:
    assert _clean(before, rule) == after


@pytest.mark.parametrize(
    ("rule", "caption"),
    [
        ("html", "p < 0.05 and x > 3 at a <b and c> d"),
        ("html", "an at&t phone"),
        ("urls", "e.g. a dog at 3.5x, T1.weighted"),
        ("figure_labels", "Figure skating on ice"),
        ("figure_labels", "A figure 4. floor"),
        ("figure_labels", "Figure 8 knot tied by a climber"),
        ("figure_labels", "fig tree"),
        ("figure_labels", "Figs. 2-5 show nodules"),
        ("citations", "in (May 2018) at (Springfield)"),
        ("panels", "a lesion (arrow), vitamin (B12), plan (ab)"),
        ("typography", "naïve café, 3 × 4 cm, 37 °C"),
        ("spacing", "at 3 .5 x, 5 : 30, a blue & black board"),
    ],
)
def test_what_a_rule_leaves_alone(rule: str, caption: str) -> None:
    assert _clean(caption, rule) == caption


def test_counts_examples_and_the_order_of_rules() -> None:
    cleaning = Cleaning(("lowercase", "figure_labels"))  # the order in which they are named has no effect
    captions = [f"Figure {n}. A dog" for n in range(5)] + ["a  dog", "A dog"]
    assert cleaning.clean("k", captions) == ["a dog"] * 7
    report = cleaning.report()
    assert list(report) == ["figure_labels", "lowercase"]
    assert (report["figure_labels"]["captions"], report["lowercase"]["captions"]) == (5, 6)
    assert report["figure_labels"]["examples"] == [
        {"key": "k", "before": f"Figure {n}. A dog", "after": "A dog"} for n in range(EXAMPLES)
    ]
    assert report["lowercase"]["why"] == RULES["lowercase"].why


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(ConfigError, match=r"clean: no rule 'html5'; there are html, urls, figure_labels"):
        BuildConfig(clean=("html", "html5"))


@given(st.text(), st.sampled_from(sorted(RULES)))
def test_a_rule_gives_one_tidy_line_and_counts_exactly_the_changes(caption: str, rule: str) -> None:
    cleaning = Cleaning((rule,))
    (after,) = cleaning.clean("key", [caption])
    assert after == tidy(after)
    assert cleaning.counts.get(rule, 0) == (after != tidy(caption))


@given(
    st.text(alphabet="aA (b)[1,]2–.:<>&;'\"@h/=t", max_size=60), st.sampled_from(["typography", "lowercase"])
)
def test_a_second_time_changes_nothing(caption: str, rule: str) -> None:
    once = _clean(caption, rule)
    assert _clean(once, rule) == once


def test_hostile_captions_come_to_an_end() -> None:
    """They take a second together; a single pattern that goes back and forth would take many minutes."""
    parts = ["(a,", "a@", "a.", "<a b=", '<a b="', "<a b ", "[1,", "Fig. 1-", "( ", "&#"]
    code = f"""
from vistill.data.cleaning import RULES, Cleaning
for part in {parts!r}:
    Cleaning(tuple(RULES)).clean("key", [part * 20_000])
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)


# In a build


@pytest.fixture
def figures(tmp_path: Path, photo) -> Path:
    """A folder of 12 captioned pictures, four of them for dev; one caption is long, one is only a label."""
    root = tmp_path / "figures"
    root.mkdir()
    rows = []
    for number in range(12):
        (root / f"{number}.jpg").write_bytes(photo(number))
        caption = f"Figure {number}. A scan &amp; a dog number {number}"
        rows.append(
            {"file_name": f"{number}.jpg", "text": caption, "split": "dev" if number < 4 else "train"}
        )
    rows.append({"file_name": "5.jpg", "text": "Figure 5"})
    rows.append({"file_name": "6.jpg", "text": " ".join(["word"] * (LONG_WORDS + 7))})
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def test_a_build_reports_what_it_cleaned(figures: Path, tmp_path: Path) -> None:
    report = build("folder", figures, tmp_path / "out", BuildConfig(clean=("figure_labels", "html")))
    counts = {rule: found["captions"] for rule, found in report["cleaned"].items()}
    assert counts == {"html": 12, "figure_labels": 13}
    assert report["cleaned"]["html"]["examples"][0]["after"] == "Figure 0. A scan & a dog number 0"
    assert report["dropped"]["counts"] == {"caption_empty": 1}, "a caption that was only a label"
    captions = [text for texts in open_split(tmp_path / "out", "train")["captions"] for text in texts]
    assert "A scan & a dog number 5" in captions
    assert not [text for text in captions if re.search("Figure|&amp;", text)]
    assert report["long_captions"] == {
        "words": LONG_WORDS,
        "captions": {"train": 1},
        "longest": [{"key": "6.jpg", "split": "train", "words": LONG_WORDS + 7}],
    }
    summary = info(tmp_path / "out")
    assert summary["cleaned"] == counts
    assert summary["long_captions"]["captions"] == {"train": 1, "dev": 0}
    assert summary["long_captions"]["longest"] == LONG_WORDS + 7
    assert info(tmp_path / "out", long_words=5)["long_captions"]["captions"] == {"train": 9, "dev": 4}


def test_without_rules_nothing_is_changed(figures: Path, tmp_path: Path) -> None:
    report = build("folder", figures, tmp_path / "out")
    assert (report["cleaned"], report["sampled"]) == (None, None)
    assert open_split(tmp_path / "out", "dev")["captions"][0] == ["Figure 0. A scan &amp; a dog number 0"]


def test_a_sample_is_seeded_nested_and_of_all_splits(figures: Path, tmp_path: Path) -> None:
    def keys(name: str, count: int, seed: int | None = None) -> set[str]:
        config = BuildConfig(num_samples=count, sample_seed=seed)
        report = build("folder", figures, tmp_path / name, config)
        assert report["sampled"] == {"pictures": 12, "kept": min(count, 12)}
        return {key for split in report["splits"] for key in open_split(tmp_path / name, split)["key"]}

    six, nine = keys("six", 6), keys("nine", 9)
    assert (len(six), len(nine)) == (6, 9)
    assert six < nine
    assert six == keys("zero", 6, 0)
    assert any(six != keys(f"seed{seed}", 6, seed) for seed in (1, 2))
    assert keys("all", 100) == {f"{number}.jpg" for number in range(12)}


def test_a_sample_does_not_prefer_a_drawn_split(figures: Path, tmp_path: Path) -> None:
    (figures / "metadata.jsonl").unlink()
    config = BuildConfig(
        allow_uncaptioned=True, num_samples=6, near_duplicates=None, options={"dev_fraction": 0.5, "seed": 0}
    )
    report = build("folder", figures, tmp_path / "out", config)
    assert {name: split["pictures"] for name, split in report["splits"].items()} != {"dev": 6}


def test_questions_of_a_picture_are_drawn_together(tmp_path: Path) -> None:
    rows = [{"key": f"{n}#{q}", "path": f"{n}.jpg"} for n in range(20) for q in range(3)]
    plan = tmp_path / "plan.jsonl"
    write_json_lines(plan, [{"dropped": "x", "reason": "bad_row", "detail": ""}, *rows])
    assert sample_plan(plan, 7, 0) == {"pictures": 20, "kept": 7}
    left = list(read_json_lines(plan))
    assert left[0]["dropped"] == "x"
    assert [row for row in rows if row["path"] in {row["path"] for row in left[1:]}] == left[1:]
    assert len(left) == 1 + 7 * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be 1 or more"),
        ({"sample_seed": 1}, "nothing without num_samples"),
    ],
)
def test_sample_settings_are_checked(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BuildConfig(**options)


def test_a_data_set_built_before_there_was_cleaning_is_still_known(figures: Path, tmp_path: Path) -> None:
    report = build("folder", figures, tmp_path / "out")
    state = json.loads((tmp_path / "out" / "build.json").read_text())
    for name in ("clean", "num_samples", "sample_seed"):
        del state["arguments"][name]
    del state["cleaned"], state["sampled"]
    (tmp_path / "out" / "build.json").write_text(json.dumps(state))
    assert build("folder", figures, tmp_path / "out") == report


@pytest.mark.data
def test_real_captions_of_rsicd_and_flickr8k(data_root: Path) -> None:
    rsicd = json.loads((data_root / "rsicd" / "dataset_rsicd.json").read_text("utf-8"))
    captions = [text["raw"] for image in rsicd["images"] for text in image["sentences"]]
    cleaning = Cleaning(("typography", "spacing", "figure_labels", "html", "urls", "citations", "panels"))
    cleaned = cleaning.clean("rsicd", captions)
    assert cleaning.counts == {"typography": 2, "spacing": len(captions) - 1}  # one is only " ."
    assert not [text for text in cleaned if text.endswith(" .")]
    tokens = data_root / "flickr8k" / "Flickr8k_text" / "Flickr8k.token.txt"
    captions = [line.split("\t", 1)[1] for line in tokens.read_text("utf-8").splitlines()]
    cleaning = Cleaning(tuple(RULES))
    cleaned = cleaning.clean("flickr8k", captions)
    assert cleaning.counts.get("figure_labels", 0) == cleaning.counts.get("urls", 0) == 0
    assert not [text for text in cleaned if text.endswith(" .") or " 's " in text]
