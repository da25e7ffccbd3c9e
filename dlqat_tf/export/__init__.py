"""Export of a trained network, and the proof and the timing of what was exported."""
