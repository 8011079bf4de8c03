"""The speech demo alone: python demos/speech.py"""

from mmspec.demo.app import launch
from mmspec.demo.stage import Stage

launch(Stage(), ["Speech"])
