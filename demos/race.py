"""The race demo alone: python demos/race.py"""

import sys

from mmspec.cli import main

main(["demo", "--tabs", "race", *sys.argv[1:]])
