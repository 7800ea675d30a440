"""The field's own nouns as frozen values: extents, disks, VMs, plans, points in time, ledger entries, forecasts.

Pure data and pure functions only; no I/O, no Temporal, no SDK.
"""
