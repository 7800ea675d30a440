"""Runs a worker: settings, drivers, activities, one Worker per task queue."""
