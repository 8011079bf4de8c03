"""The race demo alone: python demos/race.py"""

from mmspec.demo.app import launch
from mmspec.demo.stage import Stage

launch(Stage(), ["Race"])
