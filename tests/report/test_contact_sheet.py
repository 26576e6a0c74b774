"""A contact sheet is one file that shows the pictures it was given, whatever they are called."""

import re
from pathlib import Path

from PIL import Image

from vistill.report.contact_sheet import contact_sheet
from vistill.report.page import POLICY


def test_pictures_in_order_and_nothing_from_outside(root: Path, tmp_path: Path) -> None:
    odd = tmp_path / "<script>&\n.png"
    Image.new("L", (900, 30), 7).save(odd)
    hits = [(str(root / "samples" / "cat.jpg"), 0.5), (str(odd), 0.25), (str(tmp_path / "gone.jpg"), 0.125)]
    text = contact_sheet('dogs & "cats" <b>', hits)
    assert [float(score) for score in re.findall(r"score <b>([\d.]+)</b>", text)] == [0.5, 0.25, 0.125]
    assert text.count('src="data:image/jpeg;base64,') == 2
    assert text.count('<div class="none">missing</div>') == 1
    assert "<script>" not in text
    assert "dogs &amp; &quot;cats&quot; &lt;b&gt;" in text
    assert POLICY in text
    assert len(text) < 60_000


def test_nothing_found() -> None:
    assert "no photos" in contact_sheet("a dog", [])
