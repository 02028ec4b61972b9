"""The one source of package metadata."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "reliability_hooks/__init__.py").read_text())[1]

CORE = [
    "torch>=2.4",
    "torchvision>=0.19",
    "numpy>=1.24",
    "packaging>=22",
    "pillow>=9.5",
    "pycocotools>=2.0.7",
    "pyyaml>=6",
    "rich>=13",
    "safetensors>=0.4",
    "scikit-learn>=1.4",
    "scipy>=1.10",
    "threadpoolctl>=3",
]
EXTRAS = {
    "ultralytics": ["ultralytics>=8.4", "lap>=0.5.12"],  # AGPL-3.0; lap: its trackers
    "clip": ["open_clip_torch>=3", "timm>=1.0"],
    "detectron2": [],  # on no registry: install it from https://github.com/facebookresearch/detectron2
    "segment-anything": ["segment-anything>=1.0"],
    "transformers": ["transformers>=5"],
    "supervision": ["supervision>=0.26"],
    "sahi": ["sahi>=0.11.20", "supervision>=0.26"],
    "parquet": ["pyarrow>=14"],
    "tracking": ["trackers>=2"],  # ByteTrack for hosts without a tracker of their own
    "metrics": ["torchmetrics>=1.4"],
    "report": ["jinja2>=3.1", "matplotlib>=3.8"],
    "demo": ["jinja2>=3.1", "matplotlib>=3.8", "open_clip_torch>=3", "timm>=1.0", "scikit-image>=0.21"],
}
TEST = [
    *EXTRAS["ultralytics"],
    *EXTRAS["clip"],
    *EXTRAS["metrics"],
    *EXTRAS["report"],
    *EXTRAS["transformers"],
    *EXTRAS["sahi"],
    *EXTRAS["parquet"],
    *EXTRAS["segment-anything"],
    *EXTRAS["demo"],
    "beartype>=0.22.9",  # maite checks protocols with it
    "grad-cam>=1.5",
    "hotcoco>=1.3",
    "hypothesis>=6.100",
    "ipykernel>=6",
    "maite>=0.9",
    "mypy>=1.11",
    "nbclient>=0.8",
    "nbformat>=5.7",
    "pytest>=8",
    "pytest-xdist>=3.5",
    "pytorch-ood>=0.4",
    "ruff>=0.6",
    "selenium>=4.20",
    "types-PyYAML",
    "uq-detr>=0.1.1",
]

setup(
    name="reliability_hooks",
    version=VERSION,
    description="Knowing, object by object, when not to trust a detector",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["reliability_hooks", "reliability_hooks.*"]),
    package_data={"reliability_hooks": ["py.typed", "assets/*.yaml", "assets/*/*", "assets/*/*/*",
                                        "report/templates/*"]},
    install_requires=CORE,
    extras_require={**EXTRAS, "test": TEST, "all": sorted({r for group in EXTRAS.values() for r in group})},
    entry_points={"console_scripts": ["reliability-hooks = reliability_hooks.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
