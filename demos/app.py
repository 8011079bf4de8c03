"""All demos on one page, as `mmspec demo` shows them: python demos/app.py"""

from mmspec.demo.app import launch
from mmspec.demo.stage import Stage

launch(Stage())
