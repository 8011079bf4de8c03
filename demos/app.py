"""All demos on one page: python demos/app.py"""

import sys

from mmspec.cli import main

main(["demo", *sys.argv[1:]])
