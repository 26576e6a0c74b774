"""One file a data set; `SOURCES` is the one table. A reader is `read(root, **options) -> Iterator[Item]`."""

from collections.abc import Callable, Iterator

from vistill.data.records import Item
from vistill.data.sources import flickr8k

SOURCES: dict[str, Callable[..., Iterator[Item]]] = {
    "flickr8k": flickr8k.read,
}
