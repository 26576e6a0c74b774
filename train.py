"""`python train.py WORDS` is `vistill train WORDS`."""

import sys

from vistill.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
