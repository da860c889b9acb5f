"""`python -m landscape.cli`, the same as the command `landscape`."""

import sys

from landscape.cli import main

sys.exit(main())
