"""``python -m hami``."""

from hami.cli import main

if __name__ == "__main__":
    main()
