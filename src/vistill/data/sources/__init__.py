"""One file a data set; `SOURCES` is the one table. A reader is `read(root, **options) -> Iterator[Item]`."""

from collections.abc import Callable, Iterator

from vistill.data.records import Item
from vistill.data.sources import (
    coco,
    conceptual_captions,
    daquar,
    diffusiondb,
    flickr8k,
    flickr30k,
    folder,
    karpathy,
    medicat,
    parquet,
    roco,
    table,
    tsv,
    vqa_rad,
    vqa_v2,
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
    "conceptual_captions": conceptual_captions.read,
    "tsv": tsv.read,
    "vqa_v2": vqa_v2.read,
    "daquar": daquar.read,
    "vqa_rad": vqa_rad.read,
}
