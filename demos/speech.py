"""The speech demo alone: python demos/speech.py"""

import sys

from mmspec.cli import main

main(["demo", "--tabs", "speech", *sys.argv[1:]])
