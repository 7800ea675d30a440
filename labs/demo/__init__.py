"""``make demo``: real guests move between two KVM clouds, in every mode that is built, and the proof is printed."""
