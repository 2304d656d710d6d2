"""Gradients of each example's loss with respect to a model's parameters.

What two methods of influence share moves in here.
"""
