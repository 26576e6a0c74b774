"""Give an exported captioner's bundle a consensus head: `python scripts/add_consensus.py BUNDLE DATA OUT`.

What `vistill export --consensus train` does at the end of an export, for a bundle that is there already. Its
graphs stay byte for byte as they are; --num-beams may change how many candidates the head chooses from.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

from vistill.export.consensus import fit_consensus, fitted_on
from vistill.runtime.bundle import CAPTIONER, CARD, open_kind, write_bundle


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path, help="built data set")
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", default="train", help="whose pictures and captions it is fitted on")
    parser.add_argument("--num-beams", type=int, help="beams of the bundle; else as they are")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    bundle = open_kind(args.bundle, CAPTIONER)
    head = fit_consensus(args.bundle, args.data, args.split, args.threads)
    about = {**bundle.manifest.provenance, "consensus": fitted_on(args.data, args.split)}
    manifest = dataclasses.replace(bundle.manifest, provenance=about)
    if args.num_beams:
        search = dataclasses.replace(manifest.generation, num_beams=args.num_beams)
        manifest = dataclasses.replace(manifest, generation=search)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "consensus.npz"
        file.write_bytes(head.to_bytes())
        files = {role: bundle.path(role) for role in manifest.files if role != "consensus"}
        card = (args.bundle / CARD).read_text("utf-8")
        write_bundle(args.out, manifest, files | {"consensus": file}, card)


if __name__ == "__main__":
    main()
