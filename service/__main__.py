"""`python -m service` is the `hopstream` command."""

from service.cli import main

if __name__ == "__main__":
    main()
