"""Flickr8k beside pictures without captions, as one folder that `vistill data build folder` reads.

    python scripts/unlabelled_pictures.py FLICKR8K MORE OUT

OUT gets links to the pictures of both and metadata.jsonl: train and dev keep their captions; the pictures of
no split and those of the folder MORE come without any, in the split `extra`.
"""

import json
import sys
from pathlib import Path

from vistill.data.records import Entry
from vistill.data.sources.flickr8k import read


def main(flickr8k: Path, more: Path, out: Path) -> None:
    (out / "more").mkdir(parents=True, exist_ok=True)
    rows = []
    for item in read(flickr8k):
        if isinstance(item, Entry):
            link(out / item.key, item.path)
            captions = [] if item.split == "extra" else list(item.captions)
            rows.append({"file_name": item.key, "captions": captions, "split": item.split})
    for path in sorted(more.iterdir()):
        link(out / "more" / path.name, path)
        rows.append({"file_name": f"more/{path.name}", "captions": [], "split": "extra"})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "metadata.jsonl").write_text(lines, "utf-8")
    print(f"{out}: {len(rows)} pictures")


def link(name: Path, target: Path) -> None:
    if not name.is_symlink():
        name.symlink_to(target.resolve())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
