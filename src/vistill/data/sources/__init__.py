"""One file a data set; `SOURCES` is the one table. A reader is `read(root, **options) -> Iterator[Item]`."""

from collections.abc import Callable, Iterator

from vistill.data.records import Item
from vistill.data.sources import (
    coco,
    diffusiondb,
    flickr8k,
    flickr30k,
    folder,
    karpathy,
    medicat,
    parquet,
    roco,
    table,
    webdataset,
)

SOURCES: dict[str, Callable[..., Iterator[Item]]] = {
    "flickr8k": flickr8k.read,
    "flickr30k": flickr30k.read,
    "folder": folder.read,
    "coco": coco.read,
    "karpathy": karpathy.read,
    "webdataset": webdataset.read,
    "parquet": parquet.read,
    "diffusiondb": diffusiondb.read,
    "table": table.read,
    "medicat": medicat.read,
    "roco": roco.read,
}
