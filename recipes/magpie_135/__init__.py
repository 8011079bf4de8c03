"""magpie-135: questions about scenes of emoji, answered by SmolLM2-135M with a vision tower of our own."""
