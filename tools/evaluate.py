"""`tools/evaluate.py ... --config-file configs/....yaml KEY VALUE ...`: as `reliability-hooks evaluate`."""

import sys

from reliability_hooks.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], prog="tools/evaluate.py"))
