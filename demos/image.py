"""The image demo alone: python demos/image.py"""

import sys

from mmspec.cli import main

main(["demo", "--tabs", "image", *sys.argv[1:]])
