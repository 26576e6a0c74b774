"""Write docs/finetuning-notebook.md: notebooks/finetune.ipynb to be read without a notebook."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "finetune.ipynb"
PAGE = ROOT / "docs" / "finetuning-notebook.md"


def to_markdown(notebook: Path) -> str:
    """Texts as they are, code in fences."""
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"]).replace("](../docs/", "](")
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    parts.insert(1, f"This page is [the notebook](../notebooks/{notebook.name}), without what it prints.")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(to_markdown(NOTEBOOK), encoding="utf-8")
