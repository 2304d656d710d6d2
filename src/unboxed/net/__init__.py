"""All that touches a module."""
