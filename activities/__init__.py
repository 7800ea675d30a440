"""One class per family of side effects, built with its ports; each method is one idempotent act.

Names are ``<family>.<verb>``; inputs and results are the frozen models of ``whimbrel.contracts.activity_io``.
No SDK of a cloud and no decision about the course of a migration belongs here.
"""
