"Describe the classes of an image dataset in words, and prove what the words are worth."
from importlib import import_module
from importlib.metadata import version

__version__ = version("datadesc")

# The front door. A name is imported when it is asked for, so that `datadesc --help` does not wait for torch.
_FRONT = {
    "load": "datasets", "ImageSet": "data", "from_file": "describe", "read_sentences": "sentences", "LLM": "llm",
    "load_encoder": "embed", "Study": "study", "ChoiceOptions": "selection", "zero_shot": "zeroshot",
    "label_issues": "audit", "confusable_pairs": "audit", "separating_texts": "audit",
    "image_rows": "figures", "proponent_gallery": "figures", "run": "runs",
}
__all__ = ["__version__", *_FRONT]


def __getattr__(name):
    "A name of the front door, from the module that has it."
    if name not in _FRONT: raise AttributeError(f"module 'datadesc' has no attribute '{name}'")
    return getattr(import_module(f"datadesc.{_FRONT[name]}"), name)


def __dir__(): return [*globals(), *_FRONT]
