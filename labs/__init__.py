"""Clouds to test against: real software on one machine, started and ended by the tests."""
