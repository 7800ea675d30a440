"""One package for each cloud or storage; nothing outside such a package knows the cloud's SDK.

A driver implements the ports of ``whimbrel.ports`` that its cloud can play, translates every vendor exception to
``whimbrel.errors`` in one table, tags what it makes with the migration's id, and passes the contract suites of
``tests/contract``. Drivers know nothing of each other, of Temporal, and of the workflows. See docs/driver-guide.md.
"""
