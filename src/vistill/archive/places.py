"""Where the index of a folder of photos lies if nobody says: with the user's data, not among the photos."""

import hashlib
import os
import sys
from pathlib import Path

from vistill.archive.catalogue import FILE
from vistill.errors import ConfigError
from vistill.runtime.image import printable


def indexes_folder() -> Path:
    """The folder of all indexes of this user: in XDG_DATA_HOME, Application Support or LOCALAPPDATA.

    Not in a cache folder: an index is a night's work, and caches are swept.
    """
    if sys.platform == "win32":
        data = os.environ.get("LOCALAPPDATA", str(Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        data = str(Path.home() / "Library" / "Application Support")
    else:
        data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(data) / "vistill" / "indexes"


def default_index(root: Path) -> Path:
    """The index of the photos in `root`: one for each folder, by its real path."""
    place = os.path.realpath(root)
    digest = hashlib.sha256(os.fsencode(place)).hexdigest()[:12]
    return indexes_folder() / f"{os.path.basename(place) or 'root'}-{digest}"


def find_index(named: Path | None) -> Path:
    """The index that is meant: an index folder, a folder of photos that has one, or the only one there is.

    Raises ConfigError if there is none, or if several could be meant.
    """
    if named is not None:
        if (named / FILE).is_file():
            return named
        if (default_index(named) / FILE).is_file():
            return default_index(named)
        name = printable(named)
        raise ConfigError(f"--index {name}: neither an index nor a folder that has one: vistill index {name}")
    found = sorted(path.parent for path in indexes_folder().glob(f"*/{FILE}"))
    if not found:
        raise ConfigError("there is no index yet: vistill index DIR")
    if len(found) > 1:
        names = "".join(f"\n  {printable(path)}" for path in found)
        raise ConfigError(f"there are several indexes, name one with --index (or its photos):{names}")
    return found[0]
