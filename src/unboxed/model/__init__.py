"""All that touches a module: hooks, saved and restored state, layers, outputs, backward rules.

What runs or inspects a model moves in here; what is computed from its outputs does not.
"""
