"""`tools/predict.py ... --config-file configs/....yaml KEY VALUE ...`: as `reliability-hooks predict`."""

import sys

from reliability_hooks.cli.predict import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], prog="tools/predict.py"))
