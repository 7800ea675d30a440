"""``make demo``: a real guest moves between two KVM clouds, cold and incrementally, and the proof is printed."""
