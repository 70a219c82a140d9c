"""`python -m herdbook` is the `herdbook` command."""

from herdbook.cli import main

if __name__ == "__main__":
    main()
