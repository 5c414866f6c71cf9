"""Steer a language model towards a topic with a sparse autoencoder."""
__version__ = "0.1.0"

__all__ = ["AddVector", "calibrate", "Clamp", "ReferenceSet", "Reconstruct", "SAEModel", "Swap", "TopicScores", "TopicVector", "TopUp", "Weight", "steer"]

def __getattr__(name):
    "Import the library when one of its names is first used: `saealign --help` need not wait for PyTorch"
    if name not in __all__: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from saealign import sae_fit, steered, swap_clamp, vectors, weight  # every class, with its methods
    rooms = {"steer": steered, "AddVector": vectors, "Weight": weight}
    return getattr(rooms.get(name, swap_clamp), name)

def __dir__(): return [*globals(), *__all__]
