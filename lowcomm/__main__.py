"""`python -m lowcomm` is the `lowcomm` command; torchrun starts its ranks this way."""

import sys

from lowcomm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
