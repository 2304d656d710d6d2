"""Linear readings of features (N, D): classifiers, how well they read an attribute, and its erasure.

What works on plain matrices of features moves in, whatever model or encoder they come from.
"""
