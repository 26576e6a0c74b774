"""`python train.py WORDS` is `vistill train WORDS`."""

import sys

from vistill.cli.main import app

if __name__ == "__main__":
    app(["train", *sys.argv[1:]])
