"""`python -m gennode` is the command `gennode`."""

from gennode.cli import main

if __name__ == "__main__":
    main()
