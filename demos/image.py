"""The image demo alone: python demos/image.py"""

from mmspec.demo.app import launch
from mmspec.demo.stage import Stage

launch(Stage(), ["Image"])
