"""What crosses Temporal: names, inputs and results of workflows, activities, updates and queries, and their timeouts.

One frozen model in and one out; new fields only with defaults, for recorded histories must replay. Never a secret,
never bulk data.
"""
