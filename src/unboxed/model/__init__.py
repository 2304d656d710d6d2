"""All that touches a module: hooks, state that is put back, layers, outputs, backward rules.

What runs a model, or looks at one, moves in here; what is computed from its answers does not.
"""
