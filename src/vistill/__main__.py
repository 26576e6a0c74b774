"""`python -m vistill`, the same as the command `vistill`."""

from vistill.cli.main import main

if __name__ == "__main__":
    main()
