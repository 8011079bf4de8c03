"""The ask demo alone: python demos/ask.py"""

import sys

from mmspec.cli import main

main(["demo", "--tabs", "ask", *sys.argv[1:]])
