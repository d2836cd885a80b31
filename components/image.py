"""The image that the components run in: the engine, whose version is the tag."""

import os

from hpo_core import __version__

IMAGE = os.environ.get("KFP_HPO_IMAGE", f"kfp-hpo/hpo-python:{__version__}")
"""Set KFP_HPO_IMAGE when compiling, to name the image as your registry does."""
