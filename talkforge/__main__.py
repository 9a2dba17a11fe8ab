"""`python -m talkforge`: the command line."""

from talkforge.cli import main

if __name__ == "__main__":
    main()
