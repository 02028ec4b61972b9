"""`tools/weak_spots.py ... --config-file configs/....yaml KEY VALUE ...`: as `reliability-hooks weak-spots`."""

import sys

from reliability_hooks.cli.weak_spots import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], prog="tools/weak_spots.py"))
