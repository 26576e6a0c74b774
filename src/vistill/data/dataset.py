"""The door of this room: build a data set, open one, ask what is in it.

A built folder is what `datasets.load_from_disk` opens as a DatasetDict, with `report.json` beside it.
"""

from vistill.data.build import BuildConfig, build
from vistill.data.store import open_dataset, open_split, read_report, split_names
from vistill.data.summary import info

__all__ = ["BuildConfig", "build", "info", "open_dataset", "open_split", "read_report", "split_names"]
