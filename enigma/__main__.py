"""`python -m enigma` is `enigma`."""

import sys

from enigma.cli.main import main

sys.exit(main())
