"""Attribute to the input by gradients: a path of points and a backward rule.

What two gradient methods share moves in here.
"""
