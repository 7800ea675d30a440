"""Prefetch: what the background fetches before the guest asks for it.

``trace`` is the format of recorded accesses, ``recorder`` writes one while a server runs. ``history``, ``runs``,
``locality`` and ``correlation`` propose chunks, ``feedback`` keeps score of them, ``blend`` decides between them.
"""
