"""The command line of the papers' experiments."""

import sys

from analyses.papers import main

if __name__ == "__main__":
    sys.exit(main())
