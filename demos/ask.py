"""The ask demo alone: python demos/ask.py"""

from mmspec.demo.app import launch
from mmspec.demo.stage import Stage

launch(Stage(), ["Ask"])
