"""What do an experiment's blocks say? Analysis, planning and reports; and the proof on simulated experiments."""
