"""`python -m lowcomm` is the `lowcomm` command; torchrun starts its ranks this way."""

from lowcomm.cli.main import run

if __name__ == "__main__":
    run()
