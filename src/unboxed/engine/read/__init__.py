"""Read and rewrite activations of real inputs.

What two methods that look at examples share moves in here.
"""
