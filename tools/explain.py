"""`tools/explain.py ... --config-file configs/....yaml KEY VALUE ...`: as `reliability-hooks explain`."""

import sys

from reliability_hooks.cli.explain import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], prog="tools/explain.py"))
