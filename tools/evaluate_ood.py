"""`tools/evaluate_ood.py ... --config-file configs/....yaml KEY VALUE ...`: as `reliability-hooks evaluate-ood`."""

import sys

from reliability_hooks.cli.evaluate_ood import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], prog="tools/evaluate_ood.py"))
