"""How good a model is, and whether it became better. Loads neither torch nor transformers."""
