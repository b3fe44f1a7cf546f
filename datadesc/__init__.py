"Describe the classes of an image dataset in words, and prove what the words are worth."
from importlib.metadata import version

__version__ = version("datadesc")
