"""The boot set: what a guest will read when it boots, from the file system on its disk alone, without a history.

``view`` reads the disk while it is at the source, ``partitions`` and ``ext4`` find files, ``linux`` knows which ones a
boot reads, ``scout`` does it beside a running server, ``predictor`` proposes what was found.
"""
