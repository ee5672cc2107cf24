"""`python -m gateway` is `pagegate`."""

from gateway.cli import main

if __name__ == "__main__":
    main()
