"""Prechecks: small pure rules over facts that were gathered once, and the mode that suits a VM."""
