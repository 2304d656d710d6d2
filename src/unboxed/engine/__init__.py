"""What a method is made of: optimizing inputs, gradients, perturbation, reading activations.

What two families or two methods share moves in here, into the part that its job names.
"""
