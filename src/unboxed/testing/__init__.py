"""Test a method against the contracts."""
