"""`tools/calibrate.py ... --config-file configs/....yaml KEY VALUE ...`: as `reliability-hooks calibrate`."""

import sys

from reliability_hooks.cli.calibrate import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], prog="tools/calibrate.py"))
