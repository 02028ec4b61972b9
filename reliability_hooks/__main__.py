"""`python -m reliability_hooks`."""

import sys

from .cli import main

sys.exit(main())
