"""Durable orchestration, deterministic: one file per mode, each reading top to bottom as its steps.

What modes share lives beside them: ``course`` (steps, holds), ``journal`` (what is remembered and shown), ``operator``
(what was asked for), ``copying``, ``rounds``, ``cutover``, ``closing``, ``undo``. No clock, no random number, no I/O.
"""
